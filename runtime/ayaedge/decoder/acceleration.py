"""Our kernels for the products and the attention of long batches, as a device of the llama.cpp that is installed.

The only file that knows their library, `runtime/acceleration`. ggml gives each operation to the first of a context's
devices that takes it: ours takes products of Q4_K and Q6_K weights in main memory with 32 columns or more, which is
nearly all of a prefill, and on x86 flash attention of as many tokens over a cache of halves. Everything else is left to
llama.cpp. Only contexts that are made within `contexts_with` have a kernel; all others of this process compute as
without it. Which kernel is worth it is decided elsewhere.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
from numpy.typing import NDArray

from ayaedge import llama
from ayaedge.decoder.options import DecoderOptions, Kernel
from ayaedge.errors import BackendError

VERSION = 3
"""Of the numbers that come out: to be raised whenever a kernel rounds in another way."""

_SUFFIX = {"win32": ".dll"}.get(sys.platform, ".so")  # CMake names a MODULE library .so on macOS too
_KNOWN = {"0.3.36": "0.25.3"}
"""llama-cpp-python and its ggml, whose structures were compared with `ggml_interface.h`. The commit that ggml names
says nothing: a build from a source package has that of any repository around it, or none. The structures are
compared again when it is loaded."""
_BASE_FUNCTIONS = (
    "ggml_backend_buft_is_host", "ggml_backend_cpu_buffer_type", "ggml_graph_n_nodes", "ggml_graph_node",
    "ggml_op_name", "ggml_backend_dev_name", "ggml_backend_dev_type", "ggml_backend_dev_backend_reg",
    "ggml_type_size", "ggml_blck_size", "ggml_nbytes",
)  # fmt: skip
"""In the order of `ggml::Functions`, behind `ggml_backend_register`."""
_Q4_K, _F32 = 12, 0
_POINTER, _I32, _I64 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64


class Memory(ctypes.Structure):
    """`ggml_init_params`: how much memory a graph of ggml takes."""

    _fields_ = (("size", ctypes.c_size_t), ("buffer", _POINTER), ("no_alloc", ctypes.c_bool))


class _Attention(ctypes.Structure):
    """`Attention` of `attention.h`; strides count elements."""

    _fields_ = (
        ("q", _POINTER), ("q_token", _I64), ("q_head", _I64), ("k", _POINTER), ("k_key", _I64), ("k_head", _I64),
        ("v", _POINTER), ("v_key", _I64), ("v_head", _I64), ("mask", _POINTER), ("mask_token", _I64),
        ("out", _POINTER), ("tokens", _I64), ("keys", _I64), ("heads", _I64), ("kv_heads", _I64),
        ("depth", _I64), ("scale", ctypes.c_float),
    )  # fmt: skip


def kernel_of(options: DecoderOptions) -> Kernel | None:
    """The kernel that options name; None leaves all products to llama.cpp."""
    named = [name for name in get_args(Kernel) if name == options.acceleration]
    return named[0] if named else None


def library_path() -> Path:
    """Where the compiled kernels are: next to this file, or where an editable install put them."""
    name = f"libayaedge_prefill{_SUFFIX}"
    own = Path(__file__).with_name(name)
    if own.exists():
        return own
    try:
        return Path(str(metadata.distribution("ayaedge").locate_file(f"ayaedge/decoder/{name}")))
    except metadata.PackageNotFoundError:
        return own


@cache
def usable_kernels() -> tuple[Kernel, ...]:
    """Those that this processor can run, the best last and without the scalar one; none without the library."""
    if not library_path().exists():
        return ()
    native = _library()
    return tuple(
        name
        for number, name in enumerate(get_args(Kernel))
        if number > 0 and native.ayaedge_prefill_kernel(number) is not None
    )


@cache
def refusal() -> str | None:
    """Why no kernel can be used with what is installed, in a few words; None if one can."""
    if not library_path().exists():
        return f"{library_path().name} was not built"
    if ctypes.sizeof(ctypes.c_void_p) != 8:
        return "this is no 64-bit process"
    installed = llama.library().__version__
    base = llama.native_library("ggml-base", ggml_version=(ctypes.c_char_p, []))
    version = base.ggml_version().decode()
    if _KNOWN.get(installed) != version:
        return f"llama-cpp-python {installed} with ggml {version} is not among the known ones"
    if misfit := _misfit():
        return f"{misfit} in this ggml {'are' if misfit.endswith('s') else 'is'} not as expected"
    return None


def check_kernel(name: Kernel) -> None:
    """Raise BackendError unless a kernel can be used here."""
    if reason := refusal():
        raise BackendError(f"the acceleration {name} cannot be used: {reason}")
    if name not in ("scalar", *usable_kernels()):
        known = ", ".join(usable_kernels()) or "none of them"
        raise BackendError(f"this processor cannot run the acceleration {name}: it can run {known}")


@contextmanager
def contexts_with(name: Kernel | None) -> Iterator[None]:
    """Let the llama_contexts that this thread makes in here compute with a kernel; None changes nothing.

    BackendError as `check_kernel`.
    """
    if name is None:
        yield
        return
    check_kernel(name)
    _register()
    native = _library()
    native.ayaedge_prefill_choose(get_args(Kernel).index(name))
    try:
        yield
    finally:
        native.ayaedge_prefill_choose(-1)


def kernel_identity(name: Kernel | None) -> str | None:
    """What decides about the bits of a kernel's results, for keys of states; None without a kernel."""
    return name and f"{name} {VERSION}"


