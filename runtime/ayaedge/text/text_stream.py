"""Tokens to text as they come: pieces that never cut what a reader sees as one character, up to a stop string.

Knows the bytes of tokens, Unicode's grapheme clusters and strings that end the text. Knows no model, no vocabulary
and no sampling: tokens, and their probabilities where wanted, are handed in. Work per token depends on that token,
the cluster before it and the stop strings, never on how much text came before.
"""

from __future__ import annotations

import codecs
import unicodedata
from collections import deque
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass

_LONGEST_CLUSTER = 64
"""Code points after which a grapheme cluster is split. Text that keeps to Unicode's Stream-Safe Text Format (UAX 15)
has at most 30 combining marks in a row, and no emoji sequence is half as long; what is longer is no writing."""
_LONGEST_WAIT = 4 * _LONGEST_CLUSTER
"""Tokens without a certain border after which text is given out up to a border inside a token. The longest cluster,
in tokens of one byte, stays below it."""


@dataclass(frozen=True)
class TokenLogprob:
    """A token and how likely the model held it to be."""

    id: int
    data: bytes
    """What it stands for in text, perhaps part of a character."""
    logprob: float
    """Natural logarithm of its probability, before temperature and filters."""
    top: tuple[TokenLogprob, ...] = ()
    """The likeliest tokens at this place, likeliest first; their own `top` is empty."""

    @property
    def text(self) -> str:
        """`data` as text; incomplete characters are replaced by U+FFFD."""
        return self.data.decode("utf-8", "replace")


class Piece(str):
    """A part of an answer: a string that knows its tokens."""

    ids: tuple[int, ...]
    """The tokens whose last character lies in this piece; hidden ones are in none."""
    logprobs: tuple[TokenLogprob, ...]
    """Those given with `ids`, in the same order; () unless asked for."""

    def __new__(cls, text: str, ids: Iterable[int] = (), logprobs: Iterable[TokenLogprob] = ()) -> Piece:
        piece = super().__new__(cls, text)
        piece.ids, piece.logprobs = tuple(ids), tuple(logprobs)
        return piece

    @property
    def text(self) -> str:
        """The text alone, as a plain string."""
        return str(self)


_Token = tuple[int, TokenLogprob | None]


class TextStream:
    """Tokens in, pieces of text out; no border between pieces lies inside a grapheme cluster.

    A piece is the text of whole tokens. It comes out when the next visible token, or the end, shows that its last
    cluster is complete; a line break at its end shows it at once. Two things cut a token: a stop string that begins
    inside it, and a run of 256 tokens of which none ends between two clusters. The text before the cut comes
    out then, but the token is not in that piece's `ids` and `logprobs`: it belongs to the piece that holds its last
    character, or to none if a stop string swallows that one. Only the last piece can be empty: if tokens are left that
    have no text.
    """

    def __init__(
        self, piece_of: Callable[[int], bytes], *, hidden: Container[int] = (), stop: Sequence[str] = ()
    ):
        """Take the bytes of tokens from `piece_of`, none from `hidden` ones, and end at any string of `stop`.

        A stop string is found as it is given, in NFC and in NFD. The one that begins first counts.
        """
        import regex

        assert not isinstance(stop, str) and all(stop), "stop strings are checked where they are given"
        self._clusters = regex.compile(r"\X")
        self._piece_of, self._hidden = piece_of, hidden
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        spelled = {spelling: string for string in stop for spelling in _spellings(string)}
        self._given = {**spelled, **{string: string for string in stop}}
        self._search = _Search(self._given)
        self._stopped = self._finished = False

        # Positions count code points from the beginning of the answer.
        self._text = ""  # what came and was not given out
        self._start = 0  # of self._text
        self._cluster = 0  # where the last cluster of self._text that was looked at begins
        self._token_end = 0  # the last place where a token ended with a complete character
        self._last_border = 0
        self._borders: deque[int] = deque()  # where the text may be cut and was not yet
        self._waited = 0  # tokens since the last border was found
        self._ended: deque[tuple[int, _Token]] = deque()  # with the position where each ends
        self._unfinished: list[_Token] = []  # those whose last character is incomplete

    @property
    def stopped(self) -> bool:
        """A stop string came: nothing may be pushed any more."""
        return self._stopped

    @property
    def stop_string(self) -> str | None:
        """The stop string that came, as it was given."""
        return self._given[self._search.string] if self._stopped else None

    def push(self, token: int, logprob: TokenLogprob | None = None) -> Piece | None:
        """Append a token; the text that is certain now, if any."""
        assert not self._stopped and not self._finished, "nothing follows a stop string or the end"
        if token in self._hidden:
            return None
        text = self._decoder.decode(self._piece_of(token))
        self._waited += 1
        if text:
            self._append(text)
        self._unfinished.append((token, logprob))
        if not self._decoder.getstate()[0]:
            self._token_end = self._end
            self._place(self._end)
        if self._search.decided:
            return self._stop()
        if not self._unfinished and text.endswith("\n"):  # nothing attaches to it
            self._cluster = self._end
            self._add_border()
        return self._take_certain()

    def finish(self) -> Piece | None:
        """What is still held, cut before a stop string; an unfinished character becomes U+FFFD."""
        if self._stopped:
            return None
        self._finished = True
        if rest := self._decoder.decode(b"", final=True):
            self._append(rest)
        if self._search.found is not None:
            return self._stop()
        return self._take(self._end)

    @property
    def _end(self) -> int:
        return self._start + len(self._text)

    def _append(self, text: str) -> None:
        """Add text that is not empty, and find out whether the text before it could be cut from it."""
        end = self._end
        self._text += text
        self._search.feed(text)
        self._place(end + 1)  # unfinished bytes are always those of one character
        overdue = self._waited > _LONGEST_WAIT
        if overdue or self._token_end == end:
            self._find_cluster(end)
            if overdue or self._cluster == end:
                self._add_border()

    def _find_cluster(self, position: int) -> None:
        """Move on to the cluster of the character at `position`: whether one begins there depends on none behind."""
        looked_at = self._text[self._cluster - self._start : position + 1 - self._start]
        self._cluster += [cluster.start() for cluster in self._clusters.finditer(looked_at)][-1]
        if position - self._cluster > _LONGEST_CLUSTER:
            self._cluster = position

    def _add_border(self) -> None:
        if self._cluster > self._last_border:
            self._last_border = self._cluster
            self._borders.append(self._cluster)
            self._waited = 0

    def _place(self, end: int) -> None:
        """Let the unfinished tokens end at a position."""
        self._ended.extend((end, token) for token in self._unfinished)
        self._unfinished.clear()

    def _take_certain(self) -> Piece | None:
        border = None
        while self._borders and self._borders[0] <= self._search.candidate:
            border = self._borders.popleft()
        return None if border is None else self._take(border)

    def _stop(self) -> Piece | None:
        """The text before the stop string that was found; all behind is dropped."""
        assert self._search.found is not None
        self._stopped = True
        return self._take(self._search.found)

    def _take(self, position: int) -> Piece | None:
        """Cut the text before a position off, with the tokens that end there."""
        length = position - self._start
        text, self._text, self._start = self._text[:length], self._text[length:], position
        tokens = []
        while self._ended and self._ended[0][0] <= position:
            tokens.append(self._ended.popleft()[1])
        if not text and not tokens:
            return None
        logprobs = (logprob for _, logprob in tokens if logprob is not None)
        return Piece(text, (token for token, _ in tokens), logprobs)


