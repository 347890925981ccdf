from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from ayaedge import AyaEdgeError, CancelledError
from ayaedge.bundle import read_manifest
from ayaedge.decoder.vocabulary import Vocabulary, open_vocabulary
from ayaedge.grammar import matcher as matcher_module
from ayaedge.grammar.matcher import GrammarVocabulary, Matcher
from ayaedge.grammar.schema import grammar_text
from ayaedge.manifest import TextToken, Tokens
from grammar_machine import DEMO, of_schema

TOKENS = read_manifest(DEMO).tokens


@pytest.fixture(scope="module")
def vocabulary() -> Iterator[Vocabulary]:
    with open_vocabulary(DEMO / "decoder.gguf") as found:
        yield found


def forms(vocabulary: Vocabulary, tokens: Tokens = TOKENS) -> GrammarVocabulary:
    return GrammarVocabulary(vocabulary.size, vocabulary.piece, vocabulary.tokenize, tokens)


def of_gbnf(vocabulary: Vocabulary, text: str, tokens: Tokens = TOKENS) -> Matcher:
    grammar = grammar_text(grammar=text)
    assert grammar is not None
    return Matcher(grammar, forms(vocabulary, tokens))


def test_added_tokens_are_text_only_where_they_are_shown(vocabulary: Vocabulary) -> None:
    (letter,) = vocabulary.tokenize("a")
    shown = replace(TOKENS, texts=(TextToken("a", letter),))
    unseen = replace(shown, hidden=(*TOKENS.hidden, letter))
    marker = replace(TOKENS, special=TOKENS.special | {"a": letter})
    for changed, allowed in ((TOKENS, True), (shown, True), (unseen, False), (marker, False)):
        found = of_gbnf(vocabulary, 'root ::= "a"', changed)
        found._begun = True
        assert found.allowed()[letter] == allowed


def test_only_what_a_grammar_allows_is_taken(vocabulary: Vocabulary) -> None:
    rules = of_gbnf(vocabulary, 'root ::= "a" "b"')
    a, b = (vocabulary.tokenize(letter)[0] for letter in "ab")
    start, end, stop = (
        TOKENS.special[name] for name in ("<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|END_OF_TURN_TOKEN|>")
    )
    assert not rules.take(stop)
    assert rules.take(start)  # what the model writes before its answer
    assert not rules.take(start)
    assert not rules.take(b)
    assert rules.take(a)
    assert not any(map(rules.take, (a, start, end, stop)))
    assert not rules.may_end
    assert rules.take(b)
    assert rules.may_end
    assert rules.take(end)
    assert rules.take(stop)
    assert not rules.take(a)


def test_nothing_is_written_behind_the_end(vocabulary: Vocabulary) -> None:
    rules = of_gbnf(vocabulary, "root ::= [a-z]+")
    (letter,) = vocabulary.tokenize("a")
    assert rules.take(letter)
    assert rules.take(TOKENS.special["<|END_RESPONSE|>"])
    assert not rules.take(letter)
    assert not rules.allowed()[letter]


def test_no_added_token_is_text_to_a_grammar(vocabulary: Vocabulary) -> None:
    rules = of_gbnf(vocabulary, r'root ::= "\"" [^"]* "\""')
    assert rules.take(vocabulary.tokenize('"')[0])
    assert not any(map(rules.take, TOKENS.special.values()))
    allowed = set(np.flatnonzero(rules.allowed()).tolist())
    assert not allowed & {*TOKENS.special.values(), *TOKENS.hidden, *TOKENS.stop}
    assert len(allowed) > 1000


def test_every_stop_token_ends_an_answer(vocabulary: Vocabulary) -> None:
    (other,) = vocabulary.tokenize("z")
    tokens = replace(TOKENS, stop=(*TOKENS.stop, other))
    for stop in tokens.stop:
        rules = of_gbnf(vocabulary, 'root ::= "a"', tokens)
        assert not rules.take(stop)
        assert rules.take(vocabulary.tokenize("a")[0])
        assert rules.allowed()[stop]
        assert rules.take(stop)


def test_what_must_come_is_told_and_taken(vocabulary: Vocabulary) -> None:
    schema = {
        "type": "object",
        "properties": {"invoice number": {"const": "abc"}},
        "required": ["invoice number"],
    }
    rules = Matcher(of_schema(schema), forms(vocabulary))
    assert rules.forced() == ()  # the model may mark where its answer begins
    assert all(map(rules.take, vocabulary.tokenize('{"')))
    forced = rules.forced()
    assert b"".join(map(vocabulary.piece, forced)).decode().startswith("invoice")
    written = '{"' + b"".join(map(vocabulary.piece, forced)).decode()
    rest = '{"invoice number": "abc"}'.removeprefix(written)
    assert all(map(rules.take, vocabulary.tokenize(rest)))
    assert rules.may_end
    assert rules.forced() == ()


def test_a_vocabulary_is_read_once_whichever_threads_ask(vocabulary: Vocabulary) -> None:
    asked: list[int] = []

    def piece(token: int) -> bytes:
        asked.append(token)
        return vocabulary.piece(token)

    found = GrammarVocabulary(vocabulary.size, piece, vocabulary.tokenize, TOKENS)
    assert asked == []
    threads = [threading.Thread(target=found.made, args=(lambda: None,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(asked) == vocabulary.size


def test_reading_a_vocabulary_can_be_cancelled(
    vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matcher_module, "_AT_ONCE", 100)
    looks: list[int] = []

    def check() -> None:
        looks.append(1)
        if len(looks) == 3:
            raise CancelledError

    found = forms(vocabulary)
    with pytest.raises(CancelledError):
        found.made(check)
    assert len(looks) == 3
    assert found.made(lambda: None) is not None


def test_a_parser_that_gives_up_says_so(vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matcher_module, "_MOST_ITEMS", 3)
    rules = of_gbnf(vocabulary, 'root ::= root "+" root | "(" root ")" | [0-9] [0-9]?')
    with pytest.raises(AyaEdgeError, match="too ambiguous to be followed"):
        for token in vocabulary.tokenize("1+(2+3)+4"):
            rules.take(token)
            rules.allowed()
