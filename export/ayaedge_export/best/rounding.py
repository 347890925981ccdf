"""The decoder's tensors rounded by GPTQ, layer by layer, while calibration sequences pass through it twice.

One stream is computed with the exact weights, the other with the weights as rounded so far. A linear is rounded so
that on what it will really get it gives what the exact model's does: so errors of earlier layers are compensated too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from ayaedge_export.best.passages import Passages
from ayaedge_export.checkpoint.checkpoint import Checkpoint
from ayaedge_export.checkpoint.tensors import slabs
from ayaedge_export.decoder.forward import EMBEDDINGS, PART, StoredLinears, add_layer
from ayaedge_export.decoder.gguf_writer import PlannedTensor
from ayaedge_export.effort import GptqOptions
from ayaedge_export.resume.state_file import StateFile
from ayaedge_quant.gptq import GptqEncoder
from ayaedge_quant.hessian import Hessian
from ayaedge_quant.matmul import multiply
from ayaedge_quant.number_formats import GgmlType, decode, encode

FloatArray = NDArray[np.float32]
Blocks = NDArray[np.uint8]
OnStep = Callable[[int, int], None]

_LAYERS = "language_model.model.layers."


class Rounder:
    """Gives the tensors of a plan in its order, as blocks, and knows where an interrupted run goes on.

    Peak memory is about 4 arrays of (2 * positions, hidden), the widest matrix and the blocks of one layer.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        text: Passages,
        head: Hessian,
        options: GptqOptions | None = None,
        *,
        state: StateFile | None = None,
        threads: int = 1,
        on_step: OnStep | None = None,
    ):
        self._config, self._tensors = checkpoint.config.text, checkpoint.tensors
        self._options = options or GptqOptions()
        self._text, self._head = text, head
        self._state, self._threads, self._on_step = state, threads, on_step
        self._stored = StoredLinears(checkpoint.tensors)
        self._layer = 0
        self._x: FloatArray | None = None
        self._seen: FloatArray | None = None
        self._gptq: dict[str, GptqEncoder] = {}
        self._blocks: dict[str, Blocks] = {}
        self._kinds: dict[str, GgmlType] = {}

    def resume(self, plan: Sequence[PlannedTensor], finished: int) -> int:
        """How many of the first `finished` tensors of `plan`, which are written, need not come again."""
        found = self._state.read() if self._state and finished else None
        if found is None:
            return 0
        values, arrays = found
        kept = _written_after(plan, values["layer"]) if values["layer"] else 1
        if kept > finished:
            return 0
        self._layer, self._x = values["layer"], arrays["x"]
        return kept

    def blocks(self, left: Sequence[PlannedTensor]) -> Iterator[tuple[PlannedTensor, Iterator[Blocks]]]:
        """Each tensor of the rest of the plan with its rows, in one part or several.

        The state is written when the tensor behind a layer's last is asked for: by then they must have been written.
        Raises ValueError, naming the tensor, for weights that their type cannot hold.
        """
        waiting = deque(left)
        self._kinds = {
            tensor.source.removesuffix(".weight"): tensor.kind for tensor in left if not _is_norm(tensor)
        }
        if self._x is None:
            yield waiting[0], self._embeddings(waiting[0])
            waiting.popleft()
            self._save()
        assert self._x is not None
        lengths = self._text.lengths * (2 if self._options.rounded_inputs else 1)
        while self._layer < self._config.num_layers:
            self._gptq.clear()
            add_layer(
                self._x, lengths, self._config, self._layer, self._tensors, self, self._observe,
                part=max(PART, self._options.block),
            )  # fmt: skip
            while waiting and self._is_ready(waiting[0]):
                tensor = waiting.popleft()
                yield tensor, iter([self._finished(tensor)])
            self._layer += 1
            self._save()
            if self._on_step:
                self._on_step(self._layer, self._config.num_layers)

    def rows(self, name: str, start: int, stop: int, x: FloatArray) -> FloatArray:
        """See `Linears.rows`."""
        weights = self._tensors.read_rows(f"{name}.weight", start, stop)
        kind, shape = self._kinds[name], self._tensors.entries[f"{name}.weight"].shape
        blocks = self._encode(name, weights)
        self._space(name, shape)[start:stop] = blocks
        return self._matmul(x, weights, decode(blocks, kind))

    def columns(self, name: str, start: int, stop: int, x: FloatArray) -> FloatArray:
        """See `Linears.columns`."""
        matrix, kind = self._stored.matrix(name), self._kinds[name]
        weights = np.ascontiguousarray(matrix[:, start:stop])
        blocks = self._encode(name, weights)
        self._space(name, matrix.shape)[:, kind.row_bytes(start) : kind.row_bytes(stop)] = blocks
        return self._matmul(x, weights, decode(blocks, kind))

    def _matmul(self, x: FloatArray, exact: FloatArray, rounded: FloatArray) -> FloatArray:
        if not self._options.rounded_inputs:
            return multiply(x, exact.T)
        half = len(x) // 2
        result = np.empty((len(x), len(exact)), np.float32)
        multiply(x[:half], exact.T, out=result[:half])
        multiply(x[half:], rounded.T, out=result[half:])
        return result

    def _observe(self, name: str, _column: int, x: FloatArray) -> None:
        if x is not self._seen:  # linears that share an input share its Hessian
            count = len(self._text.weights)
            options = self._options
            hessian = Hessian(x.shape[1], options.block, targets=options.rounded_inputs)
            hessian.add(x[-count:], self._text.weights, x[:count] if options.rounded_inputs else None)
            self._latest, self._seen = self._gptq_encoder(hessian), x
        self._gptq[name] = self._latest

    def _gptq_encoder(self, hessian: Hessian) -> GptqEncoder:
        return GptqEncoder(
            hessian, damping=self._options.damping, target_damping=self._options.target_damping, threads=self._threads
        )  # fmt: skip

    def _encode(self, name: str, weights: FloatArray) -> Blocks:
        try:
            return self._gptq[name].encode(weights, self._kinds[name])
        except ValueError as error:
            raise ValueError(f"tensor {name}.weight: {error}") from None

    def _space(self, name: str, shape: tuple[int, ...]) -> Blocks:
        row_bytes = self._kinds[name].row_bytes(shape[1])
        return self._blocks.setdefault(name, np.empty((shape[0], row_bytes), np.uint8))

    def _is_ready(self, tensor: PlannedTensor) -> bool:
        return _is_norm(tensor) or tensor.source.removesuffix(".weight") in self._blocks

    def _finished(self, tensor: PlannedTensor) -> Blocks:
        if not _is_norm(tensor):
            return self._blocks.pop(tensor.source.removesuffix(".weight"))
        return encode(self._tensors.read(tensor.source).reshape(-1, tensor.shape[-1]), tensor.kind)

    def _embeddings(self, tensor: PlannedTensor) -> Iterator[Blocks]:
        """The table in slabs; on the way the rows that the text uses, as they are and as rounded."""
        name = EMBEDDINGS
        self._gptq[name] = self._gptq_encoder(self._head)
        exact = np.concatenate(self._text.rows).astype(np.float32, copy=False)
        rounded = exact.copy()
        for start, stop in slabs(tensor.shape):
            blocks = self._encode(name, self._tensors.read_rows(tensor.source, start, stop))
            here = np.flatnonzero((self._text.ids >= start) & (self._text.ids < stop))
            rounded[here] = decode(blocks[self._text.ids[here] - start], tensor.kind)
            yield blocks
        self._x = np.concatenate([exact, rounded]) if self._options.rounded_inputs else exact

    def _save(self) -> None:
        if self._state:
            assert self._x is not None
            self._state.write({"layer": self._layer}, {"x": self._x})


def _is_norm(tensor: PlannedTensor) -> bool:
    return tensor.kind is GgmlType.F32 and "norm" in tensor.source


def _written_after(plan: Sequence[PlannedTensor], layers: int) -> int:
    """How many tensors of the plan have been written when so many layers are done."""
    of_later_layers = (
        index
        for index, tensor in enumerate(plan)
        if tensor.source.startswith(_LAYERS)
        and int(tensor.source.removeprefix(_LAYERS).split(".")[0]) >= layers
        and not _is_norm(tensor)
    )
    return next(of_later_layers, len(plan))
