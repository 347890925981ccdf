"""GPTQ: weights to blocks, where the columns behind each one compensate its rounding error.

Joins the Hessian of a linear's input with the column sweep. The blocks are stock blocks of ggml's types.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ayaedge_quant import kernels, number_formats
from ayaedge_quant.blocks import CODES, SUPER_BLOCK
from ayaedge_quant.hessian import DAMPING, Hessian, feedback, target_gain
from ayaedge_quant.matmul import multiply
from ayaedge_quant.number_formats import GgmlType

FloatArray = NDArray[np.float32]

TARGET_DAMPING = 0.1
"""How far corrected targets are pulled back to the weights, as a share of the mean squared input."""


class _Span(NamedTuple):
    columns: slice
    order: NDArray[np.int32]
    feedback: FloatArray
    gain: FloatArray | None


class GptqEncoder:
    """Encodes rows of linears that share one input."""

    def __init__(
        self,
        hessian: Hessian,
        *,
        damping: float = DAMPING,
        target_damping: float = TARGET_DAMPING,
        threads: int = 1,
    ):
        self.hessian = hessian
        self.importance = hessian.mean_squares
        self._threads = threads
        self._spans = [self._prepare(number, damping, target_damping) for number in range(len(hessian.spans))]

    def encode(self, weights: FloatArray, kind: GgmlType) -> NDArray[np.uint8]:
        """Weights (rows, columns) as blocks of `kind`, (rows, row_bytes).

        Types that GPTQ cannot write get ggml's encoder, weighed by the mean squared inputs. Raises ValueError
        as `number_formats.encode` does.
        """
        wanted = np.ascontiguousarray(weights, np.float32)
        number_formats.check_weights(wanted, kind)
        if any(span.gain is not None for span in self._spans):
            wanted = np.concatenate([_correct(wanted, span) for span in self._spans], axis=1)
        if kind not in CODES:
            return number_formats.encode(wanted, kind, self.importance)
        blocks = np.empty((len(wanted), kind.row_bytes(wanted.shape[1])), np.uint8)
        encoder = number_formats.stock_encoder(kind, weighted=True)
        for span in self._spans:
            start, stop = span.columns.start, span.columns.stop
            kernels.sweep(
                wanted[:, span.columns], int(kind), kind.row_bytes(stop - start), span.feedback,
                self.importance[span.columns], order=span.order,
                out=blocks[:, kind.row_bytes(start) : kind.row_bytes(stop)],
                stock_encoder=encoder, threads=self._threads,
            )  # fmt: skip
        return blocks

    def _prepare(self, number: int, damping: float, target_damping: float) -> _Span:
        span = self.hessian.spans[number]
        inputs, targets = self.hessian.inputs(number), self.hessian.targets(number)
        order = processing_order(self.importance[span])
        gain = None if targets is None else target_gain(inputs, targets, target_damping)
        return _Span(
            span,
            order,
            feedback(inputs[np.ix_(order, order)], damping),
            None if gain is None else gain.astype(np.float32),
        )


def processing_order(importance: FloatArray) -> NDArray[np.int32]:
    """Columns by falling importance within each super-block: nothing compensates the last ones."""
    starts = range(0, len(importance), SUPER_BLOCK)
    parts = [start + np.argsort(-importance[start : start + SUPER_BLOCK], kind="stable") for start in starts]
    return np.concatenate(parts).astype(np.int32)


def _correct(weights: FloatArray, span: _Span) -> FloatArray:
    part = weights[:, span.columns]
    return part if span.gain is None else multiply(part, span.gain)
