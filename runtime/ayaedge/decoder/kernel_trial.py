"""Which of our kernels a decoder computes with: tried on this machine before its first use, then remembered.

Right is a kernel whose products are as near to the exact ones as llama.cpp's own, and its attention to the exact one
as single precision is; worth it is one that is faster than
those by a margin. Both are found out in a process of its own, since an instruction that a processor only claims to
have would end it.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
from numpy.typing import NDArray

from ayaedge import llama
from ayaedge.checks import check_options, one_of
from ayaedge.decoder import acceleration
from ayaedge.decoder.acceleration import check_kernel, refusal, usable_kernels
from ayaedge.decoder.options import ATTENTION_KERNELS, Acceleration, DecoderOptions, Kernel
from ayaedge.decoder.weights import repacks
from ayaedge.errors import BackendError, InvalidOptionError
from ayaedge.hardware.machine import usable_threads
from ayaedge.hardware.probes import Verdicts

VARIABLE = "AYAEDGE_ACCELERATION"
"""Says what `auto` means: `off`, or a kernel's name."""
MARGIN = 1.1
"""How many times as fast as llama.cpp's own products a kernel must be."""
_LARGEST_ERROR = 1.15
"""Of a kernel, against llama.cpp's own, both to the exact product; a wrong one is off by a hundred times."""
_ATTENTION_ERROR = 1e-5
"""Of attention in single precision, as a part of its result: an error that counts as 1."""
_NONSENSE = 1e9
"""Of a kernel whose result is no number, which JSON does not have."""
_ATTENTION = "attention"
_SECONDS = 120.0
_COLUMNS = 64
_ROUNDS = 15
_TYPES = {"Q4_K": (12, 144, "q4_K"), "Q6_K": (14, 210, "q6_K")}
"""Number, bytes of a block, and name in ggml's `dequantize_row_*`."""
_F32, _F16, _PROCESSOR = 0, 1, 0


@dataclass(frozen=True)
class Verdict:
    """What is known of the best kernel of this machine."""

    kernel: Kernel | None
    """None if none can be used."""
    gain: float = 0.0
    """How many times as fast as llama.cpp's own products; 0 if it was not measured."""
    attention_gain: float = 0.0
    """The same of flash attention; 0 if it was not measured, or the kernel has none."""
    reason: str = ""
    """Why there is none, or why it is not used."""
    lasts: bool = True
    """Whether a second trial would find the same, by all that is known."""
    passed_over: tuple[Verdict, ...] = ()
    """What is known of better kernels that do not work here, the best first."""

    @property
    def is_worth_it(self) -> bool:
        """Whether `auto` takes it."""
        return self.kernel is not None and not self.reason and self.gain >= MARGIN

    @property
    def text(self) -> str:
        """Its name and what it gains, in words; `off` without one."""
        if self.kernel is None:
            return "off"
        if not self.gain:
            return self.kernel
        gain = f"{self.kernel}, {self.gain:.1f} times as fast as llama.cpp's products of a prefill"
        return gain + (f", {self.attention_gain:.1f} times as its attention" if self.attention_gain else "")


NO_KERNEL = Verdict(None, reason="nothing is known")


def settle_acceleration(
    options: DecoderOptions, directory: Path | None, attempt: Callable[[str, int], Any] | None = None
) -> DecoderOptions:
    """`options` with `off` or a kernel instead of `auto`; BackendError for a kernel by name that does not work here.

    `auto` takes the best kernel that is right, if it is faster than llama.cpp by `MARGIN`. Where that is not known, a
    child process tries it, which takes two seconds; it is remembered in the cache's `directory`, and without one
    `auto` is `off`. On GPUs and with repacked weights nothing is accelerated. Where a kernel's attention is not faster
    by `MARGIN`, flash attention is off unless it was asked for.
    """
    wanted, found = asked_acceleration(options), NO_KERNEL
    elsewhere = options.uses_gpu or repacks(options)
    if wanted == "auto":
        found = NO_KERNEL if elsewhere or directory is None else judge(options, directory, attempt)
        wanted = found.kernel if found.is_worth_it and found.kernel else "off"
    elif wanted != "off":
        if elsewhere:
            raise InvalidOptionError(
                f"acceleration is {wanted}, which is for processors and weights that are not repacked"
            )
        check_kernel(wanted)
        found = _judged(wanted, options, directory, attempt)
        if found.reason:
            raise BackendError(f"the acceleration {wanted} does not work on this machine: {found.reason}")
    slow = wanted in ATTENTION_KERNELS and found.attention_gain < MARGIN
    flash = False if slow and options.flash_attention is None else options.flash_attention
    return replace(options, acceleration=wanted, flash_attention=flash)


