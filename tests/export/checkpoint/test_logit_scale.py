"""The scale of the logits: which one a bundle gets, who is told, and that both sides of a comparison have it."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from typer.testing import CliRunner

from ayaedge import Bundle, BundleError, ExportError, InvalidOptionError, read_bundle
from ayaedge.bundle import check_hashes
from ayaedge.cli.main import app
from ayaedge_export.calibration.imatrix import collect
from ayaedge_export.calibration.text import BUILTIN, CalibrationText
from ayaedge_export.checkpoint.checkpoint import open_checkpoint
from ayaedge_export.checkpoint.logit_scale import rescaled, scale_doubt
from ayaedge_export.decoder import gguf_writer as decoder_gguf
from ayaedge_export.effort import Effort, GptqOptions
from ayaedge_export.evaluation.evaluate import THROUGH, Through, evaluate_bundle
from ayaedge_export.evaluation.sample_text import SENTENCES
from ayaedge_export.evaluation.verify import DECODER_KL, verify_bundle
from ayaedge_export.exporter import export_checkpoint
from ayaedge_export.resume.staged_bundle import replace_manifest, staging_place
from random_checkpoint import Shape, write_random_checkpoint

SCALE = 0.125
"""Of random checkpoints."""
OTHER = 0.5
SHORT = CalibrationText("short", {language: BUILTIN.passages[language][:2] for language in ("en", "ja")})


@pytest.fixture(scope="module")
def checkpoint(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As a fine-tuner leaves it: written by a transformers that leaves the scale out, with another scale than 1."""
    shape = Shape(
        text={"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 2},
        vision={"num_hidden_layers": 1},
    )
    return write_random_checkpoint(tmp_path_factory.mktemp("scale") / "c", tiny, shape)


@pytest.fixture(scope="module")
def rescaled_bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    target = tmp_path_factory.mktemp("rescaled") / "b"
    return export_checkpoint(checkpoint, target, quant="f32", vision="fp32", logit_scale=OTHER)


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    """Grows by what the log warns of."""
    logger, found = logging.getLogger("ayaedge"), []

    class Keeper(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    keeper = Keeper(logging.WARNING)
    logger.addHandler(keeper)
    yield found
    logger.removeHandler(keeper)


def file_scale(bundle: Bundle) -> float:
    field = gguf.GGUFReader(bundle.decoder_path).fields["cohere2.logit_scale"]
    return float(field.parts[field.data[0]][0])


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def with_scale(checkpoint: Path, target: Path, scale: float) -> Path:
    """A copy whose config.json has another scale."""
    shutil.copytree(checkpoint, target)
    config = json.loads((target / "config.json").read_text("utf-8"))
    config["text_config"]["logit_scale"] = scale
    (target / "config.json").write_text(json.dumps(config))
    return target


def test_an_export_has_the_checkpoints_scale_unless_another_is_asked_for(
    checkpoint: Path, rescaled_bundle: Bundle, tmp_path: Path
) -> None:
    plain = export_checkpoint(checkpoint, tmp_path / "plain", vision="fp32")
    assert plain.manifest.decoder.logit_scale == file_scale(plain) == SCALE
    assert rescaled_bundle.manifest.decoder.logit_scale == file_scale(rescaled_bundle) == OTHER
    assert check_hashes(rescaled_bundle) == []


@pytest.mark.parametrize("effort", ["fast", "best"])
def test_an_asked_for_scale_gives_the_bytes_of_a_checkpoint_that_has_it(
    effort: Effort, checkpoint: Path, tmp_path: Path
) -> None:
    """With `best` the types are chosen, and predicted, at that scale."""
    options: dict[str, Any] = {"effort": effort, "vision": "fp32"}
    if effort == "best":
        options |= {"calibrate": SHORT, "gptq": GptqOptions(tokens=400)}
    having = with_scale(checkpoint, tmp_path / checkpoint.name, OTHER)
    expected = export_checkpoint(having, tmp_path / "expected", **options)
    asked = export_checkpoint(checkpoint, tmp_path / "asked", logit_scale=OTHER, **options)
    assert contents(asked.directory) == contents(expected.directory)


@pytest.mark.parametrize("scale", [0, -1.0, float("nan"), float("inf"), True, "1", 1e-60, 1e60, 10**400])
def test_a_senseless_scale_is_refused_before_any_work(scale: Any, tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidOptionError, match="logit_scale must be a finite number above 0"):
        export_checkpoint(tiny, tmp_path / "b", logit_scale=scale)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("version", "uncertain"),
    [
        (None, False), ("", False), (5, False), ("new", False), ("4.50.0.dev0", False), ("4.51.3", False),
        ("3.99.0", False), ("4.52.0.dev0", True), ("4.57.6", True), ("4.100.0", True), ("5.0.0rc1", True),
        ("10.1", True),
    ],
)  # fmt: skip
def test_a_scale_is_uncertain_where_transformers_leaves_it_out(
    version: object, uncertain: bool, checkpoint: Path, tmp_path: Path
) -> None:
    copy = with_scale(checkpoint, tmp_path / "c", SCALE)
    config = json.loads((copy / "config.json").read_text("utf-8"))
    (copy / "config.json").write_text(json.dumps({**config, "transformers_version": version}))
    assert (scale_doubt(open_checkpoint(copy).config) is not None) is uncertain


def test_the_released_checkpoints_leave_no_doubt_and_keep_their_scale(
    shrunk_release_bundle: Bundle, shrunk_release: Path
) -> None:
    config = open_checkpoint(shrunk_release).config
    assert scale_doubt(config) is None
    expected = {"aya-vision-8b": 0.25, "aya-vision-32b": 0.0625}[shrunk_release.name]
    assert shrunk_release_bundle.manifest.decoder.logit_scale == expected


def test_a_fine_tune_is_exported_with_one_warning_that_names_both_scales(
    checkpoint: Path, tmp_path: Path, warnings: list[str]
) -> None:
    export_checkpoint(checkpoint, tmp_path / "b", vision="fp32")
    (warning,) = warnings
    for part in ("transformers 4.", "logit_scale (0.125 here)", "8 times too flat", "logit_scale=1.",
                 "logit_scale=0.125", "Greedy answers are the same"):  # fmt: skip
        assert part in warning


def test_whoever_says_the_scale_is_not_warned(checkpoint: Path, tmp_path: Path, warnings: list[str]) -> None:
    for scale in (1.0, SCALE):
        export_checkpoint(checkpoint, tmp_path / str(scale), vision="fp32", logit_scale=scale)
    export_checkpoint(with_scale(checkpoint, tmp_path / "c", 1), tmp_path / "b", vision="fp32")
    assert warnings == []


def test_an_interrupted_export_does_not_go_on_with_another_scale(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, finish = tmp_path / "b", decoder_gguf.PieceWriter.finish

    def full(self: decoder_gguf.PieceWriter, name: str) -> None:
        if name == "blk.1.attn_k.weight":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finish(self, name)

    monkeypatch.setattr(decoder_gguf.PieceWriter, "finish", full)
    with pytest.raises(ExportError, match="the disk is full"):
        export_checkpoint(checkpoint, target, vision="fp32")
    monkeypatch.undo()
    assert staging_place(target).exists()
    bundle = export_checkpoint(checkpoint, target, vision="fp32", logit_scale=OTHER)
    assert bundle.manifest.decoder.logit_scale == file_scale(bundle) == OTHER


def stating(bundle: Bundle, target: Path, scale: float | None) -> Bundle:
    """A copy whose manifest says another scale than its file has."""
    copy = read_bundle(shutil.copytree(bundle.directory, target))
    decoder = replace(copy.manifest.decoder, logit_scale=scale)
    replace_manifest(copy.directory, replace(copy.manifest, decoder=decoder))
    return read_bundle(copy.directory)


@pytest.fixture
def runner() -> Iterator[CliRunner]:
    """Runs commands in this process, whose log is as before when the test ends."""
    logger = logging.getLogger("ayaedge")
    handlers, level = list(logger.handlers), logger.level
    yield CliRunner()
    logger.handlers[:] = handlers
    logger.setLevel(level)


def test_a_bundle_is_verified_at_its_own_scale_and_that_is_said(
    checkpoint: Path, rescaled_bundle: Bundle, runner: CliRunner
) -> None:
    arguments = ["verify", str(rescaled_bundle.directory), "--against", str(checkpoint)]
    result = runner.invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert (
        "the bundle was exported with logit scale 0.5 and config.json has 0.125; they are compared at 0.5\n"
    ) in result.stderr


def test_a_bundle_that_does_not_say_its_scale_must_have_the_checkpoints(
    checkpoint: Path, rescaled_bundle: Bundle, tmp_path: Path
) -> None:
    report = verify_bundle(stating(rescaled_bundle, tmp_path / "copy", None), checkpoint)
    missed = [check for check in report.checks if not check.passed]
    assert {check.name for check in missed} == {
        f"decoder, {what}: mean KL divergence (nats)" for what in ("text", "image", "two images")
    }
    assert all(check.value > 100 * DECODER_KL["f32"] for check in missed)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    path.write_text(json.dumps({"language": "en", "text": SENTENCES["en"]}), "utf-8")
    return path


@pytest.mark.parametrize("through", THROUGH)
def test_a_bundle_is_evaluated_at_its_own_scale(
    through: Through, checkpoint: Path, rescaled_bundle: Bundle, text: Path
) -> None:
    result = evaluate_bundle(rescaled_bundle, checkpoint, text=text, through=through)
    assert result.after_image
    assert max(result.overall.mean_kl, result.after_image.mean_kl) <= 1e-4


def test_a_manifest_that_says_another_scale_than_the_file_is_caught(
    checkpoint: Path, rescaled_bundle: Bundle, text: Path, tmp_path: Path
) -> None:
    copy = stating(rescaled_bundle, tmp_path / "copy", SCALE)
    with pytest.raises(BundleError, match=r"does not belong to this bundle: its logit scale is 0\.5"):
        evaluate_bundle(copy, checkpoint, text=text, images=False)


def test_bundles_of_different_scales_are_not_compared(
    checkpoint: Path, rescaled_bundle: Bundle, text: Path, tmp_path: Path
) -> None:
    plain = export_checkpoint(checkpoint, tmp_path / "b", quant="f32", vision="fp32")
    with pytest.raises(BundleError, match="their logit scales differ"):
        evaluate_bundle(plain, rescaled_bundle, text=text)


def test_an_evaluation_does_not_go_on_after_the_checkpoints_scale_was_changed(
    checkpoint: Path, rescaled_bundle: Bundle, text: Path, tmp_path: Path
) -> None:
    copy, journal = stating(rescaled_bundle, tmp_path / "copy", None), tmp_path / "windows.jsonl"
    opened = open_checkpoint(checkpoint)
    evaluate_bundle(copy, opened, text=text, images=False, journal=journal)
    with pytest.raises(InvalidOptionError, match="another evaluation"):
        evaluate_bundle(copy, rescaled(opened, OTHER), text=text, images=False, journal=journal)


def test_importance_does_not_depend_on_the_scale(checkpoint: Path) -> None:
    opened = open_checkpoint(checkpoint)
    ours, other = (collect(c, SHORT, max_tokens=400).entries for c in (opened, rescaled(opened, OTHER)))
    assert ours.keys() == other.keys()
    assert all(np.array_equal(ours[name].sums, other[name].sums) for name in ours)


def test_the_command_line_takes_a_scale_and_shows_it(
    checkpoint: Path, tmp_path: Path, runner: CliRunner
) -> None:
    target = str(tmp_path / "b")
    arguments = ["export", str(checkpoint), "-o", target, "--vision", "fp32", "--logit-scale"]
    assert runner.invoke(app, [*arguments, "0.75"]).exit_code == 0
    shown = runner.invoke(app, ["info", target])
    assert "logit scale   0.75\n" in shown.stdout
    manifest = json.loads(runner.invoke(app, ["info", target, "--json"]).stdout)
    assert manifest["decoder"]["logit_scale"] == 0.75
    refused = runner.invoke(app, [*arguments, "0", "--force"])
    assert isinstance(refused.exception, InvalidOptionError)
    assert "logit_scale must be a finite number above 0, not 0.0" in str(refused.exception)


def test_a_bundle_of_an_earlier_version_says_no_scale(rescaled_bundle: Bundle, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(rescaled_bundle.directory, tmp_path / "copy"))
    manifest = json.loads((copy / "manifest.json").read_text("utf-8"))
    del manifest["decoder"]["logit_scale"]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert read_bundle(copy).manifest.decoder.logit_scale is None
    assert "logit scale" not in CliRunner().invoke(app, ["info", str(copy)]).stdout
