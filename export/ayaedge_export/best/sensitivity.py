"""The sensitivity of each tensor to each type: one pass over the checkpoint, before any type is chosen.

A tensor's loss is the error of its matmul, weighted by the Hessian, E[x x^T] of its input. What such a loss does to the
answers is measured for each group (one kind of linear in one third of the layers): short texts go through the layers
once as they are and once for each group with that group rounded, and the KL divergence of their predictions is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ayaedge_export.best.passages import Passages
from ayaedge_export.checkpoint.checkpoint import Checkpoint
from ayaedge_export.checkpoint.config import TextConfig
from ayaedge_export.checkpoint.tensors import TensorSource, slabs
from ayaedge_export.decoder.forward import EMBEDDINGS, StoredLinears, add_layer, final_norm
from ayaedge_export.decoder.gguf_writer import gguf_name
from ayaedge_export.resume.state_file import StateFile
from ayaedge_quant.gptq import GptqEncoder
from ayaedge_quant.hessian import Hessian
from ayaedge_quant.kl_divergence import RunningKlDivergence
from ayaedge_quant.matmul import multiply
from ayaedge_quant.number_formats import GgmlType, decode, encode

FloatArray = NDArray[np.float32]
OnStep = Callable[[int, int], None]

KINDS = (GgmlType.IQ4_XS, GgmlType.Q4_K, GgmlType.Q5_K, GgmlType.Q6_K, GgmlType.Q8_0)
"""What an allocation chooses from."""
PROBE = GgmlType.Q4_K
"""The type that a group is rounded to when its effect is measured."""
HEAD = "head"
THIRDS = ("first", "middle", "last")
_LINEARS = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip
_SAMPLED_ROWS = 256
"""Rows of a tensor that its losses are measured on."""


@dataclass(frozen=True)
class Sensitivity:
    """What was measured."""

    losses: Mapping[str, Mapping[GgmlType, float]]
    """Of each linear by its GGUF name, in nats of KL divergence: its loss times its group's sensitivity."""
    sensitivities: Mapping[str, float]
    """Nats of KL divergence for each unit of loss, by group."""
    head: Hessian
    """Of the final hidden states."""


def measure_sensitivity(
    checkpoint: Checkpoint,
    text: Passages,
    probes: Passages,
    *,
    threads: int = 1,
    state: StateFile | None = None,
    on_step: OnStep | None = None,
) -> Sensitivity:
    """Measure all linears on `text`, and the sensitivity of each group on `probes`.

    The checkpoint is read once. After each layer everything is kept in `state`, from which an interrupted measurement
    goes on. Peak memory is about 4 arrays of (positions, hidden), where the probes count once, and once more for each
    kind of linear and third of the layers that has begun.
    """
    config = checkpoint.config.text
    run = _Measurement(config, checkpoint.tensors, text, probes, threads)
    if state and (found := state.read()):
        run.restore(*found)
    while run.layer < config.num_layers:
        run.add_layer()
        if state:
            state.write(*run.state())
        if on_step:
            on_step(run.layer, config.num_layers + 1)
    result = run.finish()
    if on_step:
        on_step(config.num_layers + 1, config.num_layers + 1)
    return result


def group_of(name: str, num_layers: int) -> str:
    """The group of a linear, by its name in the checkpoint without `.weight`."""
    if name == EMBEDDINGS:
        return HEAD
    *_, layer, _, linear = name.split(".")
    return f"{linear.removesuffix('_proj')}, {THIRDS[3 * int(layer) // num_layers]} third"


