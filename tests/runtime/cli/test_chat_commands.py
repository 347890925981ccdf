from __future__ import annotations

import pytest

from ayaedge.cli.chat_commands import (
    COMMANDS,
    Command,
    DroppedImages,
    Question,
    describe_tiles,
    help_text,
    joins_next_line,
    parse_tiles,
    read_line,
)
from ayaedge.errors import InvalidOptionError
from ayaedge.images.tile_budget import TileChoice

IMAGES = {"a.png", "/home/x/a b.png", "/tmp/ا.jpg", "/clear"}


def read(line: str) -> object:
    return read_line(line, IMAGES.__contains__, windows=False)


@pytest.mark.parametrize(
    ("line", "meaning"),
    [
        ("", None),
        (" \t\r\n", None),
        ("What?", Question("What?")),
        (" What is\nthis? ", Question("What is\nthis?")),
        ("//bye is a command", Question("/bye is a command")),
        ("//", Question("/")),
        ("ما هذا؟", Question("ما هذا؟")),
        ("/bye", Command("bye", "")),
        ("/EXIT", Command("bye", "")),
        ("/quit now", Command("bye", "now")),
        ("/image a b\\ c", Command("image", "a b\\ c")),
        ("/image\u3000写真.png", Command("image", "写真.png")),
        ("/system  Be brief.\nVery. ", Command("system", "Be brief.\nVery.")),
        ("/clear", Command("clear", "")),
        ("a.png", DroppedImages(("a.png",))),
        ("'/home/x/a b.png' /tmp/ا.jpg ", DroppedImages(("/home/x/a b.png", "/tmp/ا.jpg"))),
        ("/home/x/a b.png", DroppedImages(("/home/x/a b.png",))),
        ("What is in a.png", Question("What is in a.png")),
        ("a.png b.png", Question("a.png b.png")),
    ],
)
def test_a_line_is_a_question_a_command_or_dropped_images(line: str, meaning: object) -> None:
    assert read(line) == meaning


def test_an_unknown_command_names_the_others_the_nearest_first() -> None:
    for wrong, nearest in [("/imgae x", "/image"), ("/sav", "/save"), ("/", "/"), ("/systm", "/system")]:
        with pytest.raises(InvalidOptionError) as caught:
            read(wrong)
        message = str(caught.value)
        assert message.startswith(f"there is no command {wrong.split()[0]}, but {nearest}")
        assert all(f"/{name}" in message for name in COMMANDS)
        assert "//" in message


def test_a_path_of_no_image_is_not_taken_for_a_question() -> None:
    with pytest.raises(InvalidOptionError, match="neither a command nor an image file: /image PATH"):
        read("/home/x/none.png")


@pytest.mark.parametrize(
    ("argument", "choice"),
    [
        ("faithful", TileChoice()),
        ("Native", TileChoice("native")),
        ("auto", TileChoice("auto")),
        ("auto 2.5", TileChoice("auto", budget=2.5)),
        ("4", TileChoice("auto", 4, 9.0)),
        ("٤", TileChoice("auto", 4, 9.0)),
    ],
)
def test_tiles_are_a_policy_seconds_or_a_number(argument: str, choice: TileChoice) -> None:
    assert parse_tiles(argument, TileChoice("auto", 2, 9.0)) == choice


@pytest.mark.parametrize("argument", ["0", "-1", "many", "auto x", "auto 0", "auto nan", "native 3", "1.5"])
def test_senseless_tiles_are_refused(argument: str) -> None:
    with pytest.raises(InvalidOptionError):
        parse_tiles(argument, TileChoice())


def test_tiles_are_described() -> None:
    assert "2.5 seconds" in describe_tiles(TileChoice("auto", budget=2.5))
    assert "30 seconds" in describe_tiles(TileChoice("auto"))
    assert "at most 4" in describe_tiles(TileChoice("native", 4))


def test_help_names_every_command() -> None:
    assert all(f"/{name}" in help_text() for name in COMMANDS)


@pytest.mark.parametrize(("line", "joins"), [("a\\", True), ("a\\\\", False), ("a", False), ("\\\\\\", True)])
def test_a_backslash_at_the_end_joins_lines_unless_it_is_escaped(line: str, joins: bool) -> None:
    assert joins_next_line(line) is joins