def asked_acceleration(options: DecoderOptions) -> Acceleration:
    """What options ask for, or for `auto` the environment; InvalidOptionError for what that should not say."""
    named = os.environ.get(VARIABLE)
    if options.acceleration != "auto" or not named:
        return options.acceleration
    check_options(one_of(VARIABLE, named, get_args(Acceleration)))
    return cast("Acceleration", named)


def verdict_of(settled: DecoderOptions, directory: Path | None) -> Verdict:
    """What was found out about the kernel of options that `settle_acceleration` gave back; one of None for `off`."""
    name = acceleration.kernel_of(settled)
    return NO_KERNEL if name is None else _judged(name, settled, directory, None)


def judge(
    options: DecoderOptions, directory: Path | None, attempt: Callable[[str, int], Any] | None = None
) -> Verdict:
    """What is known of the best kernel that works here, or if none does of the best one that this processor can run.

    Tried in a child if nothing is known: one after the other, until one is right, or could not be tried.
    """
    if reason := refusal():
        return Verdict(None, reason=reason)
    passed_over: list[Verdict] = []
    for name in reversed(usable_kernels()):
        verdict = _judged(name, options, directory, attempt)
        if not verdict.reason:
            return replace(verdict, passed_over=tuple(passed_over))
        passed_over.append(verdict)
        if not verdict.lasts:
            break
    return passed_over[0] if passed_over else Verdict(None, reason="there is none for this processor")


def _judged(
    name: Kernel, options: DecoderOptions, directory: Path | None, attempt: Callable[[str, int], Any] | None
) -> Verdict:
    threads = options.threads_batch or options.threads or usable_threads()
    setting = f"acceleration {acceleration.kernel_identity(name)}, {threads} threads"
    try:
        result = Verdicts(directory).settle(
            setting, attempt or try_kernel, name, threads, seconds=_SECONDS, keeps_value=True
        )
    except BackendError as error:  # a program that cannot be started a second time, such as a frozen one
        return Verdict(name, reason=f"it could not be tried: {error}", lasts=False)
    if result.death:
        reason = f"it ended a process that tried it ({result.death})"
        return Verdict(name, reason=reason, lasts=result.lasts)
    try:
        errors = {str(kind): float(error) for kind, error in result.value[0].items()}
        gain, attention_gain = float(result.value[1]), float([*result.value, 0.0][2])
    except (
        TypeError,
        ValueError,
        LookupError,
        AttributeError,
    ):  # a file of the cache that somebody has changed
        return Verdict(name, reason="what is remembered of it makes no sense: ayaedge cache clear")
    if wrong := [kind for kind, error in errors.items() if not error <= _LARGEST_ERROR]:
        types = [kind for kind in wrong if kind != _ATTENTION]
        reason = f"products of {' and '.join(types)} weights are" if types else "attention is"
        return Verdict(name, gain, attention_gain, f"its {reason} wrong")
    return Verdict(name, gain, attention_gain)


def try_kernel(name: Kernel, threads: int) -> tuple[dict[str, float], float, float]:
    """Errors of a kernel's products against llama.cpp's, for each type of weights, and of its attention.

    Then how many times as fast its products and its attention are: 0 for an attention that it does not have.
    """
    rng = np.random.default_rng(0)
    errors, attention_gain = {}, 0.0
    with ExitStack() as stack:
        ours = stack.enter_context(Backend(acceleration.make_backend(name), threads))
        stock = stack.enter_context(Backend(processor_backend(), threads))
        for kind in _TYPES:
            with Product(kind, 96, 768, rng) as small:
                exact = small.exact()
                found = [float(np.linalg.norm(backend.compute(small) - exact)) for backend in (ours, stock)]
            ratio = found[0] / found[1]
            errors[kind] = ratio if np.isfinite(ratio) else _NONSENSE
        if acceleration.has_attention(name):
            found = [
                _attention_error(ours, tokens, rng) for tokens in (40, 3)
            ]  # a batch, and what an answer adds
            errors[_ATTENTION] = max(found) if np.isfinite(found).all() else _NONSENSE
            with AttentionGraph(_COLUMNS, 512, 8, 2, 128, rng) as attention:
                attention_gain = _gain(ours, stock, attention)
        with Product("Q4_K", 1024, 4096, rng) as large:
            return errors, _gain(ours, stock, large), attention_gain