class _Measurement:
    """`Linears` that round the positions of each group's stream, and measure what all types would do."""

    def __init__(
        self,
        config: TextConfig,
        tensors: TensorSource,
        text: Passages,
        probes: Passages,
        threads: int,
    ):
        self.layer = 0
        self._config, self._tensors, self._threads = config, tensors, threads
        self._stored = StoredLinears(tensors)
        self._weights = np.concatenate([text.weights, np.zeros(len(probes.ids), np.float32)])
        self._probed = slice(len(text.ids), len(self._weights))
        self._lengths, self._probe_lengths = [*text.lengths, *probes.lengths], probes.lengths
        self._streams: dict[str, slice] = {}
        self._x = np.concatenate([*text.rows, *probes.rows])
        self._begin([HEAD], self._rounded_embeddings(probes)[None])
        self._losses: dict[str, dict[GgmlType, float]] = {}
        self._probe_losses: dict[str, float] = {}
        self._seen: FloatArray | None = None
        self._gptq: dict[str, GptqEncoder] = {}

    def state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Everything that changes, as JSON values and arrays."""
        losses = {name: {kind.name: loss for kind, loss in of.items()} for name, of in self._losses.items()}
        return (
            {
                "layer": self.layer,
                "losses": losses,
                "probe_losses": self._probe_losses,
                "groups": list(self._streams),
            },
            {"x": self._x},
        )

    def restore(self, values: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> None:
        """Undo `state`."""
        self.layer = values["layer"]
        self._losses = {
            name: {GgmlType[kind]: loss for kind, loss in of.items()} for name, of in values["losses"].items()
        }
        self._probe_losses = values["probe_losses"]
        new = [group for group in values["groups"] if group not in self._streams]
        self._begin(new, np.zeros((len(new), 0, self._x.shape[1]), np.float32), count=len(self._probe_rows()))
        self._x = arrays["x"]

    def add_layer(self) -> None:
        """Take all streams through the next layer."""
        third = 3 * self.layer // self._config.num_layers
        if self.layer == 0 or 3 * (self.layer - 1) // self._config.num_layers != third:
            groups = [self._group(f"language_model.model.layers.{self.layer}.{name}") for name in _LINEARS]
            self._begin(groups, np.repeat(self._probe_rows()[None], len(groups), axis=0))
        self._gptq.clear()
        add_layer(self._x, self._lengths, self._config, self.layer, self._tensors, self, self._observe)
        self.layer += 1

    def finish(self) -> Sensitivity:
        """Measure the head, and compare the streams' predictions."""
        hidden = final_norm(self._config, self._tensors, self._x)
        self._observe(EMBEDDINGS, 0, hidden)
        running = {group: RunningKlDivergence(len(self._probe_rows())) for group in self._streams}
        hidden *= np.float32(self._config.logit_scale)
        probed = hidden[self._probed]
        for start, stop in slabs(self._tensors.entries[f"{EMBEDDINGS}.weight"].shape):
            rows = self._tensors.read_rows(f"{EMBEDDINGS}.weight", start, stop)
            expected = multiply(probed, rows.T)
            rounded = self._measure(EMBEDDINGS, start, rows, HEAD)
            for group, positions in self._streams.items():
                matrix = rounded if group == HEAD else rows
                running[group].add(expected, multiply(hidden[positions], matrix.T))
        sensitivities = {
            group: float(running[group].result().mean()) / loss
            if (loss := self._probe_losses.get(group))
            else 0.0
            for group in self._streams
        }
        losses = {
            gguf_name(f"{name}.weight"): {
                kind: loss * sensitivities[self._group(name)] for kind, loss in of.items()
            }
            for name, of in self._losses.items()
        }
        return Sensitivity(losses, sensitivities, self._gptq[EMBEDDINGS].hessian)

    def rows(self, name: str, start: int, stop: int, x: FloatArray) -> FloatArray:
        """See `Linears.rows`."""
        weights = self._tensors.read_rows(f"{name}.weight", start, stop)
        result = multiply(x, weights.T)
        rounded = self._measure(name, start, weights, self._group(name))
        positions = self._streams[self._group(name)]
        result[positions] = multiply(x[positions], rounded.T)
        return result

    def columns(self, name: str, start: int, stop: int, x: FloatArray) -> FloatArray:
        """See `Linears.columns`."""
        result = self._stored.columns(name, start, stop, x)
        weights = np.ascontiguousarray(self._stored.matrix(name)[:, start:stop])
        rounded = self._measure(name, 0, weights, self._group(name))
        positions = self._streams[self._group(name)]
        result[positions] = multiply(x[positions], rounded.T)
        return result

    def _measure(self, name: str, start: int, weights: FloatArray, group: str) -> FloatArray:
        """Add up the losses of a part of a linear; returns it as rounded for its group's stream."""
        gptq = self._gptq[name]
        total, width = self._tensors.entries[f"{name}.weight"].shape
        kinds = [kind for kind in KINDS if width % kind.block_size == 0]
        stride = max(1, total // _SAMPLED_ROWS)
        sample = weights[-start % stride :: stride]
        share = total / len(range(0, total, stride))
        losses = self._losses.setdefault(name, dict.fromkeys(kinds, 0.0))
        for kind in kinds if len(sample) else ():
            error = decode(gptq.encode(sample, kind), kind) - sample
            losses[kind] += share * gptq.hessian.loss(error)
        if PROBE not in kinds:
            return weights
        rounded = decode(encode(weights, PROBE, gptq.importance), PROBE)
        loss = self._probe_losses.get(group, 0.0)
        self._probe_losses[group] = loss + gptq.hessian.loss(rounded - weights)
        return rounded

    def _observe(self, name: str, _column: int, x: FloatArray) -> None:
        if x is not self._seen:  # linears that share an input share its Hessian
            hessian = Hessian(x.shape[1])
            hessian.add(x[: len(self._weights)], self._weights)
            self._latest, self._seen = GptqEncoder(hessian, threads=self._threads), x
        self._gptq[name] = self._latest

    def _group(self, name: str) -> str:
        return group_of(name, self._config.num_layers)

    def _probe_rows(self) -> FloatArray:
        return self._x[self._probed]

    def _begin(self, groups: Sequence[str], rows: FloatArray, *, count: int | None = None) -> None:
        """Append streams of the probes' rows (groups, positions, hidden)."""
        count = rows.shape[1] if count is None else count
        for group in groups:
            start = sum(self._lengths)
            self._streams[group] = slice(start, start + count)
            self._lengths += self._probe_lengths
        self._x = np.concatenate([self._x, *rows])

    def _rounded_embeddings(self, probes: Passages) -> FloatArray:
        """The probes' rows as the head's type has them: its table is the embeddings too."""
        rows = np.concatenate(probes.rows)
        if rows.shape[1] % PROBE.block_size:
            return rows
        return decode(encode(rows, PROBE), PROBE)