def products() -> int:
    """How many products the kernels have computed in this process."""
    return int(_library().ayaedge_prefill_products())


def attentions() -> int:
    """How many attentions the kernels have computed in this process."""
    return int(_library().ayaedge_prefill_attentions())


def has_attention(name: Kernel) -> bool:
    """Whether a kernel computes attention too."""
    return bool(_library().ayaedge_prefill_has_attention(get_args(Kernel).index(name)))


def make_backend(name: Kernel) -> Any:
    """A ggml_backend with a kernel, for a trial; ggml_backend_free frees it."""
    check_kernel(name)
    _register()
    return _library().ayaedge_prefill_backend(get_args(Kernel).index(name))


def quantize(x: NDArray[np.float32], name: Kernel) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Activations (columns, depth) as bytes of this shape, and their factors (depth / 256, columns)."""
    columns, depth = x.shape
    x = np.ascontiguousarray(x, np.float32)
    q, d = np.empty((columns, depth), np.int8), np.empty((depth // 256, columns), np.float32)
    status = _library().ayaedge_prefill_quantize(
        get_args(Kernel).index(name), x.ctypes.data, depth, columns, q.ctypes.data, d.ctypes.data
    )
    if status:
        raise ValueError(f"the kernel refused activations of shape {x.shape}")
    return q, d


def product(
    weights: NDArray[np.uint8], kind: int, x: NDArray[np.float32], name: Kernel, *, threads: int = 1
) -> NDArray[np.float32]:
    """Activations x (columns, depth) times weights of ggml's type `kind`, bytes (rows, row_bytes): (columns, rows).

    Rows must be a multiple of 32. ValueError for what does not fit.
    """
    (columns, depth), rows = x.shape, len(weights)
    block = {12: 144, 14: 210}.get(kind, 0)
    if weights.dtype != np.uint8 or weights.shape != (rows, depth // 256 * block):
        raise ValueError(f"{depth} weights of type {kind} are not {weights.shape[-1]} bytes of whole blocks")
    x, weights = np.ascontiguousarray(x, np.float32), np.ascontiguousarray(weights)
    out = np.empty((columns, rows), np.float32)
    status = _library().ayaedge_prefill_product(
        get_args(Kernel).index(name), kind, weights.ctypes.data, rows, depth, x.ctypes.data, columns,
        out.ctypes.data, threads,
    )  # fmt: skip
    if status:
        raise ValueError(f"the kernel {name} refused a product of {rows} x {depth} and {columns} columns")
    return out


def attention(
    q: NDArray[np.float32],
    k: NDArray[np.float16],
    v: NDArray[np.float16],
    mask: NDArray[np.float16] | None,
    name: Kernel,
    *,
    scale: float,
    threads: int = 1,
) -> NDArray[np.float32]:
    """Queries (tokens, heads, depth) over keys and values (keys, kv_heads, depth): (tokens, heads, depth).

    The mask (tokens, keys) is added to the scaled scores. ValueError for what does not fit, or a kernel without
    attention.
    """
    (tokens, heads, depth), (keys, kv_heads, _) = q.shape, k.shape
    if v.shape != k.shape or (mask is not None and mask.shape != (tokens, keys)):
        raise ValueError(f"keys {k.shape}, values {v.shape} and the mask do not fit")
    q = np.ascontiguousarray(q, np.float32)
    k, v = np.ascontiguousarray(k, np.float16), np.ascontiguousarray(v, np.float16)
    mask = None if mask is None else np.ascontiguousarray(mask, np.float16)
    out = np.empty((tokens, heads, depth), np.float32)
    row = kv_heads * depth
    arguments = _Attention(
        q.ctypes.data, heads * depth, depth, k.ctypes.data, row, depth, v.ctypes.data, row, depth,
        None if mask is None else mask.ctypes.data, keys, out.ctypes.data, tokens, keys, heads, kv_heads, depth, scale,
    )  # fmt: skip
    if _library().ayaedge_prefill_attention(get_args(Kernel).index(name), ctypes.byref(arguments), threads):
        raise ValueError(f"the kernel {name} refused an attention of {q.shape} over {k.shape}")
    return out


def compute_peak(name: Kernel, rounds: int) -> int:
    """Compute with a kernel's instructions alone, without memory; how many operations that was, for benchmarks."""
    return int(_library().ayaedge_prefill_peak(get_args(Kernel).index(name), rounds))


