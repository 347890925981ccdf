"""Tensors with error feedback: both streams, types and order, and runs that go on after any step."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from ayaedge import InvalidOptionError
from ayaedge.manifest import DECODER
from ayaedge_export.best.passages import Passages, calibration_passages
from ayaedge_export.best.rounding import Rounder
from ayaedge_export.calibration.text import BUILTIN, CalibrationText
from ayaedge_export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from ayaedge_export.decoder.forward import EMBEDDINGS, decoder_forward, final_norm
from ayaedge_export.decoder.gguf_writer import PlannedTensor, plan_tensors
from ayaedge_export.effort import Budget, GptqOptions
from ayaedge_export.exporter import export_checkpoint
from ayaedge_export.plan import plan_export
from ayaedge_export.resume.staged_bundle import staging_place
from ayaedge_export.resume.state_file import StateFile
from ayaedge_quant.hessian import Hessian
from ayaedge_quant.number_formats import GgmlType, decode, encode
from ayaedge_quant.recipes import Recipe
from random_checkpoint import Shape, write_random_checkpoint

FloatArray = NDArray[np.float32]
STREAM_ERROR = 1e-4
"""Relative difference of residual streams: float32 in another order."""
MIXED = Recipe.parse(
    "q4_k_m", ["ffn_gate=q5_k", "attn_k=q8_0", "attn_output=iq4_xs", r"blk\.1\.ffn_up=f16"], "q5_k"
)
LAYERS = 2
WIDE = Shape(text={"hidden_size": 256, "intermediate_size": 1280, "num_hidden_layers": 3}, dtype="bfloat16")
"""More inner columns than the 1024 that go through the MLP at a time, and an uneven rest."""
SHORT = CalibrationText("short", {language: BUILTIN.passages[language][:2] for language in ("en", "ja")})
FEW = 400
"""Positions that SHORT can half fill."""


@pytest.fixture(scope="module")
def wide(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("wide") / "c", tiny, WIDE)


@dataclass
class Rounding:
    """What a `Rounder` gave."""

    plan: list[PlannedTensor]
    order: list[str] = field(default_factory=list)
    weights: dict[str, FloatArray] = field(default_factory=dict)
    """As they are read again, by their names in the checkpoint."""
    blocks: dict[str, NDArray[np.uint8]] = field(default_factory=dict)

    def read(self, name: str) -> FloatArray:
        return self.weights[name]

    def read_rows(self, name: str, start: int, stop: int) -> FloatArray:
        return self.weights[name][start:stop]


def text_of(checkpoint: Checkpoint) -> Passages:
    return calibration_passages(
        checkpoint, SHORT, max_tokens=FEW, sensitivity_tokens=128, probe_tokens=8
    ).rounding


def round_all(
    checkpoint: Checkpoint,
    text: Passages,
    recipe: Recipe,
    options: GptqOptions | None = None,
    *,
    state: StateFile | None = None,
) -> Rounding:
    config = checkpoint.config.text
    head = Hessian(config.hidden_size)
    head.add(decoder_forward(config, checkpoint.tensors, text.rows), text.weights)
    rounder = Rounder(checkpoint, text, head, options, state=state)
    found = Rounding(plan_tensors(config, recipe))
    for tensor, parts in rounder.blocks(found.plan):
        blocks = np.concatenate(list(parts))
        found.order.append(tensor.name)
        found.blocks[tensor.name] = blocks
        found.weights[tensor.source] = decode(blocks, tensor.kind).reshape(tensor.shape)
    return found


def rounded_rows(text: Passages, found: Rounding) -> list[FloatArray]:
    """The text as the rounded table embeds it; images as they are."""
    rows = np.concatenate(text.rows)
    table = found.weights[f"{EMBEDDINGS}.weight"]
    rows = np.where(text.ids[:, None] < 0, rows, table[text.ids])
    return np.split(rows, np.cumsum(text.lengths)[:-1])


def output_error(checkpoint: Checkpoint, text: Passages, found: Rounding) -> float:
    """Weighted mean squared error of what the head gets from the rounded decoder."""
    config = checkpoint.config.text
    exact = decoder_forward(config, checkpoint.tensors, text.rows)
    rounded = decoder_forward(config, found, rounded_rows(text, found))
    return float((text.weights[:, None] * (rounded - exact) ** 2).mean())


@pytest.fixture(scope="module")
def rounded_wide(
    wide: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Passages, Rounding, StateFile]:
    checkpoint = open_checkpoint(wide)
    state = StateFile(tmp_path_factory.mktemp("state") / "rounded.npz", "mark")
    text = text_of(checkpoint)
    return text, round_all(checkpoint, text, MIXED, state=state), state


def test_the_text_has_images_and_words(
    wide: Path, rounded_wide: tuple[Passages, Rounding, StateFile]
) -> None:
    text, _, _ = rounded_wide
    assert (text.ids < 0).any()
    assert len(text.ids) == len(text.weights) == sum(text.lengths) <= 400
    table = open_checkpoint(wide).tensors.read(f"{EMBEDDINGS}.weight")
    spoken = text.ids >= 0
    assert np.array_equal(np.concatenate(text.rows)[spoken], table[text.ids[spoken]])


def test_every_tensor_comes_in_the_plans_order_with_its_type_and_size(
    rounded_wide: tuple[Passages, Rounding, StateFile],
) -> None:
    _, found, _ = rounded_wide
    assert found.order == [tensor.name for tensor in found.plan]
    kinds = {tensor.kind for tensor in found.plan}
    assert {GgmlType.Q5_K, GgmlType.Q8_0, GgmlType.IQ4_XS, GgmlType.F16, GgmlType.Q4_K, GgmlType.F32} <= kinds
    for tensor in found.plan:
        assert found.blocks[tensor.name].nbytes == tensor.nbytes


def test_weights_stay_near_to_what_they_were(
    wide: Path, rounded_wide: tuple[Passages, Rounding, StateFile]
) -> None:
    tensors = open_checkpoint(wide).tensors
    for tensor in rounded_wide[1].plan:
        before = tensors.read(tensor.source)
        error = rounded_wide[1].weights[tensor.source] - before
        # at a few hundred positions much of a weight is free to move
        assert float(np.sqrt((error**2).mean() / (before**2).mean())) < 0.5, tensor.name
        if tensor.kind is GgmlType.F32:
            assert np.array_equal(rounded_wide[1].weights[tensor.source], before)


def test_one_stream_is_the_exact_model_and_the_other_the_rounded_one(
    wide: Path, rounded_wide: tuple[Passages, Rounding, StateFile]
) -> None:
    text, found, state = rounded_wide
    checkpoint = open_checkpoint(wide)
    config = checkpoint.config.text
    values, arrays = state.read() or ({}, {})
    assert values == {"layer": WIDE.text["num_hidden_layers"]}
    count = len(text.ids)
    for stream, weights, rows in (
        (arrays["x"][:count], checkpoint.tensors, text.rows),
        (arrays["x"][count:], found, rounded_rows(text, found)),
    ):
        ended = final_norm(config, checkpoint.tensors, stream)
        expected = decoder_forward(config, weights, rows)
        assert np.abs(ended - expected).max() < STREAM_ERROR * np.abs(expected).max()


def test_aiming_at_the_exact_model_from_rounded_inputs_brings_the_output_nearer(
    tiny: Path,
) -> None:
    checkpoint = open_checkpoint(tiny)
    text, recipe = text_of(checkpoint), Recipe("q4_k_m")
    aimed, plain = (
        output_error(checkpoint, text, round_all(checkpoint, text, recipe, GptqOptions(rounded_inputs=way)))
        for way in (True, False)
    )
    without = Rounding(plan_tensors(checkpoint.config.text, recipe))
    for tensor in without.plan:
        weights = checkpoint.tensors.read(tensor.source)
        blocks = encode(weights.reshape(-1, tensor.shape[-1]), tensor.kind)
        without.weights[tensor.source] = decode(blocks, tensor.kind).reshape(tensor.shape)
    assert aimed < plain < output_error(checkpoint, text, without)


@pytest.fixture(scope="module")
def small(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    text = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": LAYERS}
    vision = {"num_hidden_layers": 1}
    shape = Shape(text=text, vision=vision, dtype="bfloat16")
    return write_random_checkpoint(tmp_path_factory.mktemp("small") / "c", tiny, shape)


class StopError(Exception):
    """An interruption."""


def export(checkpoint: Path, target: Path, moment: str = "", *, resume: bool = True) -> list[str]:
    """Export with error feedback until `moment`; returns what was done. Progress of a whole run covers all bytes."""
    opened, seen, counts = open_checkpoint(checkpoint), [], []

    def advance(count: int, what: str) -> None:
        seen.append(what.partition(", ")[0])  # without the minutes left, which are said on a busy machine
        counts.append(count)
        if seen[-1] == moment:
            raise StopError

    try:
        export_checkpoint(
            opened, target, effort="best", calibrate=SHORT, gptq=GptqOptions(tokens=FEW), vision="fp16",
            resume=resume, advance=advance,
        )  # fmt: skip
    except StopError:
        assert not target.exists()
    else:
        assert sum(counts) == plan_export(opened).work_bytes
    return seen


@pytest.fixture(scope="module")
def undisturbed(small: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, list[str]]:
    """The decoder's file, and all moments of its making."""
    target = tmp_path_factory.mktemp("undisturbed") / "b"
    seen = export(small, target)
    return (target / DECODER).read_bytes(), seen