def _attention_error(backend: Backend, tokens: int, rng: np.random.Generator) -> float:
    with AttentionGraph(tokens, 300, 4, 2, 64, rng) as attention:
        return attention.error(backend.compute(attention)) / _ATTENTION_ERROR


def _gain(ours: Backend, stock: Backend, graph: Product | AttentionGraph) -> float:
    times = [[backend.seconds(graph) for backend in (ours, stock)] for _ in range(_ROUNDS)]
    best = [min(times_of) for times_of in zip(*times, strict=True)]
    return float(best[1] / best[0])


class Product:
    """A graph of ggml with one product, by default of random weights; a context manager."""

    def __init__(
        self, kind: str, rows: int, depth: int, rng: np.random.Generator, *, columns: int = _COLUMNS
    ):
        block = _TYPES[kind][1]
        blocks = rng.integers(0, 256, (rows, depth // 256, block), np.uint8)
        scales = rng.uniform(1e-3, 1e-2, (*blocks.shape[:2], 2)).astype(np.float16)
        at = slice(0, 4) if kind == "Q4_K" else slice(208, 210)
        blocks[..., at] = scales.view(np.uint8)[..., : at.stop - at.start]
        x = rng.standard_normal((columns, depth)).astype(np.float32)
        x[:, rng.integers(0, depth, depth // 64)] *= 12  # some channels of a decoder stand out
        self._build(kind, blocks, x)

    @classmethod
    def of(cls, kind: str, blocks: NDArray[np.uint8], x: NDArray[np.float32]) -> Product:
        """That of weights, bytes (rows, row_bytes), and activations (columns, depth)."""
        product = cls.__new__(cls)
        product._build(kind, np.ascontiguousarray(blocks), np.ascontiguousarray(x, np.float32))
        return product

    def _build(self, kind: str, blocks: NDArray[np.uint8], activations: NDArray[np.float32]) -> None:
        number, _, self._decoder = _TYPES[kind]
        self._base = _base()
        self._x, self._blocks = activations, blocks
        (columns, depth), rows = activations.shape, len(blocks)
        self._shape = columns, rows
        room = blocks.nbytes + self._x.nbytes + 4 * columns * rows + (1 << 20)
        self._memory = self._base.ggml_init(acceleration.Memory(room, None, False))
        weights = self._base.ggml_new_tensor_2d(self._memory, number, depth, rows)
        x = self._base.ggml_new_tensor_2d(self._memory, _F32, depth, columns)
        self._out = self._base.ggml_mul_mat(self._memory, weights, x)
        self.graph = self._base.ggml_new_graph(self._memory)
        self._base.ggml_build_forward_expand(self.graph, self._out)
        for tensor, values in ((weights, blocks), (x, self._x)):
            ctypes.memmove(self._base.ggml_get_data(tensor), values.ctypes.data, values.nbytes)

    def __enter__(self) -> Product:
        return self

    def __exit__(self, *_: object) -> None:
        self._base.ggml_free(self._memory)

    def result(self) -> NDArray[np.float32]:
        """What was computed last, (columns, rows)."""
        return _values(self._base.ggml_get_data(self._out), self._shape)

    def exact(self) -> NDArray[np.float64]:
        """With dequantized weights in double precision."""
        weights = np.empty((len(self._blocks), self._x.shape[1]), np.float32)
        decode = getattr(self._base, f"dequantize_row_{self._decoder}")
        pointer = ctypes.c_void_p
        decode(pointer(self._blocks.ctypes.data), pointer(weights.ctypes.data), ctypes.c_int64(weights.size))
        return self._x.astype(np.float64) @ weights.T.astype(np.float64)


class AttentionGraph:
    """A graph of ggml with one causal flash attention of random halves; a context manager.

    The tokens are the last ones of `keys`, the keys before a token's window of half of them are hidden.
    """

    def __init__(
        self, tokens: int, keys: int, heads: int, kv_heads: int, depth: int, rng: np.random.Generator
    ):
        self._base = _base()
        self._q = rng.standard_normal((heads, tokens, depth)).astype(np.float32)
        self._k, self._v = rng.standard_normal((2, kv_heads, keys, depth)).astype(np.float16)
        position, key = np.arange(keys - tokens, keys)[:, None], np.arange(keys)
        is_seen = (key <= position) & (key > position - keys // 2)
        self._mask = np.where(is_seen, np.float16(0), np.float16(-np.inf))
        self._shape, self._scale = (tokens, heads, depth), depth**-0.5
        sources = ((_F32, self._q), (_F16, self._k), (_F16, self._v), (_F16, self._mask[None]))
        room = sum(values.nbytes for _, values in sources) + self._q.nbytes + (1 << 20)
        self._memory = self._base.ggml_init(acceleration.Memory(room, None, False))
        made = [self._base.ggml_new_tensor_3d(self._memory, kind, *a.shape[::-1]) for kind, a in sources]
        for tensor, (_, values) in zip(made, sources, strict=True):
            ctypes.memmove(self._base.ggml_get_data(tensor), values.ctypes.data, values.nbytes)
        self._out = self._base.ggml_flash_attn_ext(self._memory, *made, self._scale, 0.0, 0.0)
        self.graph = self._base.ggml_new_graph(self._memory)
        self._base.ggml_build_forward_expand(self.graph, self._out)

    def __enter__(self) -> AttentionGraph:
        return self

    def __exit__(self, *_: object) -> None:
        self._base.ggml_free(self._memory)

    def result(self) -> NDArray[np.float32]:
        """What was computed last, (tokens, heads, depth)."""
        return _values(self._base.ggml_get_data(self._out), self._shape)

    def error(self, found: NDArray[np.float32]) -> float:
        """Of a result, as a part of the exact one."""
        shared = len(self._q) // len(self._k)
        k, v = (np.repeat(halves.astype(np.float64), shared, axis=0) for halves in (self._k, self._v))
        scores = self._scale * self._q.astype(np.float64) @ k.transpose(0, 2, 1) + self._mask
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        exact = (weights / weights.sum(-1, keepdims=True) @ v).transpose(1, 0, 2)
        return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def _values(address: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    values = (ctypes.c_float * int(np.prod(shape))).from_address(address)
    return np.array(values, np.float32).reshape(shape)


class Backend:
    """A ggml_backend with so many threads; a context manager that frees it."""

    def __init__(self, handle: Any, threads: int):
        self._base, self._handle = _base(), handle
        self.call(b"ggml_backend_set_n_threads", threads)

    def call(self, name: bytes, *arguments: Any) -> None:
        """Call one of the functions that a backend has beyond those of all backends: with numbers or addresses."""
        registration = self._base.ggml_backend_dev_backend_reg(
            self._base.ggml_backend_get_device(self._handle)
        )
        function = self._base.ggml_backend_reg_get_proc_address(registration, name)
        types = [ctypes.c_int if isinstance(argument, int) else ctypes.c_void_p for argument in arguments]
        ctypes.CFUNCTYPE(None, ctypes.c_void_p, *types)(function)(self._handle, *arguments)

    def __enter__(self) -> Backend:
        return self

    def __exit__(self, *_: object) -> None:
        self._base.ggml_backend_free(self._handle)

    def compute(self, product: Product | AttentionGraph) -> NDArray[np.float32]:
        """The result of a product or an attention; BackendError if there is none."""
        if status := self._base.ggml_backend_graph_compute(self._handle, product.graph):
            raise BackendError(f"a product ended with status {status}")
        return product.result()

    def seconds(self, product: Product | AttentionGraph) -> float:
        """What it takes."""
        started = time.perf_counter()
        self._base.ggml_backend_graph_compute(self._handle, product.graph)
        return time.perf_counter() - started


def processor_backend() -> Any:
    """llama.cpp's own backend."""
    make = (ctypes.c_void_p, [ctypes.c_int, ctypes.c_char_p])
    return llama.native_library("ggml", ggml_backend_init_by_type=make).ggml_backend_init_by_type(
        _PROCESSOR, None
    )


def _base() -> Any:
    handle, number, size, real = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_float
    return llama.native_library(
        "ggml-base",
        ggml_init=(handle, [acceleration.Memory]),
        ggml_free=(None, [handle]),
        ggml_new_tensor_2d=(handle, [handle, number, size, size]),
        ggml_new_tensor_3d=(handle, [handle, number, size, size, size]),
        ggml_mul_mat=(handle, [handle, handle, handle]),
        ggml_flash_attn_ext=(handle, [handle, handle, handle, handle, handle, real, real, real]),
        ggml_get_data=(handle, [handle]),
        ggml_new_graph=(handle, [handle]),
        ggml_build_forward_expand=(None, [handle, handle]),
        ggml_backend_graph_compute=(number, [handle, handle]),
        ggml_backend_get_device=(handle, [handle]),
        ggml_backend_dev_backend_reg=(handle, [handle]),
        ggml_backend_reg_get_proc_address=(handle, [handle, ctypes.c_char_p]),
        ggml_backend_free=(None, [handle]),
    )
