"""A bundle's decoder in llama.cpp, showing the input of every linear while it computes.

llama.cpp calls back for each operation of its graph; the bindings do not declare what they hand over, so the layout
of a tensor is declared here and checked against tensors of our own making before the first call.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ayaedge import llama
from ayaedge.bundle import Bundle
from ayaedge.decoder.decoder import Decoder
from ayaedge.decoder.options import DecoderOptions
from ayaedge.errors import BackendError

FloatArray = NDArray[np.float32]
ObserveInput = Callable[[str, FloatArray], None]
"""Called with the name of a weight in the GGUF file and the inputs of its matmul (positions, columns)."""

_F32 = 0
_SCRATCH_BYTES = 1 << 16


class _Tensor(ctypes.Structure):
    """`struct ggml_tensor` of ggml.h, up to the name."""


_Tensor._fields_ = [
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * 4),
    ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * 16),
    ("flags", ctypes.c_int32),
    ("src", ctypes.c_void_p * 10),
    ("view_src", ctypes.c_void_p),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * 64),
]


class _ScratchParameters(ctypes.Structure):
    """`struct ggml_init_params` of ggml.h."""

    _fields_ = [("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]


class ObservedDecoder(Decoder):
    """A decoder that keeps all logits and calls `observe` with the inputs of every linear it computes.

    An error raised by `observe` comes out of the decode call during which it happened. Raises BackendError if this
    build of llama.cpp lays out its tensors in another way than is known here.
    """

    def __init__(self, bundle: Bundle, observe: ObserveInput, options: DecoderOptions):
        if not options.all_logits:
            raise ValueError("the head is computed for every position with all_logits only")
        self._observe = observe
        self._error: BaseException | None = None
        self._matmul = known_matmul_number()
        super().__init__(Path(bundle.decoder_path), bundle.manifest, options)

    def _context_parameters(self) -> Any:
        parameters = super()._context_parameters()
        # kept as an attribute: llama.cpp may call it as long as the context lives
        self._callback = self._llama.ggml_backend_sched_eval_callback(self._on_operation)
        parameters.cb_eval = self._callback
        return parameters

    def _decode(self, count: int, *, token: Any = None, embd: Any = None, all_logits: bool = False) -> None:
        try:
            super()._decode(count, token=token, embd=embd, all_logits=all_logits)
        finally:
            error, self._error = self._error, None
            if error is not None:
                raise error

    def _on_operation(self, address: int, ask: bool, _data: object) -> bool:
        """With `ask`, whether to stop behind this operation; without, whether to go on after it."""
        try:
            operation = _Tensor.from_address(address)
            name = self._weight_of(operation)
            if ask:
                return name is not None
            if name is not None:
                self._observe(name, _values(_Tensor.from_address(operation.src[1])))
        except BaseException as error:  # noqa: BLE001 - nothing may pass through the C code above us
            self._error = error
            return False
        return True

    def _weight_of(self, operation: _Tensor) -> str | None:
        """The name of the weight if the operation is a linear of the model."""
        if operation.op != self._matmul or not operation.src[0] or not operation.src[1]:
            return None
        weight = _Tensor.from_address(operation.src[0])
        name = bytes(weight.name).decode("utf-8", errors="replace")
        return name if name.endswith(".weight") else None


def _values(tensor: _Tensor) -> FloatArray:
    """The numbers of a float32 matrix in main memory, (rows, columns)."""
    if tensor.type != _F32 or tensor.ne[2] * tensor.ne[3] != 1 or tensor.nb[0] != 4 or not tensor.data:
        raise BackendError("llama.cpp gives a linear an input that is not a plain float32 matrix")
    rows, columns, stride = tensor.ne[1], tensor.ne[0], tensor.nb[1]
    memory = (ctypes.c_char * (stride * (rows - 1) + 4 * columns)).from_address(tensor.data)
    return np.ndarray((rows, columns), np.float32, memory, strides=(stride, 4))


@cache
def known_matmul_number() -> int:
    """Ggml's number of matmul, learned from one that is made here and checked field by field.

    Raises BackendError if a field of `_Tensor` is not where ggml keeps it.
    """
    ggml = _ggml()
    scratch = ggml.ggml_init(_ScratchParameters(_SCRATCH_BYTES, None, False))
    try:
        weight = ggml.ggml_new_tensor_2d(scratch, _F32, 8, 3)
        inputs = ggml.ggml_new_tensor_2d(scratch, _F32, 8, 5)
        ggml.ggml_set_name(weight, b"a.weight")
        product = ggml.ggml_mul_mat(scratch, weight, inputs)
        a, b, c = (_Tensor.from_address(address) for address in (weight, inputs, product))
        fits = (
            (c.src[0], c.src[1], c.src[2], c.view_src) == (weight, inputs, None, None)
            and (list(a.ne), list(b.ne), list(c.ne)) == ([8, 3, 1, 1], [8, 5, 1, 1], [3, 5, 1, 1])
            and (list(b.nb), a.type, b.type) == ([4, 32, 160, 160], _F32, _F32)
            and a.name == b"a.weight"
            and b.data == ggml.ggml_get_data(inputs)
            and ggml.ggml_op_name(c.op) == b"MUL_MAT"
        )
        number = int(c.op)
    finally:
        ggml.ggml_free(scratch)
    if not fits:
        raise BackendError(
            "this build of llama.cpp lays out its tensors in an unknown way; collect from the checkpoint instead"
        )
    return number


def _ggml() -> Any:
    """Ggml's base library, with the types of what is called here."""
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    return llama.native_library(
        "ggml-base",
        ggml_init=(pointer, [_ScratchParameters]),
        ggml_free=(None, [pointer]),
        ggml_new_tensor_2d=(pointer, [pointer, ctypes.c_int, size, size]),
        ggml_set_name=(pointer, [pointer, ctypes.c_char_p]),
        ggml_mul_mat=(pointer, [pointer, pointer, pointer]),
        ggml_get_data=(pointer, [pointer]),
        ggml_op_name=(ctypes.c_char_p, [ctypes.c_int]),
    )
