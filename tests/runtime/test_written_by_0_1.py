"""The promise of docs/compatibility.md, held against files that version 0.1 wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ayaedge import AyaVision
from ayaedge.bundle import read_manifest

FILES = Path(__file__).parent / "written_by_0_1"
MANIFESTS = ("fast.json", "best.json")


def given(name: str, directory: Path, **more: object) -> dict[str, object]:
    """A manifest of version 0.1 where a bundle has it, with `more` in it; returns what version 0.1 wrote."""
    written: dict[str, object] = json.loads((FILES / name).read_text("utf-8"))
    (directory / "manifest.json").write_text(json.dumps(written | more), "utf-8")
    return written


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_is_read_and_nothing_in_it_is_lost(name: str, tmp_path: Path) -> None:
    written = given(name, tmp_path)
    assert written["created_by"]["ayaedge"] == "0.1.0"  # type: ignore[index]
    read = json.loads(read_manifest(tmp_path).to_json())
    assert {key: read[key] for key in written} == written


@pytest.mark.parametrize("name", MANIFESTS)
def test_what_a_later_version_adds_to_a_manifest_does_not_hinder_this_one(name: str, tmp_path: Path) -> None:
    given(name, tmp_path, something_new={"a": 1})
    read_manifest(tmp_path)


def test_a_saved_chat_is_opened_goes_on_and_is_saved_again(demo_model: AyaVision, tmp_path: Path) -> None:
    chat = demo_model.open_chat(FILES / "chat.ayachat")
    assert [(turn.question, turn.answer) for turn in chat.turns[:2]] == [
        ("What number is at the bottom left?", "2821"), ("How many shapes?", "1"),
    ]  # fmt: skip
    assert [len(turn.images) for turn in chat.turns] == [1, 0, 0]
    assert chat.turns[2].stop_reason == "length"
    answer = chat.ask("What shape is in the picture?").text
    chat.save(tmp_path / "again.ayachat")
    assert demo_model.open_chat(tmp_path / "again.ayachat").turns[-1].answer == answer
