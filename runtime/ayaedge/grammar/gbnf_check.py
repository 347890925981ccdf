"""Refusing grammars that llama.cpp cannot bear, before it sees them.

Its parser takes grammars with which it ends the process, never returns, or means something else than what is written:
deep parentheses, recursion at the left, counts that run backwards or beyond 2000, characters that no text has. This
reads GBNF as llama.cpp does, which makes groups and repetitions into rules of their own.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ayaedge.grammar.gbnf import LLAMA_REPEATS, Ranges

MOST_CHARACTERS = 400_000
"""Of a grammar; reading as many takes a second."""
_DEEPEST_GROUP = 100
_MOST_PATHS = 1000
"""Ways to begin a rule: each is tried with the whole vocabulary at every token. A chain of rules that begin with one
another counts as many: llama.cpp walks it on the stack, of which some threads have 512 KB."""
_MOST_ELEMENTS = 2_000_000
"""Of the parsed grammar, 8 bytes each."""
_LAST = 0x10FFFF
_SURROGATES = (0xD800, 0xDFFF)


@dataclass(frozen=True)
class Fault:
    """What is wrong with a grammar."""

    rule: str
    """The rule's name; empty where it is none of a single rule."""
    reason: str


def faults(text: str) -> list[Fault]:
    """What llama.cpp could not bear in a grammar, or what would not mean what it says; empty for a good one."""
    if fault := _unusable_text(text):
        return [fault]
    try:
        parser = _Parser(text)
    except _SyntaxError as error:
        return [Fault("", str(error))]
    return parser.faults or _grammar_faults(parser)


