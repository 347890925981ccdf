"""Whether weights that are arranged anew for the processor, "repacked", work on this machine: tried before use.

llama.cpp ends the process with them on some processors (0.3.36: those with AMX), where no error could be caught.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ayaedge.bundle import Bundle, read_bundle
from ayaedge.decoder.decoder import Decoder
from ayaedge.decoder.options import DecoderOptions
from ayaedge.errors import BackendError
from ayaedge.hardware.probes import Result, Verdicts

_TOKENS = 67
"""More than two of the largest blocks of rows that a kernel takes (32), and a remainder."""
_SECONDS = 900.0
"""Far more than loading a 32B from a slow disk takes."""


def require_repacking(
    bundle: Bundle,
    options: DecoderOptions,
    directory: Path | None,
    attempt: Callable[[str, dict[str, Any]], Any] | None = None,
) -> None:
    """Raise BackendError if `options` ask by name for repacked weights and those do not work here.

    Where it is not known yet, a child process loads this very decoder, since kernels are chosen by the weights' types
    and shapes, and decodes a few tokens: an 8B takes 10 to 30 s, and as much memory as it will take again afterwards
    (9 GB). What came out is remembered in the cache's `directory`, or by this process, as `ayaedge tune` does.

    Nothing is tried where nothing is asked for: x86 does not repack then, and on Arm it is what llama.cpp does for
    everybody, so a trial would double the first start for nothing.
    """
    if not options.repack:
        return
    setting = repacking_of(bundle, options)
    arguments = (str(bundle.directory), dataclasses.asdict(options))
    result = Verdicts(directory).settle(setting, attempt or decode_little, *arguments, seconds=_SECONDS)
    if result.death:
        raise BackendError(
            f"repacked weights do not work on this machine: llama.cpp ended a process that tried them "
            f"({result.death}). Leave `repack` out, or set it to False{_reason(result)}"
        )


def repacking_of(bundle: Bundle, options: DecoderOptions) -> str:
    """The setting under which it is remembered: weights, and how many layers are not on the processor."""
    weights = bundle.hashes[bundle.decoder_path.name]
    return f"repack {weights}, {options.gpu_layers or 0} layers on a GPU"


def decode_little(directory: str, options: dict[str, Any]) -> None:
    """Load a decoder and use it as every question does: several tokens at once, and one alone."""
    bundle = read_bundle(directory)
    with Decoder(bundle.decoder_path, bundle.manifest, DecoderOptions(**options)) as decoder:
        size = decoder.vocabulary.size
        decoder.decode_tokens([token % size for token in range(min(_TOKENS, decoder.context_size - 1))])
        decoder.decode_tokens([0])


def _reason(result: Result) -> str:
    return f"; it said: {result.said}" if result.said else ""
