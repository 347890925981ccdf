"""How the decoder runs."""

from __future__ import annotations

import platform
from dataclasses import dataclass, replace
from typing import Literal, get_args

from ayaedge.checks import check_options, instance, make_plain, one_of, shown, whole_number
from ayaedge.errors import (
    InvalidOptionError,
)
from ayaedge.hardware.devices import Device
from ayaedge.hardware.machine import architecture

DEFAULT_UBATCH = 256


DEFAULT_CONTEXT = 8192
"""Tokens of context unless asked otherwise: 1.1 GB of f16 KV cache for Aya Vision 8B."""


CacheType = Literal["f16", "bf16", "f32", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]


Kernel = Literal["scalar", "avx2", "avx-vnni", "avx512-vnni", "neon-dotprod", "neon-i8mm", "amx-bf16"]
"""Of `decoder.acceleration`, in its library's order, the best last; the scalar one is what tests compare with."""


Acceleration = Literal[
    "auto", "off", "scalar", "avx2", "avx-vnni", "avx512-vnni", "neon-dotprod", "neon-i8mm", "amx-bf16"
]


ATTENTION_KERNELS: tuple[Kernel, ...] = ("avx2", "avx-vnni", "avx512-vnni", "amx-bf16")
"""Those that compute flash attention as well, over a cache of halves."""


HEAD_STEP, LARGEST_HEAD = 32, 256
"""Values of the heads that they take: a multiple, and at most so many; as in `attention.h`."""


MAX_THREADS = 512
"""More than any processor of a laptop or a server has; far more makes each token wait for all of them."""


_LARGEST_BATCH = 1 << 16


_MOST_DRAFTS = 63


FLOAT_TYPES = ("f16", "bf16", "f32")


