"""Exports that are killed, run out of disk or meet another one: nothing is lost and nothing half stands."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ayaedge import ExportError, InvalidOptionError
from ayaedge.manifest import DECODER, VISION
from ayaedge_export import exporter
from ayaedge_export.calibration import imatrix as calibration
from ayaedge_export.calibration.text import BUILTIN
from ayaedge_export.checkpoint.checkpoint import open_checkpoint
from ayaedge_export.decoder import gguf_writer as decoder_gguf
from ayaedge_export.exporter import export_checkpoint
from ayaedge_export.plan import plan_export
from ayaedge_export.resume.journal import Journal
from ayaedge_export.resume.staged_bundle import staging_place
from random_checkpoint import Shape, write_random_checkpoint

KILLS = 30
SHAPE = Shape(
    text={"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6},
    vision={"num_hidden_layers": 1},
    dtype="bfloat16",
    shard_size="10MB",
)


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture(scope="module")
def checkpoint(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("resume") / "c", tiny, SHAPE)


@pytest.fixture(scope="module")
def undisturbed(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return contents(export_checkpoint(checkpoint, tmp_path_factory.mktemp("undisturbed") / "b").directory)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the tensors that were encoded since the list was cleared."""
    names: list[str] = []
    encode_rows = decoder_gguf._encode_rows

    def watched(tensors: Any, tensor: decoder_gguf.PlannedTensor, *rest: Any) -> Any:
        names.append(tensor.name)
        return encode_rows(tensors, tensor, *rest)

    monkeypatch.setattr(decoder_gguf, "_encode_rows", watched)
    return names


def fill_disk_at(monkeypatch: pytest.MonkeyPatch, tensor: str) -> Callable[[], None]:
    """Let the write of this tensor fail; returns what frees the disk."""
    finish = decoder_gguf.PieceWriter.finish

    def full(self: decoder_gguf.PieceWriter, name: str) -> None:
        if name == tensor:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finish(self, name)

    monkeypatch.setattr(decoder_gguf.PieceWriter, "finish", full)
    return lambda: monkeypatch.setattr(decoder_gguf.PieceWriter, "finish", finish)


