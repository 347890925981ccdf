"""Options that contradict each other, types within a budget, and what an effort is expected to take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import gguf
import numpy as np
import pytest

from ayaedge import InvalidOptionError
from ayaedge.cli import export as cli_export
from ayaedge_export.best.allocation import Allocation, choose_types
from ayaedge_export.best.prediction import predict_seconds
from ayaedge_export.best.sensitivity import KINDS, Survey
from ayaedge_export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from ayaedge_export.checkpoint.config import TextConfig
from ayaedge_export.decoder.gguf_writer import header_bytes, plan_tensors, write_decoder
from ayaedge_export.effort import EFFORTS, Budget, Effort, effort_faults
from ayaedge_quant.ggml import GgmlType
from ayaedge_quant.hessian import Covariance
from ayaedge_quant.recipes import EMBEDDINGS, DecoderFormat, Recipe

HEADER = 1000
FORMAT = Budget()


@pytest.mark.parametrize(
    ("effort", "fmt", "budget", "given", "says"),
    [
        ("slow", "q4_k_m", FORMAT, (), "one of fast, calibrated, best, not 'slow'"),
        ("fast", "q4_k_m", FORMAT, ("text",), "the effort fast does not look at text"),
        ("fast", "q4_k_m", FORMAT, ("importance",), "the effort fast does not look at text"),
        ("best", "q4_k_m", FORMAT, ("importance",), "leave the matrix out"),
        ("best", "q8_0", FORMAT, (), "best is for q4_k_m, q5_k_m, q6_k, not q8_0"),
        ("best", "f16", FORMAT, (), "not f16"),
        ("best", "q4_k_m", Budget(10**9, 4.5), (), "not both"),
        ("calibrated", "q4_k_m", Budget(10**9), (), "only the effort best can aim"),
        (None, "q4_k_m", Budget(bits_per_weight=4.5), (), "only the effort best can aim"),
        ("best", "q4_k_m", Budget(0), (), "must be positive"),
        ("best", "q4_k_m", Budget(bits_per_weight=-1.0), (), "must be positive"),
        ("best", "q4_k_m", Budget(bits_per_weight=math.nan), (), "must be positive"),
        ("best", "q4_k_m", Budget(bits_per_weight=math.inf), (), "must be positive"),
    ],
)
def test_each_contradiction_is_named_alone(
    effort: Effort | None, fmt: DecoderFormat, budget: Budget, given: Sequence[str], says: str
) -> None:
    (fault,) = effort_faults(effort, fmt, budget, importance="importance" in given, text="text" in given)
    assert says in fault


def test_all_contradictions_are_named_at_once() -> None:
    assert len(effort_faults("best", "q8_0", Budget(-1, 4.5), importance=True, text=False)) == 4


@pytest.mark.parametrize(
    ("effort", "fmt", "budget", "importance", "text"),
    [
        (None, "f32", FORMAT, False, False),
        (None, "q4_k_m", FORMAT, True, False),
        ("fast", "q8_0", FORMAT, False, False),
        ("calibrated", "q8_0", FORMAT, True, False),
        ("calibrated", "q4_k_m", FORMAT, False, True),
        ("best", "q6_k", Budget(10**9), False, True),
        ("best", "q4_k_m", Budget(bits_per_weight=4.5), False, False),
    ],
)
def test_what_goes_together_has_no_faults(
    effort: Effort | None, fmt: DecoderFormat, budget: Budget, importance: bool, text: bool
) -> None:
    assert effort_faults(effort, fmt, budget, importance=importance, text=text) == []


def test_the_command_line_offers_every_effort() -> None:
    assert get_args(cli_export.Effort) == EFFORTS


@pytest.fixture(scope="module")
def checkpoint(tiny: Path) -> Checkpoint:
    return open_checkpoint(tiny)


def invented(text: TextConfig) -> Survey:
    """Losses that fall with the size, of tensors that matter very differently."""
    rng = np.random.default_rng(0)
    losses = {}
    for tensor in plan_tensors(text, "q4_k_m"):
        if tensor.kind is not GgmlType.F32:
            scale = math.exp(2 * rng.standard_normal())
            losses[tensor.name] = {kind: scale * 4.0**-place for place, kind in enumerate(KINDS)}
    return Survey(losses, {}, Covariance(text.hidden_size))


def choose(checkpoint: Checkpoint, budget: Budget, recipe: Recipe | None = None) -> Allocation:
    text = checkpoint.config.text
    return choose_types(invented(text), text, recipe or Recipe(), budget, header_bytes=HEADER)


def sizes(checkpoint: Checkpoint, found: Allocation, recipe: Recipe | None = None) -> tuple[int, float]:
    """Bytes of the file, and bits of a weight."""
    asked = recipe or Recipe()
    chosen = Recipe(asked.format, asked.overrides, asked.output_type, found.kinds)
    plan = plan_tensors(checkpoint.config.text, chosen)
    padded = sum(tensor.nbytes + -tensor.nbytes % gguf.GGUF_DEFAULT_ALIGNMENT for tensor in plan)
    weights = sum(math.prod(tensor.shape) for tensor in plan)
    return HEADER + padded, 8 * padded / weights


@pytest.mark.parametrize("bits", [4.35, 4.5, 5.0, 6.0, 7.7, 9.0, 100.0])
def test_bits_are_never_exceeded_and_more_of_them_lose_less(checkpoint: Checkpoint, bits: float) -> None:
    found = choose(checkpoint, Budget(bits_per_weight=bits))
    assert sizes(checkpoint, found)[1] <= bits
    assert found.predicted < choose(checkpoint, Budget(bits_per_weight=bits - 0.05)).predicted or bits > 8.6


def test_bytes_are_never_exceeded_down_to_the_least(checkpoint: Checkpoint) -> None:
    everything = Allocation(dict.fromkeys(invented(checkpoint.config.text).losses, GgmlType.IQ4_XS), 0.0, 0.0)
    least, bits = sizes(checkpoint, everything)
    for nbytes in (least, least + 1, least + 10_000, int(1.3 * least), 3 * least):
        assert sizes(checkpoint, choose(checkpoint, Budget(nbytes)))[0] <= nbytes
    assert set(choose(checkpoint, Budget(least)).kinds.values()) == {GgmlType.IQ4_XS}
    with pytest.raises(InvalidOptionError) as caught:
        choose(checkpoint, Budget(least - 1))
    assert f"its least is {least / 1e6:.1f} MB" in str(caught.value)
    assert f"({bits:.2f} bits per weight)" in str(caught.value)


@pytest.mark.parametrize("fmt", ["q4_k_m", "q5_k_m", "q6_k"])
def test_without_a_budget_nothing_is_larger_or_slower_and_less_is_lost(
    checkpoint: Checkpoint, fmt: DecoderFormat
) -> None:
    recipe = Recipe(fmt)
    found = choose(checkpoint, FORMAT, recipe)
    unchanged = Allocation({}, 0.0, 0.0)
    assert sizes(checkpoint, found, recipe)[0] <= sizes(checkpoint, unchanged, recipe)[0]
    plan = plan_tensors(checkpoint.config.text, recipe)
    own = {tensor.kind for tensor in plan if tensor.name != EMBEDDINGS}
    assert set(found.kinds.values()) <= own
    assert EMBEDDINGS not in found.kinds
    # one type for all layers leaves nothing to choose
    assert found.predicted < found.fixed_rule or (fmt == "q6_k" and not found.kinds)


def test_what_a_user_wants_is_no_choice(checkpoint: Checkpoint) -> None:
    recipe = Recipe.parse("q4_k_m", ["attn=q6_k", r"blk\.0\.ffn_down=f16"], "q8_0")
    for budget in (FORMAT, Budget(bits_per_weight=20), Budget(bits_per_weight=7)):
        found = choose(checkpoint, budget, recipe)
        assert all(".ffn_" in name for name in found.kinds)
        assert "blk.0.ffn_down.weight" not in found.kinds
        assert found.kinds
        if budget.bits_per_weight:
            assert sizes(checkpoint, found, recipe)[1] <= budget.bits_per_weight


def test_types_that_were_not_measured_stay(checkpoint: Checkpoint) -> None:
    text = checkpoint.config.text
    measured = {name: {GgmlType.Q8_0: 1.0} for name in invented(text).losses}  # rows of no whole blocks
    survey = Survey(measured, {}, Covariance(text.hidden_size))
    assert choose_types(survey, text, Recipe(), FORMAT, header_bytes=0).kinds == {}


def test_without_a_choice_of_types_the_formats_own_stay(checkpoint: Checkpoint) -> None:
    found = choose(checkpoint, Budget(choose_types=False))
    assert found.kinds == {}
    assert found.predicted == pytest.approx(found.fixed_rule)


def test_the_header_is_as_long_whatever_the_types(checkpoint: Checkpoint, tmp_path: Path) -> None:
    expected = header_bytes(checkpoint, tmp_path, Recipe())
    kinds = choose(checkpoint, Budget(bits_per_weight=5.2)).kinds
    assert expected == header_bytes(checkpoint, tmp_path, Recipe(chosen=kinds))
    write_decoder(checkpoint, tmp_path / "d.gguf", Recipe(chosen=kinds))
    assert gguf.GGUFReader(tmp_path / "d.gguf").data_offset == expected
    assert [path.name for path in tmp_path.iterdir()] == ["d.gguf"]


def test_more_effort_is_expected_to_take_longer(checkpoint: Checkpoint) -> None:
    times = [predict_seconds(checkpoint, effort) for effort in EFFORTS]
    assert 0 < times[0] < times[1] < times[2] < 600
    assert predict_seconds(checkpoint, "best", tokens=10**7) > 10 * times[2]
