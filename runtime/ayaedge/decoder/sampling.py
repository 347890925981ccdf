"""Logits to tokens: llama.cpp's sampler chain, a grammar beside it, and log-probabilities.

A token is chosen first and tested, and only if the grammar rejects it are others considered (as in llama.cpp's
common/sampling.cpp): most of the time the model wants what the grammar allows.
"""

from __future__ import annotations

import ctypes
import math
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, TypedDict

import numpy as np
from numpy.typing import NDArray

from ayaedge import llama
from ayaedge.checks import check_options, make_plain, real_number, whole_number
from ayaedge.errors import AyaEdgeError
from ayaedge.text.text_stream import TokenLogprob

MOST_LOGPROBS = 20
_MOST_SEED = 2**32 - 2
"""The next one asks llama.cpp for a random seed."""
_LEAST_TEMPERATURE = 1e-6
"""Below it logits divided by the temperature overflow; the draw is the likeliest token long before."""
_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
"""llama_token_data of llama.h."""


@dataclass(frozen=True)
class SamplingOptions:
    """How the next token is chosen."""

    temperature: float = 0.0
    """0 always takes the most likely token; the model card's examples use 0.3."""
    top_k: int = 0
    """Keep this many of the most likely tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the most likely tokens that together reach this probability; 1 keeps all."""
    min_p: float = 0.0
    """Keep the tokens that have at least this share of the most likely one's probability; 0 keeps all."""
    seed: int | None = None
    """Of the random numbers, 0 to 2**32 - 2; None draws one."""

    def __post_init__(self) -> None:
        make_plain(self)
        check_options(
            real_number("temperature", self.temperature, least=0, limits="0 or more"),
            real_number("top_p", self.top_p, above=0, most=1, limits="above 0 and at most 1"),
            real_number("min_p", self.min_p, least=0, most=1, limits="from 0 to 1"),
            whole_number("top_k", self.top_k, least=0, most=2**31 - 1),
            whole_number("seed", self.seed, least=0, most=_MOST_SEED, optional=True),
        )
        for name in ("temperature", "top_p", "min_p"):
            object.__setattr__(self, name, float(getattr(self, name)))


class SamplingKeywords(TypedDict, total=False):
    """The fields of `SamplingOptions`, as keywords of every way to ask."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int | None


class Grammar(Protocol):
    """What may come next; `grammar.matcher.Matcher` is one."""

    def take(self, token: int) -> bool:
        """Move on by this token, if it is allowed here."""

    def allowed(self) -> NDArray[np.bool_]:
        """Which tokens may come next, (vocabulary,)."""

    def forced(self) -> Sequence[int]:
        """The tokens that must come next, taken already."""


class LogitsPlace(Protocol):
    """Where an answer's next token is chosen: the last position of a `Decoder`, or a lane of `decoder.lanes`."""

    @property
    def handle(self) -> Any:
        """The llama_context."""

    @property
    def row(self) -> int:
        """Which of the logits that the context holds."""

    @property
    def has_logits(self) -> bool:
        """Whether there are any."""

    def likeliest(self) -> list[int]:
        """The token with the highest logit, as the last of a list."""

    def last_logits(self) -> NDArray[np.float32]:
        """The logits, (vocabulary,)."""

    def check_logits(self) -> None:
        """Raise BackendError unless all of them are finite."""


class Sampler:
    """A llama.cpp sampler chain: top-k, top-p, min-p, temperature, then a draw; or the most likely token alone."""

    def __init__(self, options: SamplingOptions, grammar: Grammar | None = None):
        self._llama = llama.library()
        self._grammar = grammar
        self._chain: Any = None
        if options.temperature > _LEAST_TEMPERATURE:
            self._chain = self._llama.llama_sampler_chain_init(
                self._llama.llama_sampler_chain_default_params()
            )
            for stage in self._stages(options):
                self._llama.llama_sampler_chain_add(self._chain, stage)

    def __enter__(self) -> Sampler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._chain is not None:
            self._llama.llama_sampler_free(self._chain)

    def forced(self) -> Sequence[int]:
        """The tokens that the grammar demands next, whatever the logits are; they count as chosen."""
        return () if self._grammar is None else self._grammar.forced()

    def sample(self, place: LogitsPlace) -> int:
        """Choose the token that follows a place."""
        if not place.has_logits:  # llama.cpp would abort the process
            raise AyaEdgeError("there is nothing to sample from before the first token")
        if self._chain is None:
            token = place.likeliest()[-1]
        else:
            place.check_logits()
            token = int(self._llama.llama_sampler_sample(self._chain, place.handle, place.row))
        if self._grammar is not None and not self._grammar.take(token):
            token = self._allowed_token(self._grammar, place.last_logits())
            self._grammar.take(token)
        return token

    def _allowed_token(self, grammar: Grammar, logits: NDArray[np.float32]) -> int:
        """The likeliest token that the grammar allows, or one drawn from all that it allows."""
        mask = grammar.allowed()
        ids = np.flatnonzero(mask)
        if not len(ids):
            raise AyaEdgeError("the grammar demands something here that this model's tokens cannot spell")
        if self._chain is None:
            return int(ids[logits[ids].argmax()])
        allowed = np.zeros(len(ids), _CANDIDATE)
        allowed["id"], allowed["logit"] = ids, logits[ids]
        candidates = _candidate_array(self._llama, allowed)
        self._llama.llama_sampler_apply(self._chain, ctypes.byref(candidates))
        return int(candidates.data[candidates.selected].id)

    def _stages(self, options: SamplingOptions) -> list[object]:
        lib = self._llama
        stages = []
        if options.top_k:
            stages.append(lib.llama_sampler_init_top_k(options.top_k))
        if options.top_p < 1:
            stages.append(lib.llama_sampler_init_top_p(options.top_p, 1))
        if options.min_p > 0:
            stages.append(lib.llama_sampler_init_min_p(options.min_p, 1))
        seed = secrets.randbelow(_MOST_SEED + 1) if options.seed is None else options.seed
        return [
            *stages,
            lib.llama_sampler_init_temp(options.temperature),
            lib.llama_sampler_init_dist(seed),
        ]


def _candidate_array(library: Any, candidates: NDArray[Any]) -> Any:
    """A llama_token_data_array over this memory."""
    pointer = candidates.ctypes.data_as(ctypes.POINTER(library.llama_token_data))
    array = library.llama_token_data_array(data=pointer, size=len(candidates), selected=-1, sorted=False)
    array.keep = candidates  # as long as the array lives
    return array


def token_logprob(
    logits: NDArray[np.float32], token: int, count: int, piece_of: Callable[[int], bytes]
) -> TokenLogprob:
    """The natural logarithm of a token's probability, and those of the `count` likeliest; from logits (vocabulary,)."""
    values = logits.astype(np.float64)
    top = values.max()
    norm = top + math.log(np.exp(values - top).sum())
    likeliest: list[int] = []
    if count:
        likeliest = [int(i) for i in np.argpartition(values, -count)[-count:]]
        likeliest.sort(key=lambda i: (-values[i], i))

    def entry(place: int, others: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        return TokenLogprob(place, piece_of(place), float(values[place] - norm), others)

    return entry(token, tuple(entry(place) for place in likeliest))