def _unusable_text(text: str) -> Fault | None:
    if len(text) > MOST_CHARACTERS:
        return Fault(
            "",
            f"it comes to {len(text)} characters of grammar, {MOST_CHARACTERS} are the most: make it smaller",
        )
    if "\0" in text:
        return Fault("", "it contains a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return Fault("", f"it is not valid Unicode: {error.reason}")
    return None


class _SyntaxError(Exception):
    pass


_TOKENS = re.compile(
    r"""(?P<space>(?:[ \t]|\#[^\r\n]*)+)
      | (?P<newline>\r\n?|\n)
      | (?P<name>[a-zA-Z0-9-]+)
      | (?P<define>::=)
      | (?P<literal>"(?:[^"\\]|\\.)*")
      | (?P<set>\[(?:[^\]\\]|\\.)*\])
      | (?P<any>\.)
      | (?P<count>[*+?]|\{[ \t]*[0-9]{1,9}[ \t]*(?:,[ \t]*(?:[0-9]{1,9}[ \t]*)?)?\})
      | (?P<mark>[()|])""",
    re.VERBOSE | re.DOTALL,
)
_CHARACTER = re.compile(
    r'\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([trn\\"\[\]-]))|([^\\])', re.DOTALL
)
_CONTROLS = {"t": 9, "r": 13, "n": 10}
_TERMINAL = ""
"""Stands for characters among the names of rules."""


class _Parser:
    """The rules of a grammar, each a list of alternatives, which are names of rules and `_TERMINAL`s.

    Groups and repetitions become rules as they do in llama.cpp; their names hold an underscore, which others cannot.
    """

    def __init__(self, text: str):
        self.rules: dict[str, list[list[str]]] = {}
        self.faults: list[Fault] = []
        self.repeated: list[tuple[str, str]] = []
        """Rules, and what is repeated in them."""
        self._text, self._elements, self._made = text, 0, 0
        self.uses: dict[str, str] = {}
        """The names of rules, and the rule where each is met first."""
        self._rule = ""
        self._tokens = [
            token for token in self._split() if token[0] != "space"
        ] + [("end", "", len(text))]  # fmt: skip
        self._next = 0
        self._skip_lines()
        while self._kind != "end":
            self._parse_rule()
        if self._elements + 4 * self._made > _MOST_ELEMENTS:
            self.faults.append(Fault("", "its repetitions make it too large: lower the counts"))

    def _split(self) -> Iterator[tuple[str, str, int]]:
        place = 0
        while place < len(self._text):
            match = _TOKENS.match(self._text, place)
            if not match:
                raise self._error(f"cannot be read from {self._text[place : place + 20]!r} on", place)
            yield match.lastgroup or "", match[0], place
            place = match.end()

    def _error(self, reason: str, place: int | None = None) -> _SyntaxError:
        place = self._tokens[self._next][2] if place is None else place
        line = self._text.count("\n", 0, place) + 1
        is_token = self._text[place : place + 1] in ("<", "!")
        advice = "; tokens as in <[1]> are not supported" if is_token else ""
        return _SyntaxError(f"line {line} {reason}{advice}")

    @property
    def _kind(self) -> str:
        return self._tokens[self._next][0]

    def _take(self, kind: str) -> str:
        if self._kind != kind:
            expected = {"define": "::=", "newline": "the end of the line"}.get(kind, f"a {kind}")
            raise self._error(f"has {self._tokens[self._next][1]!r} where {expected} must stand")
        self._next += 1
        return self._tokens[self._next - 1][1]

    def _skip_lines(self) -> None:
        while self._kind == "newline":
            self._next += 1

    def _at(self, mark: str) -> bool:
        return self._tokens[self._next][:2] == ("mark", mark)

    def _parse_rule(self) -> None:
        self._rule = self._take("name")
        self.uses.setdefault(self._rule, self._rule)
        if self._rule in self.rules:
            raise self._error(f"defines {self._rule!r} a second time")
        self._take("define")
        self._skip_lines()
        self.rules[self._rule] = self._alternatives(0)
        if self._kind != "end":
            self._take("newline")
        self._skip_lines()

    def _alternatives(self, depth: int) -> list[list[str]]:
        if depth > _DEEPEST_GROUP:
            raise self._error(f"has more than {_DEEPEST_GROUP} parentheses inside one another")
        found = [self._sequence(depth)]
        while self._at("|"):
            self._next += 1
            self._skip_lines()
            found.append(self._sequence(depth))
        return found

    def _sequence(self, depth: int) -> list[str]:
        items: list[str] = []
        start, size, symbols = 0, 0, 1
        while True:
            if depth:
                self._skip_lines()
            kind, token, _ = self._tokens[self._next]
            if kind == "count":
                size, symbols = self._repeat(items, start, token, size, symbols)
                self._next += 1
                continue
            start, symbols = len(items), 1
            if self._at("("):
                before = len(self.uses) + self._made
                items.append(self._group(depth))
                size, symbols = 1, max(1, len(self.uses) + self._made - before)
            elif kind in ("literal", "set", "any"):
                size = self._characters(kind, token)
                items += [_TERMINAL] if size else []
                self._next += 1
            elif kind == "name":
                self.uses.setdefault(token, self._rule)
                items.append(token)
                size = 1
                self._next += 1
            else:
                return items
            self._elements += size

    def _group(self, depth: int) -> str:
        self._next += 1
        self._skip_lines()
        name = self._make([])
        self.rules[name] = self._alternatives(depth + 1)
        if not self._at(")"):
            raise self._error("has no ) where one must stand")
        self._next += 1
        return name

    def _make(self, alternatives: list[list[str]]) -> str:
        self._made += 1
        name = f"{self._rule}_{self._made}"
        self.rules[name] = alternatives
        return name

    def _repeat(self, items: list[str], start: int, token: str, size: int, symbols: int) -> tuple[int, int]:
        """Repeat what stands from `start` on; gives its new size, and llama.cpp's count of rules in it."""
        least, most = _bounds(token)
        if start == len(items):
            raise self._error(f"has nothing that {token} could repeat")
        if most is not None and most < least:
            raise self._error(f"has {token}, which counts backwards")
        symbols *= most or least or 1
        if max(least, most or 0, symbols) > LLAMA_REPEATS:
            raise self._error(f"has {token}, which repeats more than {LLAMA_REPEATS} times in all")
        item = items[start] if len(items) == start + 1 else self._make([items[start:]])
        optional = 1 if most is None else most - least
        self._elements += size * max(least - 1, 0) + optional * (size + 3)
        del items[start:]
        if most != 0:
            items += [item] if least else []
            if most is None or optional:
                tail = self._make([[item], []])
                if optional > 1 or most is None:
                    self.rules[tail][0].append(tail)
                items.append(tail)
        if most is None or most > 1:
            self.repeated.append((self._rule, item))
        self._made += max(optional - 1, 0)
        return size * least + 1, symbols

    def _characters(self, kind: str, token: str) -> int:
        """How many elements llama.cpp makes of these characters, which must be such that a text can have them."""
        if kind == "any":
            return 1
        codes = self._codes(token[1:-1])
        if kind == "literal":
            if any(not _is_character(code) for code in codes):
                raise self._error(f"has {token[:40]}, with a character that no text has")
            return len(codes)
        negated = token.startswith("[^")
        ranges = _ranges(codes[1:] if negated else codes, token)
        if not ranges or not any(_is_character(code) for code in _samples(ranges, negated)):
            raise self._error(f"has {token[:40]}, which no character fits")
        return len(codes)

    def _codes(self, text: str) -> list[int]:
        codes, place = [], 0
        while place < len(text):
            match = _CHARACTER.match(text, place)
            if not match:
                raise self._error(f"has an unknown escape: {text[place : place + 10]}")
            digits = match[1] or match[2] or match[3]
            if digits:
                codes.append(int(digits, 16))
            else:
                codes.append(_CONTROLS.get(match[4], 0) or ord(match[4] or match[5]))
            place = match.end()
        return codes


def _bounds(token: str) -> tuple[int, int | None]:
    fixed: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
    if token in fixed:
        return fixed[token]
    least, comma, most = token[1:-1].replace(" ", "").replace("\t", "").partition(",")
    if not comma:
        return int(least), int(least)
    return int(least), int(most) if most else None


def _is_character(code: int) -> bool:
    return 0 < code <= _LAST and not _SURROGATES[0] <= code <= _SURROGATES[1]


def _ranges(codes: list[int], token: str) -> Ranges:
    """The ranges of a class; an escaped minus is a character like others, but rare enough to look for it plainly."""
    hyphens = _plain_hyphens(token)
    ranges, place = [], 0
    while place < len(codes):
        if place + 2 < len(codes) and place + 1 in hyphens:
            ranges.append((codes[place], codes[place + 2]))
            place += 3
        else:
            ranges.append((codes[place], codes[place]))
            place += 1
    return ranges


def _plain_hyphens(token: str) -> set[int]:
    inner = token[2:-1] if token.startswith("[^") else token[1:-1]
    return {place for place, match in enumerate(_CHARACTER.finditer(inner)) if match[5] == "-"}


def _samples(ranges: Ranges, negated: bool) -> Iterator[int]:
    """Code points of which one is a character exactly if the class has one."""
    edges = [1, _SURROGATES[0] - 1, _SURROGATES[1] + 1, _LAST]
    for first, last in ranges:
        edges += [first - 1, first, last, last + 1]
    for code in edges:
        inside = any(first <= code <= last for first, last in ranges)
        if inside != negated:
            yield code


def _grammar_faults(parser: _Parser) -> list[Fault]:
    rules = parser.rules
    if "root" not in rules:
        return [Fault("", 'it has no rule called "root"')]
    if missing := [name for name in parser.uses if name not in rules]:
        return [Fault(parser.uses[name], f"uses {name!r}, which is not defined") for name in missing]
    empty = _derivable(rules, terminals=False)
    endless = _reachable(rules) - _derivable(rules, terminals=True)
    found = [
        Fault(_plain(name), "can never end: it always leads to itself again")
        for name in rules
        if name in endless
    ]
    found += [
        Fault(name, "repeats something that may be empty: let it have one character at least")
        for name, item in parser.repeated
        if item in empty
    ]
    return list(dict.fromkeys(found or _beginning_faults(rules, empty)))


def _plain(name: str) -> str:
    return name.split("_")[0]


def _derivable(rules: Mapping[str, list[list[str]]], *, terminals: bool) -> set[str]:
    """Rules that can become empty, or with `terminals` those that can become a finite text."""
    waiting: dict[str, list[tuple[str, int]]] = defaultdict(list)
    missing: dict[tuple[str, int], int] = {}
    ready: list[str] = []
    for name, alternatives in rules.items():
        for number, part in enumerate(alternatives):
            if not terminals and _TERMINAL in part:
                continue
            needed = {symbol for symbol in part if symbol != _TERMINAL}
            missing[name, number] = len(needed)
            for symbol in needed:
                waiting[symbol].append((name, number))
            if not needed:
                ready.append(name)
    found: set[str] = set()
    while ready:
        name = ready.pop()
        if name in found:
            continue
        found.add(name)
        for user in waiting[name]:
            missing[user] -= 1
            if not missing[user]:
                ready.append(user[0])
    return found


def _reachable(rules: Mapping[str, list[list[str]]]) -> set[str]:
    found, work = {"root"}, ["root"]
    while work:
        fresh = {symbol for part in rules[work.pop()] for symbol in part if symbol} - found
        found |= fresh
        work += fresh
    return found


def _beginnings(alternatives: list[list[str]], empty: set[str]) -> Iterator[str]:
    """Rules with which one of the alternatives may begin."""
    for part in alternatives:
        for symbol in part:
            if symbol:
                yield symbol
            if symbol not in empty:
                break


def _beginning_faults(rules: Mapping[str, list[list[str]]], empty: set[str]) -> list[Fault]:
    """Rules that begin with themselves, or in too many ways."""
    paths: dict[str, int] = {}
    open_rules: set[str] = set()
    for start in rules:
        stack = [start] if start not in paths else []
        while stack:
            name = stack[-1]
            children = list(_beginnings(rules[name], empty))
            fresh = [child for child in children if child not in paths]
            if name not in open_rules and name not in paths:
                open_rules.add(name)
                if looping := [child for child in fresh if child in open_rules]:
                    return [Fault(_plain(looping[0]), "begins with itself: something must stand before it")]
                stack += fresh
                continue
            stack.pop()
            if name in paths:
                continue
            open_rules.discard(name)
            paths[name] = len(rules[name]) + sum(paths[child] for child in children)
            if paths[name] > _MOST_PATHS:
                return [
                    Fault(
                        _plain(name),
                        f"can begin in more than {_MOST_PATHS} ways, or chains of rules: make it simpler",
                    )
                ]
    return []