def interrupt(checkpoint: Path, target: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    """Leave an export unfinished that has written four layers."""
    free = fill_disk_at(monkeypatch, "blk.4.attn_k.weight")
    with pytest.raises(ExportError, match="the disk is full"):
        export_checkpoint(checkpoint, target, **options)
    free()
    assert not target.exists()


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
def test_an_export_killed_at_any_moment_ends_as_an_undisturbed_one(
    checkpoint: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ayaedge_export.exporter", "onnx", "gguf"])
    target, journal = tmp_path / "b", staging_place(tmp_path / "b") / "journal.jsonl"

    def start() -> multiprocessing.process.BaseProcess:
        process = context.Process(target=export_checkpoint, args=(checkpoint, target))
        process.start()
        return process

    def finish() -> None:
        assert contents(target) == undisturbed
        assert [path.name for path in tmp_path.iterdir()] == ["b"]
        shutil.rmtree(target)

    start().join()  # the fork server comes up
    finish()
    started = time.perf_counter()
    start().join()
    duration = time.perf_counter() - started
    finish()

    chance, kills, resumed = random.Random(0), 0, 0
    while kills < KILLS:
        process = start()
        process.join(chance.uniform(0, duration))
        if process.is_alive():
            process.kill()
            process.join()
            kills += 1
            assert not target.exists() or contents(target) == undisturbed
            resumed += journal.exists() and "blk." in journal.read_text()
        else:
            assert process.exitcode == 0
        if target.exists():
            shutil.rmtree(target)
    assert resumed >= KILLS // 6  # else this test has killed beginners only
    start().join()
    finish()


def test_a_full_disk_loses_nothing(
    checkpoint: Path,
    undisturbed: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    encoded: list[str],
) -> None:
    target = tmp_path / "b"
    free = fill_disk_at(monkeypatch, "blk.4.attn_k.weight")
    with pytest.raises(
        ExportError, match=r"the disk is full; what is finished lies in .*\.b\.partial, and the same"
    ):
        export_checkpoint(checkpoint, target)
    assert not target.exists()
    free()
    encoded.clear()
    opened, seen = open_checkpoint(checkpoint), [0]
    bundle = export_checkpoint(opened, target, advance=lambda count, _: seen.append(count))
    assert encoded[0] == "blk.4.attn_k.weight"
    assert not any(name.startswith("blk.3.") for name in encoded)
    assert sum(seen) == plan_export(opened).work_bytes
    assert contents(bundle.directory) == undisturbed
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


@pytest.mark.parametrize(
    ("file", "place", "first"),
    [
        (VISION, 100, "token_embd.weight"),
        (DECODER, 100, "token_embd.weight"),
        (DECODER, -1, "blk.4.attn_q.weight"),
        (DECODER, None, "token_embd.weight"),
    ],
)
def test_what_was_damaged_in_between_is_written_again(
    checkpoint: Path,
    undisturbed: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    encoded: list[str],
    file: str,
    place: int | None,
    first: str,
) -> None:
    target = tmp_path / "b"
    interrupt(checkpoint, target, monkeypatch)
    path = staging_place(target) / "bundle" / file
    if place is None:
        path.write_bytes(path.read_bytes()[:5000])
    else:
        if place < 0:  # the last byte that the journal calls finished
            lines = (staging_place(target) / "journal.jsonl").read_text().splitlines()[1:]
            pieces = [json.loads(line) for line in lines]
            place = sum(piece["nbytes"] for piece in pieces if piece["file"] == DECODER) - 1
        data = bytearray(path.read_bytes())
        data[place] ^= 1
        path.write_bytes(data)
    encoded.clear()
    assert contents(export_checkpoint(checkpoint, target).directory) == undisturbed
    assert encoded[0] == first


def test_a_torn_line_of_the_journal_is_no_piece(
    checkpoint: Path,
    undisturbed: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    encoded: list[str],
) -> None:
    target = tmp_path / "b"
    interrupt(checkpoint, target, monkeypatch)
    journal = staging_place(target) / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-10])
    encoded.clear()
    assert contents(export_checkpoint(checkpoint, target).directory) == undisturbed
    assert encoded[0] == "blk.4.attn_q.weight"


@pytest.mark.parametrize("change", ["format", "checkpoint", "no resume"])
def test_another_export_begins_anew(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoded: list[str], change: str
) -> None:
    copy, target = shutil.copytree(checkpoint, tmp_path / "c"), tmp_path / "b"
    interrupt(copy, target, monkeypatch)
    encoded.clear()
    if change == "checkpoint":
        (copy / "README.md").write_text("---\nlicense: mit\n---\n")
    bundle = export_checkpoint(
        copy, target, quant="q8_0" if change == "format" else "q4_k_m", resume=change != "no resume"
    )
    assert encoded[0] == "token_embd.weight"
    expected = export_checkpoint(copy, tmp_path / "expected", quant=bundle.manifest.formats.decoder)
    assert contents(bundle.directory) == contents(expected.directory)