@dataclass(frozen=True)
class DecoderOptions:
    """How the decoder runs; None means the bundle's or the machine's value."""

    context_size: int | None = None
    """Tokens of prompt and answer together; at most the bundle's, by default `DEFAULT_CONTEXT`."""
    threads: int | None = None
    threads_batch: int | None = None
    """During prefill; by default as many as `threads`."""
    batch_size: int = 512
    """Tokens or embeddings that go to llama.cpp in one call during prefill: the grain of progress."""
    ubatch_size: int | None = None
    """Those of them that are computed at once; by default `DEFAULT_UBATCH`."""
    cache_type: CacheType = "f16"
    """Number format of the KV cache."""
    cache_type_v: CacheType | None = None
    """Number format of its values; by default that of its keys, `cache_type`."""
    flash_attention: bool | None = None
    """Attention without storing its scores. By default on for GPUs, where the cache's format needs it, and where a
    kernel of ours computes it (`acceleration`), for heads of a multiple of 32 values; llama.cpp's own is on processors
    as fast without it during prefill, and slower with each token of an answer behind a long prompt."""
    repack: bool | None = None
    """Arrange 4-bit weights anew for the processor, in memory of their own; by default where it was measured to be
    faster, or on Arm. True is tried in a process of its own first, once for a bundle and machine: some processors end
    the process with it. That takes as long as loading the bundle, and its memory for this time."""
    acceleration: Acceleration = "auto"
    """Kernels of ours for the products of a prefill, instead of llama.cpp's. `auto` means the best for this processor,
    or `off` where `AyaVision.load` finds that it is not right or not faster here: it is tried once, in a process of
    its own, which takes two seconds and is remembered in the cache's directory. Without one, or in a frozen program
    that does not call `freeze_support`, `auto` means `off`. `Decoder` itself takes `auto` for `off`."""
    device: Device | None = None
    """`auto`, the default, takes the best that this build of llama.cpp sees."""
    gpu_layers: int | None = None
    """Layers on the GPU: -1 for all, 0 for none, by default as many as its memory holds (`planning.placement`)."""
    offload_prompts: bool | None = None
    """Compute prompts on the GPU for layers too that are not there: their weights are copied for each batch of 32
    tokens and more. By default where at least one layer is there; with `gpu_layers=0`, True means prompts on the GPU
    and answers on the processor, which `ayaedge tune` chooses where it is faster."""
    draft_tokens: int = 0
    """Most tokens that are tried in one step when an answer seems to copy (`decoder.prompt_lookup`); 0 for never."""
    all_logits: bool = False
    """Keep the logits of every token of a batch, not of the last alone (for verification)."""

    def __post_init__(self) -> None:
        make_plain(self)
        types = get_args(CacheType)
        check_options(
            whole_number("context_size", self.context_size, least=2, optional=True),
            whole_number("threads", self.threads, least=1, most=MAX_THREADS, optional=True),
            whole_number("threads_batch", self.threads_batch, least=1, most=MAX_THREADS, optional=True),
            whole_number("batch_size", self.batch_size, least=1, most=_LARGEST_BATCH),
            whole_number("ubatch_size", self.ubatch_size, least=1, most=_LARGEST_BATCH, optional=True),
            whole_number("gpu_layers", self.gpu_layers, least=-1, optional=True),
            whole_number("draft_tokens", self.draft_tokens, least=0, most=_MOST_DRAFTS),
            one_of("cache_type", self.cache_type, types),
            one_of("cache_type_v", self.cache_type_v, types, optional=True),
            one_of("device", self.device, get_args(Device), optional=True),
            one_of("acceleration", self.acceleration, get_args(Acceleration)),
            instance("flash_attention", self.flash_attention, bool, optional=True),
            instance("repack", self.repack, bool, optional=True),
            instance("offload_prompts", self.offload_prompts, bool, optional=True),
            instance("all_logits", self.all_logits, bool),
        )
        if self.value_type not in FLOAT_TYPES and not self.uses_flash:
            check_options("quantized values (cache_type_v) need flash_attention")

    def context_of(self, trained: int) -> int:
        """Tokens of context for a model that was trained with `trained`; InvalidOptionError if that is too few."""
        if self.context_size is None:
            return min(trained, DEFAULT_CONTEXT)
        if self.context_size > trained:
            raise InvalidOptionError(
                f"the context size must lie between 2 and {trained} for this model, not {shown(self.context_size)}"
            )
        return self.context_size

    @property
    def is_usual(self) -> bool:
        """Whether speeds with these options say something about the defaults."""
        usual = replace(
            DecoderOptions(),
            device=self.device,
            gpu_layers=self.gpu_layers,
            offload_prompts=self.offload_prompts,
            acceleration=self.acceleration,
        )
        return self == replace(usual, context_size=self.context_size, draft_tokens=self.draft_tokens)

    @property
    def value_type(self) -> CacheType:
        """Number format of the values in the KV cache."""
        return self.cache_type_v or self.cache_type

    @property
    def uses_gpu(self) -> bool:
        """Whether a GPU holds layers or computes prompts."""
        return bool(self.gpu_layers or self.offload_prompts)

    @property
    def uses_flash(self) -> bool:
        """Whether attention is computed without storing its scores."""
        if self.flash_attention is not None:
            return self.flash_attention
        on_gpu = self.uses_gpu and "f32" not in (self.cache_type, self.value_type)
        return on_gpu or self.value_type not in FLOAT_TYPES or self.has_attention_kernel

    @property
    def has_attention_kernel(self) -> bool:
        """Whether our kernels compute flash attention, where it is used."""
        halves = (self.cache_type, self.value_type) == ("f16", "f16")
        return self.acceleration in ATTENTION_KERNELS and halves and not self.uses_gpu

    @property
    def rows_at_once(self) -> int:
        """Tokens of a prompt that are computed at once."""
        return min(self.ubatch_size or DEFAULT_UBATCH, self.batch_size)


def repacks_by_default() -> bool:
    """Repacked weights double memory and halve prefill on x86; on Arm they are the fast path."""
    return architecture(platform.machine()) != "x86_64"


def with_context(options: DecoderOptions, context: int | None) -> DecoderOptions:
    """The same with `context` tokens, if that is given; InvalidOptionError if both say something else."""
    if context is None:
        return options
    if options.context_size not in (None, context):
        raise InvalidOptionError(
            f"context is {context} and decoder.context_size {options.context_size}: give one"
        )
    return replace(options, context_size=context)
