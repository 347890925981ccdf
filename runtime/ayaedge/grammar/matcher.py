"""What may come next in an answer of a certain form, told by llguidance.

A grammar's text, as `schema.grammar_text` gives it, meets a model's tokens here. Choosing one is done in
`decoder.sampling`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ayaedge.errors import AyaEdgeError, InvalidOptionError
from ayaedge.manifest import Tokens

_AT_ONCE = 4096
"""Tokens that are spelled between two looks at a cancellation."""
_MOST_ITEMS, _MOST_FUEL, _MOST_STATES = 50_000, 200_000, 100_000
"""Work of the parser and of its lexer for one token: some 3 and 15 ms; and states that are kept, 2 kB each."""


class GrammarVocabulary:
    """A model's tokens as llguidance wants them: made when first used, once, by whichever thread comes first."""

    def __init__(
        self, size: int, piece: Callable[[int], bytes], tokenize: Callable[[str], list[int]], tokens: Tokens
    ) -> None:
        self.size, self.tokens = size, tokens
        """Number of tokens, padding included."""
        self.unseen = sorted({*tokens.hidden, *tokens.special.values(), *tokens.stop})
        """Tokens that are no text."""
        self._piece, self._tokenize = piece, tokenize
        self._lock = threading.Lock()
        self._made: Any = None

    def made(self, check: Callable[[], None]) -> Any:
        """The LLTokenizer; `check` is called now and then while it is made, and may raise."""
        with self._lock:
            if self._made is None:
                self._made = self._make(check)
        return self._made

    def _make(self, check: Callable[[], None]) -> Any:
        from llguidance import LLTokenizer, TokenizerWrapper

        pieces = []
        for start in range(0, self.size, _AT_ONCE):
            check()
            pieces += [self._piece(token) for token in range(start, min(start + _AT_ONCE, self.size))]
        stop = list(self.tokens.stop)
        source = _Source(pieces, self.unseen, stop[0], self._tokenize)
        return LLTokenizer(TokenizerWrapper(source), n_vocab=self.size, eos_token=stop)


class _Source:
    """What llguidance's wrapper asks a tokenizer for."""

    bos_token_id = None

    def __init__(
        self, tokens: list[bytes], special: list[int], stop: int, tokenize: Callable[[str], list[int]]
    ) -> None:
        self.tokens, self.special_token_ids, self.eos_token_id = tokens, special, stop
        self._tokenize = tokenize

    def __call__(self, text: str) -> list[int]:
        return self._tokenize(text)


class Matcher:
    """An answer under a grammar as it grows; `take` moves on.

    Added tokens (turn markers and the like) are no text and never allowed inside it; those that the model writes around
    its answer, and the end, are left alone before it begins and once it may end.
    """

    def __init__(
        self, grammar: str, vocabulary: GrammarVocabulary, check: Callable[[], None] = lambda: None
    ) -> None:
        from llguidance import LLMatcher, LLParserLimits

        self._vocabulary = vocabulary
        tokens = vocabulary.tokens
        self._stop = frozenset(tokens.stop)
        self._around = frozenset(tokens.hidden) | self._stop
        self._begun = self._over = False
        limits = LLParserLimits(
            step_max_items=_MOST_ITEMS, step_lexer_fuel=_MOST_FUEL, max_lexer_states=_MOST_STATES,
            verbose_errors=False,
        )  # fmt: skip
        self._matcher = LLMatcher(vocabulary.made(check), grammar, log_level=0, limits=limits)
        if self._matcher.is_error():
            raise InvalidOptionError(f"this grammar cannot be followed: {self._matcher.get_error()}")

    @property
    def may_end(self) -> bool:
        """Whether what was taken so far is complete."""
        return self._over or bool(self._matcher.is_accepting())

    def take(self, token: int) -> bool:
        """Move on by this token, if it is allowed here."""
        if token in self._around:
            opens = (
                not self._begun and token not in self._stop
            )  # once: the model marks where its answer begins
            self._over |= not opens and self.may_end
            self._begun |= opens
            return opens or self._over
        if self._over or self._matcher.validate_tokens([token]) != 1:
            self._check()
            return False
        self._matcher.consume_token(token)
        self._check()
        self._begun = True
        return True

    def allowed(self) -> NDArray[np.bool_]:
        """Which tokens may come next, (vocabulary,)."""
        found = np.zeros(self._vocabulary.size, bool)
        if not self._over:
            bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
            self._check()
            found[:] = np.unpackbits(bits, bitorder="little", count=len(found))
            found[self._vocabulary.unseen] = False
        if self.may_end:
            found[list(self._around)] = True
        if not self._begun:
            found[list(self._around - self._stop)] = True
        return found

    def forced(self) -> Sequence[int]:
        """The tokens that must come next, taken already: where the grammar leaves one text only.

        Empty before the answer has begun, since the model may mark that first.
        """
        if not self._begun or self._over or self._matcher.is_stopped():
            return ()
        tokens: list[int] = self._matcher.compute_ff_tokens()
        taken = self._matcher.try_consume_tokens(tokens) if tokens else 0
        self._check()
        return tokens[:taken]

    def _check(self) -> None:
        """A parser that gave up must not look like a grammar that allows nothing."""
        if self._matcher.is_error():
            reason = " ".join(str(self._matcher.get_error()).split())[:200]
            raise AyaEdgeError(
                f"the grammar is too ambiguous to be followed here: llguidance stopped with {reason!r}. "
                "Let alternatives differ at their beginning, or use fewer of them"
            )