def _spellings(string: str) -> set[str]:
    """The given one counts too: normalising changes the order in which Arabic and Hebrew marks are usually typed."""
    return {string, unicodedata.normalize("NFC", string), unicodedata.normalize("NFD", string)}


class _Search:
    """Looks for the string that begins first in text that comes in parts: Aho and Corasick's automaton (1975).

    Node 0 of its tree is the empty beginning, each other one a beginning of some string; the current node is the
    longest beginning with which the text ends.
    """

    def __init__(self, strings: Iterable[str]):
        self._children: list[dict[str, int]] = [{}]
        self._depth = [0]
        self._longest = [""]  # the longest string with which the node ends
        for string in strings:
            self._insert(string)
        self._shorter = [0] * len(self._depth)  # the longest other node with which the node ends
        self._link()
        self._node = self._position = 0
        self.found: int | None = None
        """Where the string begins that begins first of those that are complete."""
        self.string = ""
        """That string."""

    @property
    def candidate(self) -> int:
        """Where the longest beginning of a string begins with which the text ends; its end if there is none."""
        return self._position - self._depth[self._node]

    @property
    def decided(self) -> bool:
        """Whether a string was found and none that begins before it can become complete."""
        return self.found is not None and self.found <= self.candidate

    def feed(self, text: str) -> None:
        """Append text."""
        if not self._children[0]:
            self._position += len(text)
            return
        for character in text:
            self._node = self._next(self._node, character)
            self._position += 1
            if string := self._longest[self._node]:
                begin = self._position - len(string)
                if self.found is None or begin < self.found:
                    self.found, self.string = begin, string

    def _next(self, node: int, character: str) -> int:
        while node and character not in self._children[node]:
            node = self._shorter[node]
        return self._children[node].get(character, 0)

    def _insert(self, string: str) -> None:
        node = 0
        for character in string:
            if character not in self._children[node]:
                self._children[node][character] = len(self._depth)
                self._children.append({})
                self._depth.append(self._depth[node] + 1)
                self._longest.append("")
            node = self._children[node][character]
        self._longest[node] = string

    def _link(self) -> None:
        """Breadth first: what a node falls back to is shorter, and linked before it."""
        queue = deque(self._children[0].values())
        while queue:
            node = queue.popleft()
            self._longest[node] = self._longest[node] or self._longest[self._shorter[node]]
            for character, child in self._children[node].items():
                self._shorter[child] = self._next(self._shorter[node], character)
                queue.append(child)