def steps(seen: list[str]) -> list[str]:
    return [what for what in seen if what.startswith(("sensitivity", "rounded"))]


@pytest.mark.parametrize(
    "moment",
    ["sensitivity 2/3", "sensitivity 3/3", "token_embd.weight", "blk.1.attn_v.weight", "rounded 1/2"],
)
def test_a_run_that_is_stopped_once_ends_as_an_undisturbed_one(
    small: Path, tmp_path: Path, undisturbed: tuple[bytes, list[str]], moment: str
) -> None:
    target = tmp_path / "b"
    before = export(small, target, moment)
    assert before[-1] == moment
    after = export(small, target)
    assert (target / DECODER).read_bytes() == undisturbed[0]
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    # the measurement's result is kept behind its last step, so that this one comes twice
    last = moment == f"sensitivity {LAYERS + 1}/{LAYERS + 1}"
    assert steps(before)[: -1 if last else None] + steps(after) == steps(undisturbed[1])


def test_a_run_that_is_stopped_after_every_step_ends_as_an_undisturbed_one(
    small: Path, tmp_path: Path, undisturbed: tuple[bytes, list[str]]
) -> None:
    target = tmp_path / "b"
    between = ["token_embd.weight", "blk.1.attn_v.weight", "blk.1.ffn_down.weight"]
    for moment in sorted([*steps(undisturbed[1]), *between], key=undisturbed[1].index):
        assert export(small, target, moment)[-1] == moment
    export(small, target)
    assert (target / DECODER).read_bytes() == undisturbed[0]


