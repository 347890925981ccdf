"""Text files with a byte-order mark, wherever a user hands one over; and files that appear whole or not at all."""

from __future__ import annotations

import codecs
import io
import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from ayaedge import AyaVision, Bundle, InvalidOptionError
from ayaedge.bundle import read_manifest
from ayaedge.cli.chat_input import PlainLines
from ayaedge.cli.options import grammar_of, schema_of
from ayaedge.files import PARTIAL, forget_abandoned, read_text, replacing, unfinished
from ayaedge_export.calibration.text import read_calibration_text
from ayaedge_export.checkpoint.checkpoint import open_checkpoint
from ayaedge_export.evaluation.windows import read_passages

ENCODINGS: dict[str, Callable[[str], bytes]] = {
    "utf-8": lambda text: text.encode(),
    "utf-8 with a mark": lambda text: text.encode("utf-8-sig"),
    "utf-16, little endian": lambda text: codecs.BOM_UTF16_LE + text.encode("utf-16-le"),
    "utf-16, big endian": lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
    "utf-32, little endian": lambda text: codecs.BOM_UTF32_LE + text.encode("utf-32-le"),
    "utf-32, big endian": lambda text: codecs.BOM_UTF32_BE + text.encode("utf-32-be"),
}
"""Windows PowerShell's `>` writes the third, many an editor the second."""
GRAMMAR = 'root ::= "猫" |\n "é"\n'


@pytest.fixture(params=ENCODINGS)
def encode(request: pytest.FixtureRequest) -> Callable[[str], bytes]:
    return ENCODINGS[request.param]


def test_a_text_is_read_without_its_mark(encode: Callable[[str], bytes], tmp_path: Path) -> None:
    path = tmp_path / "text"
    for text in ("", "猫 \ufeff\U0001f600\n\nhé"):
        path.write_bytes(encode(text))
        assert read_text(path) == text
    path.write_bytes(encode("a\r\nb\rc"))
    assert read_text(path) == "a\nb\nc"


