"""Logits to tokens: llama.cpp's sampler chain and grammar, and log-probabilities.

A grammar over 256,000 tokens takes tens of milliseconds, testing one token takes none. So a token is chosen first and
tested, and only if the grammar rejects it are others considered (as in llama.cpp's common/sampling.cpp).
"""

from __future__ import annotations

import ctypes
import math
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from ayaedge import llama
from ayaedge.checks import check_options, make_plain, real_number, whole_number
from ayaedge.decoder.decoder import Decoder
from ayaedge.decoder.vocabulary import Vocabulary
from ayaedge.errors import AyaEdgeError, BackendError, InvalidOptionError
from ayaedge.manifest import Tokens
from ayaedge.text.text_stream import TokenLogprob

MOST_LOGPROBS = 20
_MOST_SEED = 2**32 - 2
"""The next one asks llama.cpp for a random seed."""
_LEAST_TEMPERATURE = 1e-6
"""Below it logits divided by the temperature overflow; the draw is the likeliest token long before."""
_FIRST_CANDIDATES = 64
"""Likeliest tokens that a grammar is tried on before all."""
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
        if self._grammar is not None:
            self._grammar.close()

    def sample(self, decoder: Decoder) -> int:
        """Choose the token that follows the decoder's last position."""
        if not decoder.has_logits:  # llama.cpp would abort the process
            raise AyaEdgeError("there is nothing to sample from before the first token")
        if self._chain is None:
            token = decoder.likeliest()[-1]
        else:
            token = int(self._llama.llama_sampler_sample(self._chain, decoder.handle, -1))
        if self._grammar is not None and not self._grammar.take(token):
            token = self._allowed_token(self._grammar, decoder.last_logits())
            self._grammar.take(token)
        return token

    def _allowed_token(self, grammar: Grammar, logits: NDArray[np.float32]) -> int:
        """The likeliest token that the grammar allows, or one drawn from all that it allows."""
        if self._chain is None:
            count = min(_FIRST_CANDIDATES, len(logits))
            first = np.argpartition(logits, -count)[-count:]
            allowed = grammar.allowed(first, logits[first])
            if len(allowed):
                return int(allowed["id"][allowed["logit"].argmax()])
        allowed = grammar.allowed(np.arange(len(logits)), logits)
        if not len(allowed):
            raise AyaEdgeError("the grammar demands something here that this model's tokens cannot spell")
        if self._chain is None:
            return int(allowed["id"][allowed["logit"].argmax()])
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


class Grammar:
    """What may come next under a GBNF grammar; `take` moves on.

    Added tokens (turn markers and the like) are no text and never allowed inside it; those that the model writes around
    its answer, and the end, are left alone before it begins and once it may end.
    """

    def __init__(self, text: str, vocabulary: Vocabulary, tokens: Tokens) -> None:
        self._llama = llama.library()
        self._hidden, self._stop = frozenset(tokens.hidden), frozenset(tokens.stop)
        unseen = self._hidden.union(tokens.special.values()) - self._stop
        self._special = np.asarray(sorted(unseen), np.int64)
        self._begun = False
        llama.forget_errors()
        self._sampler = self._llama.llama_sampler_init_grammar(vocabulary.handle, text.encode(), b"root")
        if not self._sampler:
            raise InvalidOptionError(f"llama.cpp does not accept the grammar: {llama.recent_errors()}")
        try:
            self._end = self._ending(vocabulary)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Free it."""
        sampler, self._sampler = self._sampler, None
        if sampler:
            self._llama.llama_sampler_free(sampler)

    @property
    def may_end(self) -> bool:
        """Whether what was taken so far is complete."""
        return bool(len(self._apply(np.asarray([self._end]), np.zeros(1, np.float32))))

    def take(self, token: int) -> bool:
        """Move on by this token, if it is allowed here."""
        if token in self._hidden or token in self._stop:
            opens = (
                not self._begun and token not in self._stop
            )  # once: the model marks where its answer begins
            self._begun |= opens
            return opens or self.may_end
        if not len(self.allowed(np.asarray([token]), np.zeros(1, np.float32))):
            return False
        self._llama.llama_sampler_accept(self._sampler, token)
        self._begun = True
        return True

    def allowed(self, ids: NDArray[Any], logits: NDArray[np.float32]) -> NDArray[Any]:
        """Those of the tokens that may come next, with `id` and `logit`."""
        text = ~np.isin(ids, self._special)
        return self._apply(ids[text], logits[text])

    def _apply(self, ids: NDArray[Any], logits: NDArray[np.float32]) -> NDArray[Any]:
        """The candidates that llama.cpp does not reject; the array is not reordered by a grammar."""
        candidates = np.zeros(len(ids), _CANDIDATE)
        candidates["id"], candidates["logit"] = ids, logits
        if len(ids):
            array = _candidate_array(self._llama, candidates)
            self._llama.llama_sampler_apply(self._sampler, ctypes.byref(array))
        return candidates[candidates["logit"] > -np.inf]

    def _ending(self, vocabulary: Vocabulary) -> int:
        """A token that llama.cpp allows only where a grammar may end."""
        ends = [
            token for token in sorted(self._stop) if self._llama.llama_vocab_is_eog(vocabulary.handle, token)
        ]
        if not ends:
            raise BackendError(
                "llama.cpp does not know the stop tokens of this bundle: it cannot follow a grammar"
            )
        return ends[0]


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
