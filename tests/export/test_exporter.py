from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ayaedge import CheckpointError, ExportError, InvalidOptionError, read_bundle
from ayaedge.bundle import check_hashes, demo_bundle
from ayaedge_export.effort import Budget, GptqOptions
from ayaedge_export.evaluation.evaluate import evaluate_bundle
from ayaedge_export.evaluation.verify import verify_bundle
from ayaedge_export.exporter import export_checkpoint
from ayaedge_export.manifest import describe_writers
from ayaedge_export.plan import VISION_FORMATS, plan_export
from ayaedge_export.resume.staged_bundle import staging_place
from ayaedge_quant.recipes import DECODER_FORMATS, DecoderFormat
from random_checkpoint import Shape, write_random_checkpoint


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_two_exports_are_byte_identical(tiny: Path, tmp_path: Path) -> None:
    first = export_checkpoint(tiny, tmp_path / "first", threads=1)
    second = export_checkpoint(tiny, tmp_path / "second", threads=3)
    assert contents(first.directory) == contents(second.directory)


def test_the_shipped_bundle_is_what_an_export_gives(tiny: Path, tmp_path: Path) -> None:
    shipped = read_bundle(demo_bundle())
    assert check_hashes(shipped) == []
    assert shipped.size <= 5_000_000
    again = export_checkpoint(tiny, tmp_path / "again", vision="int8")
    if shipped.manifest.created_by != describe_writers():
        pytest.skip(f"the shipped bundle was written by {shipped.manifest.created_by}")
    assert contents(again.directory) == contents(shipped.directory)


@pytest.mark.parametrize("vision", VISION_FORMATS)
@pytest.mark.parametrize("quant", DECODER_FORMATS)
def test_every_pair_of_formats_is_an_intact_bundle(
    tiny: Path, tmp_path: Path, quant: DecoderFormat, vision: str
) -> None:
    bundle = export_checkpoint(tiny, tmp_path / "b", quant=quant, vision=vision)  # type: ignore[arg-type]
    assert check_hashes(bundle) == []
    assert (bundle.manifest.formats.decoder, bundle.manifest.formats.vision) == (quant, vision)
    assert {path.name for path in tmp_path.iterdir()} == {"b"}


def test_a_traced_bundle_is_a_bundle(tiny: Path, tmp_path: Path) -> None:
    bundle = export_checkpoint(tiny, tmp_path / "b", trace=True)
    assert bundle.manifest.formats.vision == "fp32"
    with pytest.raises(ExportError, match="fp32, not int8"):
        export_checkpoint(tiny, tmp_path / "c", vision="int8", trace=True)


@pytest.mark.parametrize("word", ["no", 0])
def test_what_is_no_truth_value_never_replaces_a_bundle(tiny: Path, tmp_path: Path, word: Any) -> None:
    bundle = read_bundle(shutil.copytree(demo_bundle(), tmp_path / "b"))
    before = contents(bundle.directory)
    calls: dict[str, Callable[[], object]] = {
        "force": lambda: export_checkpoint(tiny, bundle.directory, force=word),
        "resume": lambda: export_checkpoint(tiny, tmp_path / "c", resume=word),
        "trace": lambda: export_checkpoint(tiny, tmp_path / "c", trace=word),
        "trace ": lambda: verify_bundle(bundle, tiny, trace=word),
        "images": lambda: evaluate_bundle(bundle, tiny, images=word),
        "choose_types": lambda: Budget(choose_types=word),
        "rounded_inputs": lambda: GptqOptions(rounded_inputs=word),
    }
    for name, call in calls.items():
        with pytest.raises(InvalidOptionError, match=f"{name.strip()} must be a bool, not {word!r}"):
            call()
    assert contents(bundle.directory) == before
    assert {path.name for path in tmp_path.iterdir()} == {"b"}


def test_progress_covers_every_byte(tiny: Path, tmp_path: Path) -> None:
    seen: list[int] = []
    export_checkpoint(tiny, tmp_path / "b", advance=lambda count, _: seen.append(count))
    assert sum(seen) == plan_export(tiny).work_bytes


