"""Recipes: which storage type each tensor of the decoder gets in a named format.

The rules are llama.cpp's (`llama_tensor_get_type_impl` in src/llama-quant.cpp), for the tensors that Cohere's
decoders have, so that a file made here equals the one that llama.cpp's own quantizer makes.
"""

from __future__ import annotations

import re
from typing import Literal, get_args

from ayaedge_quant.ggml import GgmlType

DecoderFormat = Literal["q4_k_m", "q5_k_m", "q6_k", "q8_0", "f16", "f32"]
DECODER_FORMATS: tuple[DecoderFormat, ...] = get_args(DecoderFormat)

_BASE_TYPE: dict[DecoderFormat, GgmlType] = {
    "q4_k_m": GgmlType.Q4_K,
    "q5_k_m": GgmlType.Q5_K,
    "q6_k": GgmlType.Q6_K,
    "q8_0": GgmlType.Q8_0,
    "f16": GgmlType.F16,
    "f32": GgmlType.F32,
}

FILE_TYPE: dict[DecoderFormat, int] = {
    "f32": 0, "f16": 1, "q8_0": 7, "q4_k_m": 15, "q5_k_m": 17, "q6_k": 18,
}  # fmt: skip
"""llama.cpp's number of each format, for the key general.file_type."""

_FALLBACK = {GgmlType.Q4_K: GgmlType.Q5_0, GgmlType.Q5_K: GgmlType.Q5_1, GgmlType.Q6_K: GgmlType.Q8_0}
_LAYER = re.compile(r"blk\.(\d+)\.(attn_v|ffn_down)\.weight")


def tensor_type(name: str, shape: tuple[int, ...], num_layers: int, fmt: DecoderFormat) -> GgmlType:
    """The type of the GGUF tensor `name` with `shape` (rows, columns) in a decoder of `num_layers`."""
    base = _BASE_TYPE[fmt]
    if len(shape) < 2 or name.endswith("_norm.weight"):
        return GgmlType.F32
    if base in (GgmlType.F32, GgmlType.F16):
        return base
    columns = shape[-1]
    if name == "token_embd.weight":  # tied, so it is the output head as well, the most sensitive tensor
        wanted = base if base is GgmlType.Q8_0 else GgmlType.Q6_K
        return wanted if columns % base.block_size == 0 else _that_fits(GgmlType.Q8_0, columns)
    layer = _LAYER.fullmatch(name)
    if layer and fmt in ("q4_k_m", "q5_k_m") and _gets_more_bits(int(layer[1]), num_layers):
        base = GgmlType.Q6_K
    return _that_fits(base, columns)


def _gets_more_bits(layer: int, num_layers: int) -> bool:
    """The first and the last eighth of the layers, and every third between them."""
    eighth = num_layers // 8
    return layer < eighth or layer >= 7 * num_layers // 8 or (layer - eighth) % 3 == 2


def _that_fits(kind: GgmlType, columns: int) -> GgmlType:
    """`kind`, or what llama.cpp falls back to when rows of `columns` are not a whole number of blocks."""
    if columns % kind.block_size == 0:
        return kind
    smaller = _FALLBACK.get(kind, kind)
    return smaller if columns % smaller.block_size == 0 else GgmlType.F16
