"""The header of a safetensors file: every statement is held against the others and against the file's size.

A file from anywhere says which bytes are which tensor. What is wrong is found before any of it is read.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ayaedge.untrusted.json_text import parse_json
from ayaedge.untrusted.regular_file import open_regular

_LENGTH_BYTES = 8
_MOST_HEADER = 1 << 24
"""Bytes; a released checkpoint's header has under 200,000."""
_MOST_AXES = 8
_LONGEST = 60
"""Characters of a name or value in a message."""
_ELEMENT_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
"""Formats of whole bytes; others may come, whose sizes are not checked since no tensor of theirs is read."""


@dataclass(frozen=True)
class StoredTensor:
    """What the header says of one tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    """Of its first byte in the file."""
    stop: int
    """Of the byte behind its last."""


@dataclass(frozen=True)
class Header:
    """A whole header."""

    tensors: tuple[StoredTensor, ...]
    form: str
    """What the file calls its form: `pt`, `mlx`, or nothing."""


def read_header(file: Path) -> Header:
    """Read a file's header; ValueError says in half a sentence what is wrong with it, OSError as `open`."""
    with open_regular(file) as stream:
        size = os.fstat(stream.fileno()).st_size
        length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
        if not 0 < length <= min(size - _LENGTH_BYTES, _MOST_HEADER):
            raise ValueError(f"its header shall have {length} bytes, the file has {size}")
        text = stream.read(length)
    if len(text) < length:
        raise ValueError("it ends inside of its header")
    found = parse_json(text)
    if not isinstance(found, dict):
        raise ValueError("its header is no object")
    metadata = found.pop("__metadata__", None)
    data_start = _LENGTH_BYTES + length
    tensors = tuple(_tensor(name, info, data_start) for name, info in found.items())
    _check_order(tensors, data_start, size)
    form = metadata.get("format") if isinstance(metadata, Mapping) else None
    return Header(tensors, form if isinstance(form, str) else "")


def _tensor(name: str, info: Any, data_start: int) -> StoredTensor:
    where = f"tensor {name[:_LONGEST]!r}"
    info = info if isinstance(info, Mapping) else {}
    dtype, shape, offsets = info.get("dtype"), info.get("shape"), info.get("data_offsets")
    if not isinstance(dtype, str) or len(dtype) > _LONGEST:
        raise ValueError(f"{where} has no number format")
    if not _is_sizes(shape) or len(shape) > _MOST_AXES:
        raise ValueError(f"{where} has no shape of at most {_MOST_AXES} axes")
    if not _is_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"{where} has no beginning and end")
    start, stop = offsets
    needed = math.prod(shape) * _ELEMENT_BYTES.get(dtype, 0)
    if dtype in _ELEMENT_BYTES and stop - start != needed:
        raise ValueError(f"{where} has {stop - start} bytes, its shape takes {needed}")
    return StoredTensor(name, dtype, tuple(shape), data_start + start, data_start + stop)


def _is_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(size, int) and not isinstance(size, bool) and size >= 0 for size in value
    )


def _check_order(tensors: Iterable[StoredTensor], data_start: int, size: int) -> None:
    """ValueError unless the tensors follow each other without gaps to the end of the file."""
    place = data_start
    for tensor in sorted(tensors, key=lambda each: (each.start, each.stop)):
        if tensor.start != place:
            raise ValueError(f"tensor {tensor.name[:_LONGEST]!r} overlaps another or follows a gap")
        place = tensor.stop
    if place != size:
        raise ValueError(f"its tensors end at byte {place}, the file at {size}")