def test_a_run_that_shall_not_go_on_measures_anew(small: Path, tmp_path: Path) -> None:
    target = tmp_path / "b"
    export(small, target, "sensitivity 2/3")
    assert steps(export(small, target, "sensitivity 1/3", resume=False)) == ["sensitivity 1/3"]
    assert steps(export(small, target, "sensitivity 2/3")) == ["sensitivity 2/3"]


def test_a_budget_that_cannot_be_kept_costs_an_interrupted_run_nothing(small: Path, tmp_path: Path) -> None:
    target = tmp_path / "b"
    export(small, target, "sensitivity 2/3")
    with pytest.raises(InvalidOptionError, match="cannot be made so small"):
        export_checkpoint(small, target, effort="best", budget=Budget(1000))
    assert steps(export(small, target, "sensitivity 3/3")) == ["sensitivity 3/3"]


@pytest.mark.parametrize("file", ["rounded.npz", "survey.npz", "decoder"])
def test_what_was_damaged_in_between_is_computed_again(
    small: Path, tmp_path: Path, undisturbed: tuple[bytes, list[str]], file: str
) -> None:
    target = tmp_path / "b"
    export(small, target, "rounded 1/2")
    staging = staging_place(target)
    path = staging / "bundle" / DECODER if file == "decoder" else staging / file
    data = bytearray(path.read_bytes())
    data[-100 if file == "decoder" else len(data) // 2] ^= 1
    path.write_bytes(data)
    after = export(small, target)
    assert (target / DECODER).read_bytes() == undisturbed[0]
    assert ("sensitivity 1/3" in after) == (file == "survey.npz")
    assert "rounded 1/2" in after  # the state belongs to all that was written
