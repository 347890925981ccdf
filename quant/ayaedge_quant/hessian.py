"""The Hessian of a linear's squared error, E[x x^T] of its input x, and what GPTQ derives from it.

Only blocks along the diagonal are kept: spans of columns are rounded independently of each other, and no matrix is
larger than a span. How wide they should be is measured in docs/quantization.md.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ayaedge_quant.matmul import multiply

FloatArray = NDArray[np.float32]
DoubleArray = NDArray[np.float64]

BLOCK = 256
"""Columns of a block by default: the super-block of the K-quants."""
DAMPING = 0.01
"""Added to the diagonal, as a share of its mean: directions that were hardly seen are not relied on."""


def spans(columns: int, block: int = BLOCK) -> list[slice]:
    """The columns in blocks, the last of which may be narrower."""
    return [slice(start, min(start + block, columns)) for start in range(0, columns, block)]


class Hessian:
    """Blocks of E[x x^T] over weighted positions; with targets y also of E[y x^T].

    x is what a linear gets, y what it should get: its input in the exact model.
    """

    def __init__(self, columns: int, block: int = BLOCK, *, targets: bool = False):
        self.spans = spans(columns, block)
        shapes = [(span.stop - span.start,) * 2 for span in self.spans]
        self._inputs = [np.zeros(shape, np.float32) for shape in shapes]
        self._targets = [np.zeros(shape, np.float32) for shape in shapes] if targets else None
        self._weight = 0.0

    def add(self, x: FloatArray, weights: FloatArray, targets: FloatArray | None = None) -> None:
        """Add inputs x (positions, columns) that weigh `weights` (positions,), and their targets of the same shape.

        Raises ValueError if one is not finite.
        """
        for number, span in enumerate(self.spans):
            part = x[:, span]
            weighed = weights[:, None] * part
            self._inputs[number] += multiply(part.T, weighed)
            if self._targets is not None and targets is not None:
                self._targets[number] += multiply(targets[:, span].T, weighed)
            if not np.isfinite(np.trace(self._inputs[number])):
                raise ValueError("inputs of a linear are not finite")
        self._weight += float(weights.sum(dtype=np.float64))

    @property
    def columns(self) -> int:
        """Width of the input."""
        return int(self.spans[-1].stop)

    def inputs(self, number: int) -> DoubleArray:
        """E[x x^T] of span `number`, (n, n)."""
        return np.asarray(self._inputs[number] / self._divisor, np.float64)

    def targets(self, number: int) -> DoubleArray | None:
        """E[y x^T] of span `number`, (n, n); None if there are no targets."""
        return (
            None if self._targets is None else np.asarray(self._targets[number] / self._divisor, np.float64)
        )

    @property
    def mean_squares(self) -> FloatArray:
        """Mean squared input of each column, (columns,)."""
        return np.concatenate([np.diagonal(part) / np.float32(self._divisor) for part in self._inputs])

    @property
    def _divisor(self) -> float:
        return self._weight or 1.0

    def loss(self, error: FloatArray) -> float:
        """Mean squared error of the matmul, summed over its outputs, that weight errors (rows, columns) make.

        tr(dW E[x x^T] dW^T), within the blocks.
        """
        return sum(
            float(np.vdot(error[:, span] @ (part / np.float32(self._divisor)), error[:, span]))
            for span, part in zip(self.spans, self._inputs, strict=True)
        )

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """What was gathered without targets, for a file."""
        return {
            "inputs": np.concatenate(self._inputs, axis=None),
            "widths": np.array([len(part) for part in self._inputs]),
            "weight": np.array(self._weight),
        }

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[np.generic]]) -> Hessian:
        """Undo `to_arrays`."""
        widths = np.asarray(arrays["widths"], np.int64)
        hessian = cls(int(widths.sum()), int(widths[0]))
        parts = np.split(np.asarray(arrays["inputs"], np.float32), np.cumsum(widths**2)[:-1])
        hessian._inputs = [part.reshape(width, width) for part, width in zip(parts, widths, strict=True)]
        hessian._weight = float(arrays["weight"])
        return hessian


def damped(hessian: DoubleArray, damping: float) -> DoubleArray:
    """`hessian` with `damping` times the mean of its diagonal on the diagonal; 1 there if it is all zeros."""
    return hessian + (damping * float(np.diagonal(hessian).mean()) or 1.0) * np.eye(len(hessian))


def feedback(hessian: DoubleArray, damping: float = DAMPING) -> FloatArray:
    """What an error in one column should take from each later one, (n, n), upper triangular with ones.

    Rows of the upper Cholesky factor U of the damped Hessian's inverse, U^T U, each divided by its diagonal element
    (GPTQ, Frantar et al., arXiv 2210.17323). U is the inverse of R where R R^T is the Hessian, R upper triangular:
    so one well-conditioned matrix is factorised and nothing is inverted twice.
    """
    reversed_factor = np.linalg.cholesky(damped(hessian, damping)[::-1, ::-1])
    upper = np.linalg.inv(np.ascontiguousarray(reversed_factor[::-1, ::-1]))
    return np.triu(upper / np.diagonal(upper)[:, None]).astype(np.float32)


def target_gain(inputs: DoubleArray, targets: DoubleArray, damping: float) -> DoubleArray:
    """Matrix (n, n) by which weights are multiplied so that they give on x what they should give on y.

    W E[y x^T] E[x x^T]^-1 minimises the squared error of the matmul; damping pulls the matrix towards 1.
    """
    load = damping * float(np.diagonal(inputs).mean()) or 1.0
    shift = load * np.eye(len(inputs))
    return np.asarray(np.linalg.solve((inputs + shift).T, (targets + shift).T).T)
