"""Logits as llama.cpp holds them: nothing is chosen where they say nothing.

Weights that are damaged, or sums that exceed a KV cache's format, make NaN of every number behind them. A head of float
weights gives NaN then; one of quantized weights rounds its inputs first, which makes zeros of NaN. The answer would be
one token over and over, up to the end of the context.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ayaedge import llama
from ayaedge.errors import BackendError


def read_logits(context: Any, index: int, size: int) -> NDArray[np.float32]:
    """Logits at a place of the last batch, (size,), valid until the next; BackendError if they are of no use."""
    row = np.ctypeslib.as_array(llama.library().llama_get_logits_ith(context, index), (size,))
    high, low = float(row.max()), float(row.min())  # both are NaN where one value is
    if high == low or not (math.isfinite(high) and math.isfinite(low)):
        wrong = row if high == low else row[~np.isfinite(row)]
        raise BackendError(
            f"the decoder's logits are of no use ({wrong[0]:g} for {len(wrong)} of {size} tokens): its weights are "
            "damaged, or its arithmetic overflowed. Compare the bundle's files with their hashes, try cache_type f32 "
            "or bf16, or export the bundle again"
        )
    return row