def test_of_two_exports_to_one_place_the_second_fails_at_once(
    checkpoint: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    target, refusals = tmp_path / "b", []

    def start_another(_count: int, what: str) -> None:
        if what == "blk.2.attn_q.weight" and not refusals:
            started = time.perf_counter()
            with pytest.raises(ExportError, match=r"another export to .* is at work"):
                export_checkpoint(checkpoint, target)
            refusals.append(time.perf_counter() - started)

    bundle = export_checkpoint(checkpoint, target, advance=start_another)
    assert len(refusals) == 1
    assert contents(bundle.directory) == undisturbed


def test_a_bundle_that_was_being_replaced_is_put_back_and_nothing_is_lost(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoded: list[str]
) -> None:
    target = export_checkpoint(checkpoint, tmp_path / "b", quant="q8_0").directory
    before, rename = contents(target), Path.rename

    def killed(self: Path, to: Path) -> Path:
        if self.name == "bundle":
            raise SystemExit  # and what would be undone is not: a killed process undoes nothing
        return rename(self, to)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(Path, "rename", killed)
        patch.setattr("ayaedge_export.resume.staged_bundle._put_back", lambda *_: None)
        export_checkpoint(checkpoint, target, force=True)
    assert not target.exists()
    with pytest.raises(ExportError, match="exists"):
        export_checkpoint(checkpoint, target)
    assert contents(target) == before
    encoded.clear()
    assert export_checkpoint(checkpoint, target, force=True).manifest.formats.decoder == "q4_k_m"
    assert encoded == []  # everything was finished
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


@pytest.mark.parametrize("calibrate", [None, BUILTIN.only("en")])
def test_a_failure_in_the_last_phase_costs_only_that_phase(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoded: list[str], calibrate: Any
) -> None:
    checkpoint = write_random_checkpoint(tmp_path / "small", tiny, Shape())
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("ayaedge_export.exporter.write_manifest", raise_of(KeyboardInterrupt()))
        export_checkpoint(checkpoint, tmp_path / "b", calibrate=calibrate)
    encoded.clear()
    monkeypatch.setattr(calibration, "collect", raise_of(AssertionError("it was measured before")))
    bundle = export_checkpoint(checkpoint, tmp_path / "b", calibrate=calibrate)
    assert encoded == []
    assert {path.name for path in bundle.directory.iterdir()} == {"manifest.json", VISION, DECODER}


def test_trying_again_before_there_is_room_loses_nothing(
    checkpoint: Path,
    undisturbed: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    encoded: list[str],
) -> None:
    interrupt(checkpoint, tmp_path / "b", monkeypatch)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for place, error in (
        ("ayaedge_export.resume.journal.Journal._rewrite", full),
        ("ayaedge_export.resume.journal._checksum", full),
        ("ayaedge_export.resume.journal._intact", KeyboardInterrupt()),
        ("ayaedge_export.exporter.check_disk", ExportError("there is no room")),
    ):
        with monkeypatch.context() as patch, pytest.raises((ExportError, KeyboardInterrupt)):
            patch.setattr(place, raise_of(error))
            export_checkpoint(checkpoint, tmp_path / "b")
    encoded.clear()
    assert contents(export_checkpoint(checkpoint, tmp_path / "b").directory) == undisturbed
    assert encoded[0] == "blk.4.attn_k.weight"


def test_an_unfinished_tensor_counts_as_room(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(checkpoint, tmp_path / "b", monkeypatch)
    lying = sum(path.stat().st_size for path in (staging_place(tmp_path / "b") / "bundle").iterdir())
    needed = plan_export(checkpoint).disk_bytes
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed - lying - 1))
    with pytest.raises(ExportError, match="the rest of the bundle takes"):
        export_checkpoint(checkpoint, tmp_path / "b")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed - lying))
    export_checkpoint(checkpoint, tmp_path / "b")


def test_a_damaged_graph_beside_intact_weights_is_written_again_once(
    checkpoint: Path,
    undisturbed: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    encoded: list[str],
) -> None:
    small = {"external_threshold": 0}
    write = exporter.write_int8_vision_graph
    monkeypatch.setattr(exporter, "write_int8_vision_graph", lambda *given: write(*given, **small))
    interrupt(checkpoint, tmp_path / "b", monkeypatch, vision="int8")
    graph = staging_place(tmp_path / "b") / "bundle" / VISION
    graph.write_bytes(b"damaged")
    interrupt(checkpoint, tmp_path / "b", monkeypatch, vision="int8")
    encoded.clear()
    bundle = export_checkpoint(checkpoint, tmp_path / "b", vision="int8")
    assert encoded[0] == "blk.4.attn_k.weight"
    assert contents(bundle.directory)[DECODER] == undisturbed[DECODER]


