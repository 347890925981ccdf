from __future__ import annotations

from pathlib import Path

import pytest

from ayaedge.cli.pasted_paths import find_path, find_paths, is_file, is_image_file, quote_path, split_words

NAMES = (
    "/home/x/plain.png",
    "/home/x/with blank.png",
    '/home/x/Bob\'s "best" image.png',
    "/home/x/صورة من البحر.png",
    "/home/x/海の 写真.jpg",
    "/home/x/Screenshot at 9.41\u202fAM.png",
    "/home/x/back\\slash $HOME `x`.png",
    "C:\\Users\\Ана\\мој албум\\слика 1.png",
    "\\\\server\\share\\a b.png",
)


def everything(_: str) -> bool:
    return True


def nothing(_: str) -> bool:
    return False


@pytest.mark.parametrize("path", NAMES)
@pytest.mark.parametrize("quote", ["", "'", '"'])
@pytest.mark.parametrize("windows", [False, True])
def test_a_quoted_path_is_read_back(path: str, quote: str, windows: bool) -> None:
    path = path.replace('"', "") if windows else path  # names of Windows have none
    line = quote_path(path, quote=quote, windows=windows)
    assert [word.text for word in split_words(f"{line}  {line}", escapes=not windows)] == [path, path]


@pytest.mark.parametrize(
    ("line", "paths"),
    [
        ("'/a/b c.png' ", ["/a/b c.png"]),  # GNOME
        ("/a/b\\ c\\(1\\).png /d.png ", ["/a/b c(1).png", "/d.png"]),  # macOS
        ("'/a/it'\\''s.png'", ["/a/it's.png"]),
        ('"/a/b c.png"\t/d.png', ["/a/b c.png", "/d.png"]),
        ("/a/صورة\\ ١.png", ["/a/صورة ١.png"]),
        ("/a/b.png\n/c/d.png", ["/a/b.png", "/c/d.png"]),
        ("file:///a/b%20c/%E6%B5%B7.png", ["/a/b c/海.png"]),
        ("FILE://localhost/a.png file:/b.png", ["/a.png", "/b.png"]),
        ("file:///C:/a%20b/c.png", ["C:/a b/c.png"]),
        ("file://server/share/a.png", ["//server/share/a.png"]),
        ("C:\\Users\\x\\a.png D:\\b.png", ["C:\\Users\\x\\a.png", "D:\\b.png"]),
        ('"C:\\Program Files\\a.png"', ["C:\\Program Files\\a.png"]),
        ("\\\\server\\share\\a.png", ["\\\\server\\share\\a.png"]),
        ("a\\", ["a\\"]),
        ("'/not/closed.png", ["/not/closed.png"]),
    ],
)
def test_a_pasted_line_is_read_on_posix(line: str, paths: list[str]) -> None:
    assert find_paths(line, everything, windows=False) == paths
    assert find_paths(line, nothing, windows=False) == paths


@pytest.mark.parametrize(
    ("line", "paths"),
    [
        ("C:\\a\\b.png", ["C:\\a\\b.png"]),
        ('"C:\\a b\\c d.png" E:\\f.png', ["C:\\a b\\c d.png", "E:\\f.png"]),
        ("& 'C:\\it''s an image.png'", ["C:\\it's an image.png"]),  # dropped on a PowerShell
        ("Bob's.png", ["Bob's.png"]),
        ("relative\\a.png", ["relative\\a.png"]),
        ("file:///C:/a%20b.png", ["C:/a b.png"]),
    ],
)
def test_a_pasted_line_is_read_on_windows(line: str, paths: list[str]) -> None:
    assert find_paths(line, everything, windows=True) == paths


@pytest.mark.parametrize(
    ("line", "files"),
    [
        ("my photo.png", {"my photo.png"}),
        ("Bob's photo.png", {"Bob's photo.png"}),
        ("/a/one two.png\n/a/three four.png", {"/a/one two.png", "/a/three four.png"}),
        ("folder\\a.png", {"folder\\a.png"}),
        ("/a/Screenshot at 9.41\u202fAM.png", {"/a/Screenshot at 9.41\u202fAM.png"}),
    ],
)
def test_of_several_readings_the_one_whose_files_exist_is_taken(line: str, files: set[str]) -> None:
    assert set(find_paths(line, files.__contains__, windows=False)) == files


def test_a_tilde_is_the_home_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert find_paths("~/a\\ b.png", nothing, windows=False) == [str(tmp_path / "a b.png")]
    assert find_paths("~nobody-has-this-name/a.png", nothing) == ["~nobody-has-this-name/a.png"]


def test_one_path_may_have_blanks_and_need_not_exist() -> None:
    assert find_path("my chat.ayachat", nothing, windows=False) == "my chat.ayachat"
    assert find_path("my\\ chat.ayachat", nothing, windows=False) == "my chat.ayachat"
    assert find_path("'my chat.ayachat'", nothing, windows=False) == "my chat.ayachat"
    assert find_path("a\\ b", {"a\\ b"}.__contains__, windows=False) == "a\\ b"
    assert find_path("  ", nothing) == ""


def test_text_that_cannot_be_a_path_is_no_file(tmp_path: Path) -> None:
    for text in ("", "x" * 5000, "a\0b", "\udcff", str(tmp_path)):
        assert not is_file(text)
        assert not is_image_file(text + ".png")


def test_an_image_is_known_by_its_name(tmp_path: Path) -> None:
    for name, expected in [
        ("a.PNG", True),
        ("b.heic", True),
        ("c.webp", True),
        ("d.txt", False),
        ("e", False),
    ]:
        (tmp_path / name).touch()
        assert is_image_file(str(tmp_path / name)) is expected, name
