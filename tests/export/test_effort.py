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
from ayaedge_export.best.sensitivity import KINDS, Sensitivity
from ayaedge_export.decoder.gguf_writer import write_decoder
from ayaedge_export.effort import EFFORTS, Budget, Effort, GptqOptions, effort_faults
from ayaedge_export.plan import ExportPlan, plan_export
from ayaedge_quant.hessian import Hessian
from ayaedge_quant.number_formats import GgmlType
from ayaedge_quant.recipes import EMBEDDINGS, DecoderFormat, Recipe

FORMAT = Budget()


@pytest.mark.parametrize(
    ("effort", "fmt", "budget", "given", "says"),
    [
        (None, "q4_k_m", FORMAT, ("importance", "text"), "importance and calibrate exclude each other"),
        ("calibrated", "q4_k_m", FORMAT, ("gptq",), "only the effort best has columns"),
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
    (fault,) = effort_faults(
        effort, fmt, budget, GptqOptions() if "gptq" in given else None,
        importance="importance" in given, text="text" in given,
    )  # fmt: skip
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
def plan(tiny: Path) -> ExportPlan:
    return plan_export(tiny)


def invented(plan: ExportPlan) -> Sensitivity:
    """Losses that fall with the size, of tensors that matter very differently."""
    rng = np.random.default_rng(0)
    losses = {}
    for tensor in plan.tensors:
        if tensor.kind is not GgmlType.F32:
            scale = math.exp(2 * rng.standard_normal())
            losses[tensor.name] = {kind: scale * 4.0**-place for place, kind in enumerate(KINDS)}
    return Sensitivity(losses, {}, Hessian(plan.checkpoint.config.text.hidden_size))


def choose(plan: ExportPlan, budget: Budget) -> Allocation:
    return choose_types(invented(plan), plan, budget)


def sizes(plan: ExportPlan, found: Allocation) -> tuple[int, float]:
    """Bytes of the file, and bits of a weight."""
    tensors = plan.with_types(found.kinds).tensors
    padded = sum(tensor.nbytes + -tensor.nbytes % gguf.GGUF_DEFAULT_ALIGNMENT for tensor in tensors)
    weights = sum(math.prod(tensor.shape) for tensor in tensors)
    return plan.header_bytes + padded, 8 * padded / weights


@pytest.mark.parametrize("bits", [4.35, 4.5, 5.0, 6.0, 7.7, 9.0, 100.0])
def test_bits_are_never_exceeded_and_more_of_them_lose_less(plan: ExportPlan, bits: float) -> None:
    found = choose(plan, Budget(bits_per_weight=bits))
    assert sizes(plan, found)[1] <= bits
    assert found.predicted < choose(plan, Budget(bits_per_weight=bits - 0.05)).predicted or bits > 8.6


def test_bytes_are_never_exceeded_down_to_the_least(plan: ExportPlan) -> None:
    everything = Allocation(dict.fromkeys(invented(plan).losses, GgmlType.IQ4_XS), 0.0, 0.0)
    least, bits = sizes(plan, everything)
    for nbytes in (least, least + 1, least + 10_000, int(1.3 * least), 3 * least):
        assert sizes(plan, choose(plan, Budget(nbytes)))[0] <= nbytes
    assert set(choose(plan, Budget(least)).kinds.values()) == {GgmlType.IQ4_XS}
    with pytest.raises(InvalidOptionError) as caught:
        choose(plan, Budget(least - 1))
    assert f"its least is {least / 1e6:.1f} MB" in str(caught.value)
    assert f"({bits:.2f} bits per weight)" in str(caught.value)


@pytest.mark.parametrize("fmt", ["q4_k_m", "q5_k_m", "q6_k"])
def test_without_a_budget_nothing_is_larger_or_slower_and_less_is_lost(
    tiny: Path, fmt: DecoderFormat
) -> None:
    plan = plan_export(tiny, quant=fmt)
    found = choose(plan, FORMAT)
    unchanged = Allocation({}, 0.0, 0.0)
    assert sizes(plan, found)[0] <= sizes(plan, unchanged)[0]
    own = {tensor.kind for tensor in plan.tensors if tensor.name != EMBEDDINGS}
    assert set(found.kinds.values()) <= own
    assert EMBEDDINGS not in found.kinds
    # one type for all layers leaves nothing to choose
    assert found.predicted < found.fixed_rule or (fmt == "q6_k" and not found.kinds)


def test_what_a_user_wants_is_no_choice(tiny: Path) -> None:
    plan = plan_export(tiny, quant=Recipe.parse("q4_k_m", ["attn=q6_k", r"blk\.0\.ffn_down=f16"], "q8_0"))
    for budget in (FORMAT, Budget(bits_per_weight=20), Budget(bits_per_weight=7)):
        found = choose(plan, budget)
        assert all(".ffn_" in name for name in found.kinds)
        assert "blk.0.ffn_down.weight" not in found.kinds
        assert found.kinds
        if budget.bits_per_weight:
            assert sizes(plan, found)[1] <= budget.bits_per_weight


def test_types_that_were_not_measured_stay(plan: ExportPlan) -> None:
    measured = {name: {GgmlType.Q8_0: 1.0} for name in invented(plan).losses}  # rows of no whole blocks
    assert choose_types(Sensitivity(measured, {}, Hessian(256)), plan, FORMAT).kinds == {}


def test_without_a_choice_of_types_the_formats_own_stay(plan: ExportPlan) -> None:
    found = choose(plan, Budget(choose_types=False))
    assert found.kinds == {}
    assert found.predicted == pytest.approx(found.fixed_rule)


def test_the_header_is_as_long_whatever_the_types(plan: ExportPlan, tmp_path: Path) -> None:
    chosen = plan.with_types(choose(plan, Budget(bits_per_weight=5.2)).kinds)
    assert chosen.recipe.chosen
    assert chosen.header_bytes == plan.header_bytes
    write_decoder(chosen, tmp_path / "d.gguf")
    assert gguf.GGUFReader(tmp_path / "d.gguf").data_offset == plan.header_bytes
    assert [path.name for path in tmp_path.iterdir()] == ["d.gguf"]


def test_more_effort_is_expected_to_take_longer(plan: ExportPlan) -> None:
    times = [predict_seconds(plan.checkpoint, effort) for effort in EFFORTS]
    assert 0 < times[0] < times[1] < times[2] < 600
    assert predict_seconds(plan.checkpoint, "best", tokens=10**7) > 10 * times[2]
