"""Finds words of a fixed set in a text, in a time that does not grow with their number.

An expression of alternatives tries them all at each place, and a fine-tune may have added tens of thousands of tokens.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator


class LongestMatch:
    """The leftmost of some words each time, and of those that begin there the longest."""

    def __init__(self, words: Collection[str]):
        """`words` are of at least one character each."""
        self._words = frozenset(words)
        lengths: dict[str, set[int]] = {}
        for word in self._words:
            lengths.setdefault(word[0], set()).add(len(word))
        self._lengths = {first: sorted(found, reverse=True) for first, found in lengths.items()}
        self._first = re.compile(f"[{re.escape(''.join(lengths))}]") if lengths else None

    def find(self, text: str) -> Iterator[tuple[int, int]]:
        """Where words begin and end, none within another."""
        place = 0
        while self._first and (found := self._first.search(text, place)):
            start = found.start()
            for length in self._lengths[text[start]]:
                word = text[start : start + length]  # at the end of the text a shorter one
                if word in self._words:
                    place = start + len(word)
                    yield start, place
                    break
            else:
                place = start + 1
