"""Words are found as an expression of alternatives finds them, longest first, however many there are."""

from __future__ import annotations

import random
import re
import time

from ayaedge.manifest import TextToken
from ayaedge.text.added_tokens import AddedTokens
from ayaedge.text.longest_match import LongestMatch


def test_words_are_those_that_an_expression_finds() -> None:
    chance = random.Random(0)
    for _ in range(300):
        words = {
            "".join(chance.choices("ab]^-\\<é", k=chance.randint(1, 4))) for _ in range(chance.randint(1, 9))
        }
        text = "".join(chance.choices("ab]^-\\<éc", k=40))
        pattern = re.compile("|".join(map(re.escape, sorted(words, key=len, reverse=True))))
        assert list(LongestMatch(words).find(text)) == [found.span() for found in pattern.finditer(text)]
    assert list(LongestMatch(()).find("text")) == []


def seconds(count: int) -> float:
    """Processor time of finding so many added tokens, each of which is there once, with every flag."""
    tokens = [
        TextToken(f"<extra_{n}>", n, n % 2 == 0, single_word=True, lstrip=True, rstrip=True)
        for n in range(count)
    ]
    text = "  ".join(token.text for token in tokens)
    started = time.process_time()
    ids = AddedTokens(tokens, lambda text: [-1] * len(text)).tokenize(text)
    assert ids == list(range(count))
    return time.process_time() - started


def test_the_time_of_added_tokens_does_not_grow_with_their_square() -> None:
    seconds(100)
    assert seconds(60_000) < 250 * max(seconds(2_000), 0.004)
