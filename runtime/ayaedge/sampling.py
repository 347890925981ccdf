"""Logits to text: llama.cpp's sampler chain, and tokens to characters as they come."""

from __future__ import annotations

import codecs
import math
import secrets
from collections.abc import Callable, Container
from dataclasses import dataclass
from types import TracebackType

from ayaedge import llama
from ayaedge.decoder import Decoder, Vocabulary
from ayaedge.errors import AyaEdgeError, check_options, whole_number


@dataclass(frozen=True)
class SamplingOptions:
    """How the next token is chosen."""

    temperature: float = 0.0
    """0 always takes the most likely token; the model card's examples use 0.3."""
    top_p: float = 1.0
    """Keep the most likely tokens that together reach this probability; 1 keeps all."""
    top_k: int = 0
    """Keep this many of the most likely tokens; 0 keeps all."""
    seed: int | None = None
    """Of the random numbers, 0 to 2**32 - 1; None draws one."""

    def __post_init__(self) -> None:
        check_options(
            _number("temperature", self.temperature, "0 or more", lambda value: 0 <= value < math.inf),
            _number("top_p", self.top_p, "above 0 and at most 1", lambda value: 0 < value <= 1),
            whole_number("top_k", self.top_k, least=0, most=2**31 - 1),
            whole_number("seed", self.seed, least=0, most=2**32 - 1, optional=True),
        )


def _number(name: str, value: object, limits: str, fits: Callable[[float], bool]) -> str | None:
    if isinstance(value, (int, float)) and fits(value):
        return None
    return f"{name} must be {limits}, not {value!r}"


class Sampler:
    """A llama.cpp sampler chain: top-k, top-p, temperature, then a draw; or the most likely token alone."""

    def __init__(self, options: SamplingOptions):
        self._llama = llama.library()
        self._chain = self._llama.llama_sampler_chain_init(self._llama.llama_sampler_chain_default_params())
        for stage in self._stages(options):
            self._llama.llama_sampler_chain_add(self._chain, stage)

    def __enter__(self) -> Sampler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._llama.llama_sampler_free(self._chain)

    def sample(self, decoder: Decoder) -> int:
        """Choose the token that follows the decoder's last position."""
        if not decoder.has_logits:  # llama.cpp would abort the process
            raise AyaEdgeError("there is nothing to sample from before the first token")
        return int(self._llama.llama_sampler_sample(self._chain, decoder.handle, -1))

    def _stages(self, options: SamplingOptions) -> list[object]:
        lib = self._llama
        if options.temperature == 0:
            return [lib.llama_sampler_init_greedy()]
        stages = []
        if options.top_k:
            stages.append(lib.llama_sampler_init_top_k(options.top_k))
        if options.top_p < 1:
            stages.append(lib.llama_sampler_init_top_p(options.top_p, 1))
        seed = secrets.randbits(32) if options.seed is None else options.seed
        return [
            *stages,
            lib.llama_sampler_init_temp(options.temperature),
            lib.llama_sampler_init_dist(seed),
        ]


class TextStream:
    """Tokens in, text out; a character that spans tokens comes out whole, hidden tokens not at all."""

    def __init__(self, vocabulary: Vocabulary, hidden: Container[int]):
        self._vocabulary, self._hidden = vocabulary, hidden
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The characters that this token completes."""
        return "" if token in self._hidden else self._decoder.decode(self._vocabulary.piece(token))

    def finish(self) -> str:
        """What is left of an unfinished character: a replacement character, or nothing."""
        return self._decoder.decode(b"", final=True)