def test_a_traced_graph_needs_its_memory_once(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = write_random_checkpoint(tmp_path / "small", tiny, Shape())
    interrupt(checkpoint, tmp_path / "b", monkeypatch, vision="fp32", trace=True)
    monkeypatch.setattr("ayaedge_export.vision.trace.check_memory", raise_of(AssertionError("it is traced")))
    export_checkpoint(checkpoint, tmp_path / "b", vision="fp32", trace=True)


def test_messages_fit_the_case(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "b")
    free = fill_disk_at(monkeypatch, "blk.1.attn_k.weight")
    with pytest.raises(ExportError, match=r"real/\.b\.partial, and the same export with resume=True"):
        export_checkpoint(checkpoint, tmp_path / "link", resume=False)
    free()
    (tmp_path / ".f.partial").touch()
    with pytest.raises(ExportError, match="nothing was left behind"):
        export_checkpoint(checkpoint, tmp_path / "f")
    with pytest.raises(ExportError, match="could not be written"):
        export_checkpoint(checkpoint, tmp_path / ("n" * 250))
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    with pytest.raises(ExportError):
        export_checkpoint(checkpoint, tmp_path / "circle")
    copy = shutil.copytree(checkpoint, tmp_path / "c")
    opened = open_checkpoint(copy)
    next(copy.glob("*.safetensors")).unlink()
    with pytest.raises(ExportError, match=r"the checkpoint .* could not be read"):
        export_checkpoint(opened, tmp_path / "b")


def raise_of(error: BaseException) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def test_a_failed_exchange_keeps_the_old_bundle(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = export_checkpoint(checkpoint, tmp_path / "b", quant="q8_0").directory
    before, rename = contents(target), Path.rename

    def fail(self: Path, to: Path) -> Path:
        if self.name == "bundle":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(ExportError, match="what is finished lies in"):
        export_checkpoint(checkpoint, target, force=True)
    assert contents(target) == before
    monkeypatch.undo()
    assert export_checkpoint(checkpoint, target, force=True).manifest.formats.decoder == "q4_k_m"


def test_a_journal_belongs_to_one_export(tmp_path: Path) -> None:
    def opened(fingerprint: str, *, resume: bool = True) -> Journal:
        return Journal(tmp_path / "journal.jsonl", tmp_path / "files", fingerprint, resume=resume)

    journal = opened("a")
    journal.begin()
    (tmp_path / "files" / "x").write_bytes(b"data")
    journal.add_file("x")
    assert [piece.name for piece in opened("a").pieces] == ["x"]
    assert opened("a", resume=False).pieces == []
    other = opened("b")
    assert other.pieces == []
    assert (tmp_path / "files" / "x").exists()  # until the other one begins
    other.begin()
    assert not (tmp_path / "files" / "x").exists()
    assert opened("a").pieces == []


def test_an_interrupted_export_measures_the_importance_once(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = write_random_checkpoint(tmp_path / "small", tiny, Shape())
    text, target = BUILTIN.only("en", "ja"), tmp_path / "b"
    matrix = calibration.collect(open_checkpoint(checkpoint), text)
    expected = export_checkpoint(checkpoint, tmp_path / "expected", importance=matrix)
    interrupt(checkpoint, target, monkeypatch, calibrate=text)
    monkeypatch.setattr(calibration, "collect", lambda *_, **__: pytest.fail("it was measured before"))
    bundle = export_checkpoint(checkpoint, target, calibrate=text)
    assert contents(bundle.directory) == contents(expected.directory)
    assert bundle.manifest.formats.adjustments == ("importance from builtin[en,ja]",)
    with pytest.raises(InvalidOptionError, match="exclude each other"):
        export_checkpoint(checkpoint, tmp_path / "c", calibrate=text, importance=matrix)


def test_another_text_to_calibrate_on_begins_anew(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoded: list[str]
) -> None:
    checkpoint = write_random_checkpoint(tmp_path / "small", tiny, Shape())
    interrupt(checkpoint, tmp_path / "b", monkeypatch, calibrate=BUILTIN.only("en"))
    encoded.clear()
    export_checkpoint(checkpoint, tmp_path / "b", calibrate=BUILTIN.only("ja"))
    assert encoded[0] == "token_embd.weight"
