"""How much work an export puts into the decoder's 4 bits, what that takes, and which types it then chooses."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import gguf
import numpy as np
from numpy.typing import NDArray

from ayaedge.errors import InvalidOptionError
from ayaedge.hardware.machine import usable_threads
from ayaedge_export.best.sensitivity import KINDS, Survey
from ayaedge_export.checkpoint.checkpoint import Checkpoint
from ayaedge_export.checkpoint.config import TextConfig
from ayaedge_export.decoder.gguf_writer import PlannedTensor, plan_tensors
from ayaedge_export.product_threads import bounded_products
from ayaedge_quant.allocation import Choice, allocate, loss_of
from ayaedge_quant.ggml import GgmlType, encode
from ayaedge_quant.hessian import Covariance
from ayaedge_quant.matmul import multiply
from ayaedge_quant.recipes import EMBEDDINGS, DecoderFormat, Recipe

FloatArray = NDArray[np.float32]

Effort = Literal["fast", "calibrated", "best"]
"""Weights as they are; weighed by an importance matrix; error feedback and types chosen for the tensors."""
EFFORTS: tuple[Effort, ...] = get_args(Effort)

MAX_TOKENS = 12288
"""Positions that are calibrated on. More change an importance matrix little: llama.cpp's table in tools/perplexity
shows under 3 % between 1 k and 10 M."""
BEST_FORMATS: tuple[DecoderFormat, ...] = ("q4_k_m", "q5_k_m", "q6_k")
"""Formats whose bytes `best` can spend otherwise."""
SURVEY_TOKENS = 4096
"""Positions that losses are measured on."""
PROBE_TOKENS = 460
"""Positions, of all languages together, that the groups' sensitivities are measured on."""
_ALL_STREAMS = 23
"""Streams of probes: 7 linears in each third of the layers, the head, and the exact one."""
_STREAMS = 16
"""Those that go through a layer, on average: a third's begin with it."""
_BESIDE_PRODUCTS = 0.2
"""Attention, covariances and pictures, as a share of the products' time on a processor: measured at the 8B's width."""


@dataclass(frozen=True)
class Budget:
    """How large the decoder may become: bytes of its file, or bits of all its weights; the format's if neither."""

    nbytes: int | None = None
    bits_per_weight: float | None = None
    choose_types: bool = True
    """Whether tensors may get other types than the format has for them; without it there is no size to aim at."""

    @property
    def has_size(self) -> bool:
        """Whether it is the user's own."""
        return self.nbytes is not None or self.bits_per_weight is not None


@dataclass(frozen=True)
class Allocation:
    """The types that were chosen."""

    kinds: Mapping[str, GgmlType]
    predicted: float
    """KL divergence that the survey's losses add up to, nats."""
    fixed_rule: float
    """The same for the format's own types."""


def effort_faults(
    effort: Effort | None, fmt: DecoderFormat, budget: Budget, *, importance: bool, text: bool
) -> list[str]:
    """What in these options contradicts each other, as sentences."""
    faults = []
    if effort is not None and effort not in EFFORTS:
        faults.append(f"the effort must be one of {', '.join(EFFORTS)}, not {effort!r}")
    if effort == "fast" and (importance or text):
        faults.append("the effort fast does not look at text: leave it out, or say calibrated or best")
    if effort == "best" and importance:
        faults.append("the effort best measures more than an importance matrix has: leave the matrix out")
    if effort == "best" and fmt not in BEST_FORMATS:
        faults.append(f"the effort best is for {', '.join(BEST_FORMATS)}, not {fmt}")
    if budget.nbytes is not None and budget.bits_per_weight is not None:
        faults.append("give a size or bits per weight, not both")
    if budget != Budget() and effort != "best":
        faults.append("only the effort best can aim at a size or at bits per weight")
    wishes = [wish for wish in (budget.nbytes, budget.bits_per_weight) if wish is not None]
    if not all(math.isfinite(wish) and wish > 0 for wish in wishes):
        faults.append("the size and the bits per weight must be positive")
    return faults


