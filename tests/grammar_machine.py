"""Walks through grammars with the demonstration's tokens: which texts they take, and random ones that they give."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np

import ayaedge
from ayaedge.bundle import read_manifest
from ayaedge.decoder.vocabulary import Vocabulary, open_vocabulary
from ayaedge.grammar.matcher import GrammarVocabulary, Matcher
from ayaedge.grammar.schema import grammar_text
from ayaedge.manifest import Tokens

DEMO = Path(ayaedge.__file__).parent / "demo"


class EndlessError(AssertionError):
    """A walk that came to no end."""


class Machine:
    """Grammars over the demonstration's vocabulary."""

    def __init__(self, vocabulary: Vocabulary, tokens: Tokens):
        self._vocabulary = vocabulary
        self._forms = GrammarVocabulary(vocabulary.size, vocabulary.piece, vocabulary.tokenize, tokens)
        self.stop = set(tokens.stop)
        self._hidden = sorted(set(tokens.hidden) - self.stop)
        self.pieces = [vocabulary.piece(token) for token in range(vocabulary.size)]

    def start(self, grammar: str | None) -> Matcher:
        assert grammar is not None
        return Matcher(grammar, self._forms)

    def accepts(self, grammar: str | None, text: str) -> bool:
        matcher = self.start(grammar)
        return all(map(matcher.take, self._vocabulary.tokenize(text))) and matcher.may_end

    def walk(self, grammar: str | None, chance: random.Random, length: int, most: int = 3000) -> str:
        """A random text of the grammar; after `length` tokens it takes the shortest way to the end."""
        matcher, data = self.start(grammar), b""
        for step in range(most):
            allowed = matcher.allowed()
            allowed[self._hidden] = False
            choices = np.flatnonzero(allowed).tolist()
            assert choices, f"a dead end after {data!r} in\n{grammar}"
            chance.shuffle(choices)
            if step >= length and chance.random() < 0.8:
                choices.sort(key=self._delay)
            if choices[0] in self.stop:
                assert matcher.may_end
                return data.decode()
            assert matcher.take(choices[0])
            data += self.pieces[choices[0]]
        raise EndlessError(f"no end after {data!r} in\n{grammar}")

    def _delay(self, token: int) -> int:
        """How far from the end a token leads, as a guess."""
        piece = self.pieces[token]
        if token in self.stop:
            return 0
        if piece in (b'"', b"}", b"]"):
            return 1
        return 3 if piece[:1] in (b"{", b"[", b",") else 2


@contextmanager
def demo_machine() -> Iterator[Machine]:
    with open_vocabulary(DEMO / "decoder.gguf") as vocabulary:
        yield Machine(vocabulary, read_manifest(DEMO).tokens)


def of_schema(schema: object) -> str:
    text = grammar_text(response_format={"type": "json_schema", "schema": schema})
    assert text is not None
    return text


def check(schema: Any, text: str) -> None:
    """The text is JSON, reads and writes without loss, and is valid."""
    value = json.loads(text, parse_constant=lambda name: name)
    text.encode()
    checker = jsonschema.FormatChecker(["date", "uuid", "ipv4", "ipv6", "email"])
    jsonschema.Draft202012Validator(schema, format_checker=checker).validate(value)