def test_an_existing_bundle_is_replaced_only_by_force(tiny: Path, tmp_path: Path) -> None:
    target = tmp_path / "b"
    export_checkpoint(tiny, target, quant="q8_0")
    with pytest.raises(ExportError, match="force=True"):
        export_checkpoint(tiny, target, quant="f16")
    assert read_bundle(target).manifest.formats.decoder == "q8_0"
    export_checkpoint(tiny, target, quant="f16", force=True)
    assert read_bundle(target).manifest.formats.decoder == "f16"
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_force_never_replaces_what_is_no_bundle(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("precious")
    with pytest.raises(ExportError, match="is not a bundle"):
        export_checkpoint(tiny, tmp_path / "photos", force=True)
    assert (tmp_path / "photos" / "a.jpg").read_text() == "precious"


@pytest.mark.skipif(os.name == "nt", reason="links are for administrators there")
@pytest.mark.parametrize("below", ["", "out"])
def test_a_target_behind_links_in_a_circle_is_refused_before_the_work(
    tiny: Path, tmp_path: Path, below: str
) -> None:
    circle = tmp_path / "circle"
    circle.symlink_to(circle)
    with pytest.raises(ExportError, match=r"cannot be followed: .*Too many levels of symbolic links"):
        export_checkpoint(tiny, circle / below)
    assert list(tmp_path.iterdir()) == [circle]


def test_a_link_is_followed_and_stays_a_link(tiny: Path, tmp_path: Path) -> None:
    export_checkpoint(tiny, tmp_path / "real", quant="q8_0")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    export_checkpoint(tiny, tmp_path / "link", quant="f16", force=True)
    assert (tmp_path / "link").is_symlink()
    assert read_bundle(tmp_path / "real").manifest.formats.decoder == "f16"


def test_a_file_and_the_working_directory_are_no_targets(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match="is a file"):
        export_checkpoint(tiny, tmp_path / "file", force=True)
    bundle = export_checkpoint(tiny, tmp_path / "b")
    monkeypatch.chdir(bundle.directory)
    with pytest.raises(ExportError, match="working directory"):
        export_checkpoint(tiny, Path(), force=True)


@pytest.mark.parametrize("quant", ["f16", "q8_0", "q4_k_m"])
def test_a_weight_that_the_format_cannot_hold_is_an_error(
    tiny: Path, tmp_path: Path, quant: DecoderFormat
) -> None:
    from safetensors.numpy import load_file, save_file

    shape = Shape(text={"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 3})
    checkpoint = write_random_checkpoint(tmp_path / "c", tiny, shape)
    tensors = load_file(checkpoint / "model.safetensors")
    name = "language_model.model.layers.1.mlp.up_proj.weight"
    tensors[name][3] = 1e9
    save_file(tensors, checkpoint / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"{name}.*too large"):
        export_checkpoint(checkpoint, tmp_path / "b", quant=quant)


def test_a_disk_that_is_too_small_is_noticed_before_any_work(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=3_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ExportError, match=r"the bundle takes 3\.5 MB and the disk of .* has 3\.0 MB free"):
        export_checkpoint(tiny, tmp_path / "b", vision="int8")
    assert list(tmp_path.iterdir()) == []


def test_a_really_full_disk_says_so(tiny: Path, tmp_path: Path) -> None:
    """With a limit on file sizes instead of a small disk: the write itself fails."""
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, 1_500_000));"
        "sys.argv = ['ayaedge', 'export', sys.argv[1], '-o', sys.argv[2]];"
        "from ayaedge.cli.main import main; main()"
    )
    pytest.importorskip("resource")
    result = subprocess.run(
        [sys.executable, "-c", code, str(tiny), str(tmp_path / "b")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "could not be written" in result.stderr
    assert "Traceback" not in result.stderr
    assert "the same export goes on from there" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == [".b.partial"]
    bundle = export_checkpoint(tiny, tmp_path / "b")
    assert contents(bundle.directory) == contents(export_checkpoint(tiny, tmp_path / "c").directory)


@pytest.fixture(scope="module")
def long(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose export takes a while."""
    shape = Shape(text={"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 16})
    return write_random_checkpoint(tmp_path_factory.mktemp("long") / "c", tiny, shape)


@pytest.fixture(scope="module")
def undisturbed(long: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What is in its bundle."""
    return contents(export_checkpoint(long, tmp_path_factory.mktemp("undisturbed") / "b").directory)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_export_says_how_to_go_on(
    long: Path, undisturbed: dict[str, bytes], tmp_path: Path, number: signal.Signals
) -> None:
    status, said = stop_export(long, tmp_path / "b", number)
    assert status == 128 + number
    assert "what is finished lies in" in said
    assert {path.name for path in tmp_path.iterdir()} == {".b.partial"}
    assert contents(export_checkpoint(long, tmp_path / "b").directory) == undisturbed


def stop_export(checkpoint: Path, target: Path, number: signal.Signals) -> tuple[int, str]:
    """Exit code and messages of an export that gets a signal while it writes the decoder."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ayaedge", "export", str(checkpoint), "-o", str(target)],
        stderr=subprocess.PIPE,
        text=True,
        # whoever runs the tests in the background has told them to ignore Ctrl-C
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    journal = staging_place(target) / "journal.jsonl"
    while not (journal.exists() and "blk.1." in journal.read_text()):
        assert process.poll() is None, "the export ended before it could be interrupted"
        time.sleep(0.01)
    process.send_signal(number)
    _, said = process.communicate()
    return process.returncode, said


def test_a_broken_checkpoint_is_refused_before_anything_is_written(tiny: Path, tmp_path: Path) -> None:
    checkpoint = write_random_checkpoint(tmp_path / "c", tiny, Shape())
    (checkpoint / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is missing"):
        export_checkpoint(checkpoint, tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
