"""Added tokens that any text may hold, as the tags and names of a fine-tune, found as the reference finds them.

Follows Hugging Face's tokenizers: tokens of the raw text first, then those of the composed text between them, the
leftmost and longest each time. What only the template may write is not known here (`ayaedge.text.prompt`).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence

from ayaedge.manifest import TextToken
from ayaedge.text.longest_match import LongestMatch

_BLANKS = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
"""Unicode's White_Space, which differs from Python's."""
_BLANK = frozenset(_BLANKS)
_CIRCLED = re.compile("[\u24b6-\u24e9\U0001f130-\U0001f149\U0001f150-\U0001f169\U0001f170-\U0001f189]")
"""Letters among the symbols."""
_JOINERS = "\u200c\u200d"


class AddedTokens:
    """Splits texts at added tokens; `tokenize` gives the ids of what lies between them."""

    def __init__(self, tokens: Sequence[TextToken], tokenize: Callable[[str], list[int]]):
        self._tokenize = tokenize
        self._raw = _Finder({t.text: t for t in tokens if not t.normalized})
        self._composed = _Finder({_compose(t.text): t for t in tokens if t.normalized})

    def tokenize(self, text: str) -> list[int]:
        """Ids of a text, which need not be composed (NFC)."""
        ids: list[int] = []
        for between, raw in self._raw.split(text):
            for plain, composed in self._composed.split(_compose(between)):
                ids += self._tokenize(plain) if plain else []
                ids += [] if composed is None else [composed]
            ids += [] if raw is None else [raw]
        return ids


class _Finder:
    """Finds some tokens by their spelling in a text."""

    def __init__(self, tokens: dict[str, TextToken]):
        self._tokens = tokens
        self._words = LongestMatch(tokens)

    def split(self, text: str) -> Iterator[tuple[str, int | None]]:
        """Text between tokens and the id of the one that follows it, in turn; the last has none."""
        start = 0
        for first, last in self._words.find(text):
            token = self._tokens[text[first:last]]
            if first < start:  # blanks that the token before has taken
                continue
            if token.single_word and (
                _in_word(text[max(first - 1, 0) : first]) or _in_word(text[last : last + 1])
            ):
                continue
            if token.lstrip:
                first = start + len(text[start:first].rstrip(_BLANKS))
            while token.rstrip and text[last : last + 1] in _BLANK:
                last += 1
            yield text[start:first], token.id
            start = last
        yield text[start:], None


def _compose(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _in_word(character: str) -> bool:
    """Whether a character is of a word, as Unicode's rules for expressions say; not so for none."""
    if not character:
        return False
    category = unicodedata.category(character)
    return (
        category[0] in "LM"
        or category in ("Nd", "Nl", "Pc")
        or character in _JOINERS
        or _CIRCLED.match(character) is not None
    )
