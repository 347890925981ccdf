"""Which type each tensor gets, within a size."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import gguf

from ayaedge.errors import InvalidOptionError
from ayaedge_export.best.sensitivity import KINDS, Sensitivity
from ayaedge_export.decoder.gguf_writer import PlannedTensor
from ayaedge_export.effort import Budget
from ayaedge_export.plan import ExportPlan
from ayaedge_quant.allocation import Choice, allocate, loss_of
from ayaedge_quant.hessian import Hessian
from ayaedge_quant.number_formats import GgmlType
from ayaedge_quant.recipes import EMBEDDINGS, Recipe


@dataclass(frozen=True)
class Allocation:
    """The types that were chosen."""

    kinds: Mapping[str, GgmlType]
    predicted: float
    """KL divergence that the measured losses add up to, nats."""
    fixed_rule: float
    """The same for the format's own types."""


def choose_types(sensitivity: Sensitivity, plan: ExportPlan, budget: Budget) -> Allocation:
    """The types with the least predicted loss within the budget; a user's own choices stay.

    Without a size the head keeps its type, and the layers get only types that the format has for them, within its
    bytes: as much of each at other places, which takes no longer. Raises InvalidOptionError if the budget cannot be
    kept.
    """
    rule = {tensor.name: _choice(tensor, tensor.kind, sensitivity) for tensor in plan.tensors}
    items = {
        tensor.name: [_choice(tensor, kind, sensitivity) for kind in kinds]
        for tensor, kinds in zip(
            plan.tensors, _kinds(plan.tensors, plan.recipe, sensitivity, budget), strict=True
        )
    }
    weights = sum(math.prod(tensor.shape) for tensor in plan.tensors)
    most = sum(choice.nbytes for choice in rule.values())
    if budget.nbytes is not None:
        most = budget.nbytes - plan.header_bytes
    elif budget.bits_per_weight is not None:
        most = int(budget.bits_per_weight * weights / 8)
    try:
        chosen = allocate(items, most)
    except ValueError:
        least = sum(min(choice.nbytes for choice in choices) for choices in items.values())
        raise InvalidOptionError(
            f"this decoder cannot be made so small: its least is {(least + plan.header_bytes) / 1e6:,.1f} MB "
            f"({8 * least / weights:.2f} bits per weight)"
        ) from None
    kinds = {name: choice.kind for name, choice in chosen.items() if choice.kind != rule[name].kind}
    return Allocation(kinds, loss_of(chosen.values()), loss_of(rule.values()))


def check_budget(plan: ExportPlan, budget: Budget) -> None:
    """Raise InvalidOptionError for a budget that `choose_types` could not keep, before anything is measured."""
    unmeasured = {
        tensor.name: {kind: 0.0 for kind in KINDS if tensor.shape[-1] % kind.block_size == 0}
        for tensor in plan.tensors
        if tensor.kind is not GgmlType.F32
    }
    choose_types(Sensitivity(unmeasured, {}, Hessian(0)), plan, budget)


def _kinds(
    plan: Sequence[PlannedTensor], recipe: Recipe, sensitivity: Sensitivity, budget: Budget
) -> Iterator[tuple[GgmlType, ...]]:
    """What each tensor may become."""

    def is_free(tensor: PlannedTensor) -> bool:
        # a type that the format falls back to, for rows that are no whole blocks, was not measured
        measured = tensor.kind in sensitivity.losses.get(tensor.name, ())
        stays = recipe.wants(tensor.name) or (tensor.name == EMBEDDINGS and not budget.has_size)
        return budget.choose_types and measured and not stays

    own = {tensor.kind for tensor in plan if is_free(tensor)}
    for tensor in plan:
        if is_free(tensor):
            yield tuple(kind for kind in sensitivity.losses[tensor.name] if budget.has_size or kind in own)
        else:
            yield (tensor.kind,)


def _choice(tensor: PlannedTensor, kind: GgmlType, sensitivity: Sensitivity) -> Choice:
    count = math.prod(tensor.shape)
    nbytes = count // tensor.shape[-1] * kind.row_bytes(tensor.shape[-1])
    padded = nbytes + -nbytes % int(gguf.GGUF_DEFAULT_ALIGNMENT)
    loss = sensitivity.losses.get(tensor.name, {}).get(kind, 0.0)
    return Choice(kind, padded, loss)