@cache
def _register() -> None:
    """Make the device known to ggml: contexts that are made later have it, and leave it alone unless told."""
    loaded = llama.native_library("ggml-base")
    entries = [_address(getattr(loaded, name, None)) for name in ("GOMP_parallel", "GOMP_barrier")]
    openmp = (_POINTER * 2)(*(entries if all(entries) else (None, None)))
    _library().ayaedge_prefill_register(_functions(), openmp)


@cache
def _functions() -> Any:
    base, registry = llama.native_library("ggml-base"), llama.native_library("ggml")
    found = [registry.ggml_backend_register, *(getattr(base, name) for name in _BASE_FUNCTIONS)]
    return (_POINTER * len(found))(*map(_address, found))


def _misfit() -> str | None:
    """What of ggml's structures is not as `ggml_interface.h` says; None if nothing is."""
    size = ctypes.c_int64
    base = llama.native_library(
        "ggml-base",
        ggml_init=(_POINTER, [Memory]),
        ggml_free=(None, [_POINTER]),
        ggml_new_tensor_2d=(_POINTER, [_POINTER, ctypes.c_int, size, size]),
        ggml_mul_mat=(_POINTER, [_POINTER, _POINTER, _POINTER]),
        ggml_get_data=(_POINTER, [_POINTER]),
    )
    registry = llama.native_library("ggml", ggml_backend_dev_by_type=(_POINTER, [ctypes.c_int]))
    memory = base.ggml_init(Memory(1 << 20, None, False))
    try:
        weights = base.ggml_new_tensor_2d(memory, _Q4_K, 512, 64)
        tensor = base.ggml_mul_mat(memory, weights, base.ggml_new_tensor_2d(memory, _F32, 512, 48))
        found = _library().ayaedge_prefill_misfit(
            _functions(), tensor, base.ggml_get_data(tensor), registry.ggml_backend_dev_by_type(0)
        )
        return cast("bytes", found).decode() if found else None
    finally:
        base.ggml_free(memory)


def _address(function: Any) -> int | None:
    return ctypes.cast(function, _POINTER).value if function is not None else None


@cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(library_path()))
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "kernel": (ctypes.c_char_p, [_I32]),
        "quantize": (_I32, [_I32, _POINTER, _I64, _I64, _POINTER, _POINTER]),
        "product": (_I32, [_I32, _I32, _POINTER, _I64, _I64, _POINTER, _I64, _POINTER, _I32]),
        "attention": (_I32, [_I32, _POINTER, _I32]),
        "has_attention": (_I32, [_I32]),
        "peak": (_I64, [_I32, _I64]),
        "misfit": (ctypes.c_char_p, [_POINTER, _POINTER, _POINTER, _POINTER]),
        "register": (None, [_POINTER, _POINTER]),
        "choose": (None, [_I32]),
        "backend": (_POINTER, [_I32]),
        "products": (_I64, []),
        "attentions": (_I64, []),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, f"ayaedge_prefill_{name}")
        function.restype, function.argtypes = result, arguments
    return library