def choose_types(
    survey: Survey, text: TextConfig, recipe: Recipe, budget: Budget, *, header_bytes: int
) -> Allocation:
    """The types with the least predicted loss within the budget; a user's own choices stay.

    Without a size the head keeps its type, and the layers get only types that the format has for them, within its
    bytes: as much of each at other places, which takes no longer. `header_bytes` is what the file holds in
    front of its tensors. Raises InvalidOptionError if the budget cannot be kept.
    """
    plan = plan_tensors(text, recipe)
    rule = {tensor.name: _choice(tensor, tensor.kind, survey) for tensor in plan}
    items = {
        tensor.name: [_choice(tensor, kind, survey) for kind in kinds]
        for tensor, kinds in zip(plan, _kinds(plan, recipe, survey, budget), strict=True)
    }
    most = sum(choice.nbytes for choice in rule.values())
    if budget.nbytes is not None:
        most = budget.nbytes - header_bytes
    elif budget.bits_per_weight is not None:
        most = int(budget.bits_per_weight * sum(math.prod(tensor.shape) for tensor in plan) / 8)
    try:
        chosen = allocate(items, most)
    except ValueError:
        least = sum(min(choice.nbytes for choice in choices) for choices in items.values())
        weights = sum(math.prod(tensor.shape) for tensor in plan)
        raise InvalidOptionError(
            f"this decoder cannot be made so small: its least is {(least + header_bytes) / 1e6:,.1f} MB "
            f"({8 * least / weights:.2f} bits per weight)"
        ) from None
    kinds = {name: choice.kind for name, choice in chosen.items() if choice.kind != rule[name].kind}
    return Allocation(kinds, loss_of(chosen.values()), loss_of(rule.values()))


def check_budget(text: TextConfig, recipe: Recipe, budget: Budget, *, header_bytes: int) -> None:
    """Raise InvalidOptionError for a budget that `choose_types` could not keep, before anything is measured."""
    unmeasured = {
        tensor.name: {kind: 0.0 for kind in KINDS if tensor.shape[-1] % kind.block_size == 0}
        for tensor in plan_tensors(text, recipe)
        if tensor.kind is not GgmlType.F32
    }
    choose_types(Survey(unmeasured, {}, Covariance(0)), text, recipe, budget, header_bytes=header_bytes)


def _kinds(
    plan: Sequence[PlannedTensor], recipe: Recipe, survey: Survey, budget: Budget
) -> Iterator[tuple[GgmlType, ...]]:
    """What each tensor may become."""

    def is_free(tensor: PlannedTensor) -> bool:
        # a type that the format falls back to, for rows that are no whole blocks, was not measured
        measured = tensor.kind in survey.losses.get(tensor.name, ())
        stays = recipe.wants(tensor.name) or (tensor.name == EMBEDDINGS and not budget.has_size)
        return budget.choose_types and measured and not stays

    own = {tensor.kind for tensor in plan if is_free(tensor)}
    for tensor in plan:
        if is_free(tensor):
            yield tuple(kind for kind in survey.losses[tensor.name] if budget.has_size or kind in own)
        else:
            yield (tensor.kind,)


def _choice(tensor: PlannedTensor, kind: GgmlType, survey: Survey) -> Choice:
    count = math.prod(tensor.shape)
    nbytes = count // tensor.shape[-1] * kind.row_bytes(tensor.shape[-1])
    padded = nbytes + -nbytes % int(gguf.GGUF_DEFAULT_ALIGNMENT)
    loss = survey.losses.get(tensor.name, {}).get(kind, 0.0)
    return Choice(kind, padded, loss)


def predict_seconds(checkpoint: Checkpoint, effort: Effort, tokens: int = MAX_TOKENS) -> float:
    """What the work on the decoder will take on this machine, from its speed in a moment's trial.

    Nothing for what all efforts do: reading, checking, the vision tower.
    """
    text = checkpoint.config.text
    layer_weights = text.hidden_size * (
        2 * text.head_dim * (text.num_heads + text.num_kv_heads) + 3 * text.intermediate_size
    )
    body, head = text.num_layers * layer_weights, text.vocab_size * text.hidden_size
    operations = 0
    if effort == "calibrated":
        operations = 2 * tokens * body
    elif effort == "best":
        positions = 2 * tokens + SURVEY_TOKENS + _STREAMS * PROBE_TOKENS
        operations = 2 * positions * body + 2 * _ALL_STREAMS * PROBE_TOKENS * head
    # best tries types on samples, rounds each group on one thread, and sweeps
    encodings = {"fast": 1, "calibrated": 1, "best": 4}[effort]
    encoding = encodings * (body + head) / (_encoding_speed() * usable_threads())
    with bounded_products(text.hidden_size):
        products = operations / _matrix_speed(multiply)
        beside = _BESIDE_PRODUCTS * operations / _matrix_speed(np.matmul)
    return products + beside + encoding


def _matrix_speed(product: Callable[[FloatArray, FloatArray], object]) -> float:
    """Floating-point operations a second in products like the decoder's."""
    x, weights = np.ones((2048, 1024), np.float32), np.ones((1024, 1024), np.float32)
    return 2 * x.size * len(weights) / _shortest(lambda: product(x, weights))


def _encoding_speed() -> float:
    """Weights a second on one thread, in the format that most tensors get."""
    weights = np.random.default_rng(0).standard_normal((256, 2048), np.float32)
    return weights.size / _shortest(lambda: encode(weights, GgmlType.Q4_K, np.ones(2048, np.float32)))


def _shortest(work: Callable[[], object]) -> float:
    times = []
    for _ in range(4):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)