@pytest.mark.parametrize("data", [b"\xff", b"\xff\xfea", b"\xef\xbb\xbf\xff", b"\xfe\xff\xd8\x00", b"a\xe9"])
def test_what_is_no_unicode_is_a_value_error(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(data)
    with pytest.raises(ValueError, match="codec can't decode"):
        read_text(tmp_path / "text")
    with pytest.raises(InvalidOptionError, match="cannot be read"):
        grammar_of(str(tmp_path / "text"))


def test_a_schema_and_a_grammar_are_read(encode: Callable[[str], bytes], tmp_path: Path) -> None:
    schema, grammar = tmp_path / "schema.json", tmp_path / "grammar.gbnf"
    schema.write_bytes(encode('{"type": "string", "const": "猫"}\n'))
    grammar.write_bytes(encode(GRAMMAR))
    found = schema_of(str(schema))
    assert found is not None
    assert found["json_schema"]["schema"] == {"type": "string", "const": "猫"}
    assert grammar_of(str(grammar)) == GRAMMAR


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no such pipes")
def test_a_grammar_may_come_from_a_pipe(encode: Callable[[str], bytes], tmp_path: Path) -> None:
    """As a shell's `--grammar <(make-grammar)` gives one: it can be read once only."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(encode(GRAMMAR),))
    writer.start()
    assert grammar_of(str(pipe)) == GRAMMAR
    writer.join()


def test_a_mark_that_a_shell_passes_on_is_no_part_of_schema_or_grammar(demo_model: AyaVision) -> None:
    assert schema_of('\ufeff{"type": "null"}') == schema_of('{"type": "null"}')
    assert grammar_of("\ufeff" + GRAMMAR) == GRAMMAR
    for grammar in ('\ufeffroot ::= "é"', 'root ::= "é"'):
        assert demo_model.ask("What?", grammar=grammar).text == "é"


def test_the_lines_of_a_chat_are_read(encode: Callable[[str], bytes]) -> None:
    lines = PlainLines(
        io.BytesIO(encode("What is 猫?\r\n\nA \\\nB ਊ\n"))
    )  # U+0A0A looks like two line breaks
    assert [lines.read("") for _ in range(4)] == ["What is 猫?", "", "A \nB ਊ", None]


def test_a_chat_of_utf_8_is_answered_line_by_line() -> None:
    """A program that writes its second question after the first answer is not waited for."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as source, os.fdopen(writing, "wb", buffering=0) as target:
        lines = PlainLines(source)
        for line in ("\ufeffone", "two"):
            target.write(f"{line}\n".encode())
            assert lines.read("") == line.removeprefix("\ufeff")


def test_a_manifest_is_read(encode: Callable[[str], bytes], exact_bundle: Bundle, tmp_path: Path) -> None:
    text = (exact_bundle.directory / "manifest.json").read_text("utf-8")
    (tmp_path / "manifest.json").write_bytes(encode(text))
    assert read_manifest(tmp_path) == exact_bundle.manifest


def test_every_text_file_of_a_checkpoint_is_read(
    encode: Callable[[str], bytes], tiny: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(tiny, tmp_path / "tiny"))
    shard = "model-00001-of-00001.safetensors"
    (copy / "model.safetensors").rename(copy / shard)
    with safe_open(copy / shard, framework="numpy") as weights:
        names = dict.fromkeys(weights.keys(), shard)
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    before = facts(copy)
    texts = [path for path in copy.iterdir() if path.suffix in (".json", ".jinja", ".md")]
    assert len(texts) > 4
    for path in texts:
        path.write_bytes(encode(path.read_text("utf-8")))
    assert facts(copy) == before


def facts(directory: Path) -> tuple[Any, ...]:
    checkpoint = open_checkpoint(directory)
    return checkpoint.config, checkpoint.chat_template, checkpoint.license, checkpoint.tokenizer


@pytest.mark.parametrize("name", ["text.txt", "text.jsonl"])
def test_texts_to_measure_with_are_read(encode: Callable[[str], bytes], name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    line = json.dumps({"language": "ja", "text": "猫がいる。"}, ensure_ascii=False)
    path.write_bytes(encode(f"{line}\n" if name.endswith("jsonl") else "猫がいる。\n\n犬もいる。\n"))
    assert next(iter(read_passages(path).values()))[0] == "猫がいる。"
    assert next(iter(read_calibration_text(path).passages.values()))[0] == "猫がいる。"


@pytest.mark.parametrize("private", [False, True])
def test_a_file_is_replaced_whole_or_stays_as_it_was(private: bool, tmp_path: Path) -> None:
    path = tmp_path / ("n" * 250)  # with hardly room for a longer name beside it
    for content in (b"old", b"new"):
        with replacing(path, private=private, sync=True) as stream:
            stream.write(content)
            assert not path.exists() or path.read_bytes() == b"old"
    with pytest.raises(KeyboardInterrupt), replacing(path, private=private) as stream:
        stream.write(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]
    if os.name == "posix" and private:
        assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_may_take_its_place_in_another_way(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"first")
    with replacing(path, private=True, put=lambda new, old: None) as stream:
        stream.write(b"second")
    assert {one.name: one.read_bytes() for one in tmp_path.iterdir()} == {"a": b"first"}


def test_what_killed_processes_left_goes_away_when_it_is_old(tmp_path: Path) -> None:
    old, folder, fresh = (unfinished(tmp_path / name) for name in "abc")
    old.touch()
    folder.mkdir()
    (folder / "inside").touch()
    fresh.touch()
    for path in (old, folder):
        os.utime(path, (1, 1))
    forget_abandoned(tmp_path)
    assert list(tmp_path.iterdir()) == [fresh]
    forget_abandoned(tmp_path, age=0)
    assert list(tmp_path.iterdir()) == []


def test_one_module_alone_knows_how_unfinished_files_are_called() -> None:
    import ayaedge

    root = Path(ayaedge.__file__).parent
    found = [path for path in root.rglob("*.py") if f'"{PARTIAL}' in path.read_text("utf-8")]
    assert found == [root / "files.py"]
