"""A decoder's weights as llama.cpp holds them, in main memory or in part on graphics processors."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ayaedge import llama
from ayaedge.decoder.gguf_header import read_figures
from ayaedge.decoder.options import HEAD_STEP, LARGEST_HEAD, DecoderOptions, repacks_by_default
from ayaedge.decoder.vocabulary import Vocabulary
from ayaedge.errors import BundleError, InvalidOptionError
from ayaedge.hardware.devices import Gpu, choose_decoder, decoder_gpus, device_list


class Weights:
    """A llama_model with its vocabulary; `close()` frees both."""

    def __init__(self, path: Path, *, repack: bool, gpus: Sequence[Gpu] = (), gpu_layers: int = 0):
        """Load a file that was checked, with `gpu_layers` of its layers on `gpus`; BundleError if llama.cpp cannot.

        With `gpus` and no layers, contexts can let them compute batches.
        """
        self.gpus = list(gpus)
        self.gpu_layers = gpu_layers
        """Layers that are on a GPU."""
        self._llama = llama.library()
        self._handle = self._load(path, repack)
        self.vocabulary = Vocabulary(self._llama, self._handle)

    def _load(self, path: Path, repack: bool) -> Any:
        parameters = self._llama.llama_model_default_params()
        parameters.n_gpu_layers = self.gpu_layers
        if self._llama.llama_supports_gpu_offload():
            devices = device_list(self.gpus)
            parameters.devices = ctypes.cast(devices, ctypes.c_void_p)
        parameters.use_extra_bufts = repack
        llama.forget_errors()
        model = self._llama.llama_model_load_from_file(os.fsencode(path), parameters)
        if not model:
            raise BundleError(f"llama.cpp cannot load {path}: {llama.recent_errors()}")
        return model

    def close(self) -> None:
        """Free the weights; contexts over them must be freed before."""
        if self._handle is not None:
            self.vocabulary.close()
            self._llama.llama_model_free(self._handle)
            self._handle = None

    @property
    def head_size(self) -> int:
        """Values of a head of attention."""
        return int(
            self._llama.llama_model_n_embd(self._handle) // self._llama.llama_model_n_head(self._handle)
        )

    def attends(self, options: DecoderOptions) -> bool:
        """Whether our kernels compute flash attention for these heads, where it is used."""
        return (
            options.has_attention_kernel
            and self.head_size % HEAD_STEP == 0
            and self.head_size <= LARGEST_HEAD
        )

    def uses_flash(self, options: DecoderOptions) -> bool:
        """`DecoderOptions.uses_flash`, with the layers that are really on a GPU.

        By default not for heads that our kernels do not take: llama.cpp's own, on processors, makes a token of an
        answer behind 2,200 others take 1.8 times as long.
        """
        if options.flash_attention is None and options.has_attention_kernel and not self.attends(options):
            return False
        there = replace(options, gpu_layers=self.gpu_layers, offload_prompts=bool(self.gpus))
        return there.uses_flash

    @property
    def handle(self) -> Any:
        """The llama_model; None after `close()`."""
        return self._handle


def repacks(options: DecoderOptions) -> bool:
    """Whether weights go to llama.cpp's extra buffers."""
    return repacks_by_default() if options.repack is None else options.repack


def choose_layers(path: Path, options: DecoderOptions) -> tuple[int, list[Gpu]]:
    """How many layers go to which graphics processors; InvalidOptionError if there are none and some were wanted.

    No processors at all where they are for nothing: llama.cpp would copy weights there for batches.
    """
    wanted, device = options.gpu_layers or 0, options.device or "auto"
    if not options.uses_gpu:
        return 0, []
    asked = f"gpu_layers is {wanted}" if wanted else "offload_prompts is True"
    if device == "cpu":
        raise InvalidOptionError(f"{asked}, but the device is cpu: give one of them only")
    gpus = choose_decoder(device, decoder_gpus())
    if not gpus:
        raise InvalidOptionError(
            f"{asked}, but this build of llama-cpp-python sees no GPU; `ayaedge doctor` shows what "
            "it was built for, and how to install another one"
        )
    most = read_figures(path).layers + 1
    return (most if wanted < 0 else min(wanted, most)), gpus
