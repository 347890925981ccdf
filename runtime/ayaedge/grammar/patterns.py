r"""Regular expressions of JSON Schema as GBNF, as far as they are regular and anchored: `^...$`.

ECMA-262 and Python disagree about `\d`, `\w`, `\s` and `.` outside ASCII; a class here has what is in it for both, and
a negated class what is in it for neither. A fault names what is not supported.
"""

from __future__ import annotations

from dataclasses import dataclass

from ayaedge.grammar.gbnf import MOST_REPEATS, Ranges, Rules, character_class

_LAST = 0x10FFFF
_MOST_NESTED = 50
_SHORT_ESCAPES = {'"': '"', "\\": "\\", "\t": "t", "\n": "n", "\r": "r"}
_CHARACTERS: Ranges = [(9, 10), (13, 13), (0x20, 0xD7FF), (0xE000, _LAST)]
"""Those that patterns can ask for: no other control characters."""


class PatternError(ValueError):
    """A pattern that cannot be honoured."""


@dataclass(frozen=True)
class Part:
    """GBNF of a part of a pattern, without the quotes of a string, and how many characters it can have."""

    body: str
    least: int
    most: int | None


@dataclass(frozen=True)
class _Set:
    """Characters that are surely meant, and those that one of the two dialects might mean."""

    sure: Ranges
    possible: Ranges

    def negated(self) -> _Set:
        return _Set(_complement(self.possible), _complement(self.sure))

    def joined(self, other: _Set) -> _Set:
        return _Set(_union(self.sure, other.sure), _union(self.possible, other.possible))


def _union(*sets: Ranges) -> Ranges:
    found: Ranges = []
    for first, last in sorted(part for ranges in sets for part in ranges):
        if found and first <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(last, found[-1][1]))
        else:
            found.append((first, last))
    return found


def _complement(ranges: Ranges) -> Ranges:
    found, start = [], 0
    for first, last in _union(ranges):
        if start < first:
            found.append((start, first - 1))
        start = last + 1
    return [*found, (start, _LAST)] if start <= _LAST else found


def _intersection(one: Ranges, other: Ranges) -> Ranges:
    return _complement(_union(_complement(one), _complement(other)))


def _same(ranges: Ranges) -> _Set:
    return _Set(_union(ranges), _union(ranges))


def _single(character: str) -> _Set:
    return _same([(ord(character), ord(character))])


_BEYOND_ASCII: Ranges = [(0x80, _LAST)]
_DIGITS: Ranges = [(0x30, 0x39)]
_WORD: Ranges = [(0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)]
_SPACE: Ranges = [(9, 13), (0x20, 0x20)]
_WIDE_SPACE: Ranges = [
    (0x1C, 0x1F), (0x85, 0x85), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x2028, 0x2029), (0x202F, 0x202F),
    (0x205F, 0x205F), (0x3000, 0x3000), (0xFEFF, 0xFEFF),
]  # fmt: skip
_SHORTHANDS = {
    "d": _Set(_DIGITS, _union(_DIGITS, _BEYOND_ASCII)),
    "w": _Set(_WORD, _union(_WORD, _BEYOND_ASCII)),
    "s": _Set(_SPACE, _union(_SPACE, _WIDE_SPACE)),
}
_ANY = _Set([(10, 10)], [(10, 10), (13, 13), (0x2028, 0x2029)]).negated()
_CONTROLS = {"t": "\t", "n": "\n", "r": "\r"}


def translate(pattern: str, rules: Rules) -> Part:
    """The characters that a pattern allows; PatternError says what of it is not supported."""
    reader = _Reader(pattern, rules)
    part = reader.alternatives(0)
    if not reader.done:
        raise PatternError(f"a ) too many at character {reader.place}")
    return part


class _Reader:
    def __init__(self, pattern: str, rules: Rules):
        self._pattern, self._rules = pattern, rules
        self.place = 0

    @property
    def done(self) -> bool:
        return self.place == len(self._pattern)

    def _peek(self) -> str:
        return self._pattern[self.place : self.place + 1]

    def _take(self) -> str:
        character = self._peek()
        if not character:
            raise PatternError("it ends too early")
        self.place += 1
        return character

    def _accept(self, text: str) -> bool:
        found = self._pattern.startswith(text, self.place)
        self.place += len(text) if found else 0
        return found

    def alternatives(self, depth: int) -> Part:
        if depth > _MOST_NESTED:
            raise PatternError(f"it has more than {_MOST_NESTED} groups inside one another")
        found = [self._sequence(depth)]
        while self._accept("|"):
            found.append(self._sequence(depth))
        lengths = [part.most for part in found]
        return Part(
            self._rules.add("pattern", " | ".join(part.body for part in found)),
            min(part.least for part in found),
            None if None in lengths else max(length for length in lengths if length is not None),
        )

    def _sequence(self, depth: int) -> Part:
        if depth == 0 and not self._accept("^"):
            raise PatternError(
                "it must begin with ^ and end with $, each of its alternatives if there are several"
            )
        bodies: list[str] = []
        least, most, endless = 0, 0, False
        while not self.done and self._peek() not in "|)":
            if depth == 0 and self._accept("$"):
                if not self.done and self._peek() != "|":
                    raise PatternError("$ may stand at its end only")
                return Part(" ".join(bodies) or '""', least, None if endless else most)
            part = self._quantified(depth)
            bodies.append(part.body)
            least += part.least
            most += part.most or 0
            endless = endless or part.most is None
        if depth == 0:
            raise PatternError(
                "it must begin with ^ and end with $, each of its alternatives if there are several"
            )
        return Part(" ".join(bodies) or '""', least, None if endless else most)

    def _quantified(self, depth: int) -> Part:
        part = self._atom(depth)
        count = self._count()
        if count is None:
            return part
        least, most = count
        self._accept("?")  # which of several matches is found does not matter
        if self._peek() and self._peek() in "*+?{":
            raise PatternError("one count after another is not supported")
        if part.least == 0 and (most is None or most > 1):
            raise PatternError("what is repeated must have one character at least")
        if max(least, most or 0, part.least * least) > MOST_REPEATS:
            raise PatternError(f"{MOST_REPEATS} repetitions are the most")
        most_characters = None if most is None or part.most is None else part.most * most
        if most == 0:
            return Part('""', 0, 0)
        body = self._rules.add("repeated", self._rules.repeat(part.body, least, most))
        return Part(body, part.least * least, most_characters)

    def _count(self) -> tuple[int, int | None] | None:
        for mark, bounds in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self._accept(mark):
                return bounds
        if not self._accept("{"):
            return None
        text, brace, _ = self._pattern[self.place :].partition("}")
        least, comma, most = text.partition(",")
        numbers = [number for number in (least, most) if number]
        if not brace or not least or not all(_is_count(number) for number in numbers):
            raise PatternError("{ must begin a count such as {2}, {2,} or {2,5}, of 5 digits at most")
        self.place += len(text) + 1
        if not comma:
            return int(least), int(least)
        if most and int(most) < int(least):
            raise PatternError(f"{{{text}}} counts backwards")
        return int(least), int(most) if most else None

    def _atom(self, depth: int) -> Part:
        character = self._take()
        if character == "(":
            return self._group(depth)
        if character == "[":
            return self._one_of(self._class())
        if character == ".":
            return self._one_of(_ANY)
        if character == "\\":
            return self._one_of(self._escape())
        if character in "^$":
            raise PatternError(f"{character} inside of it is not supported")
        if character in "*+?{}]":
            raise PatternError(f"{character} must be written as \\{character} there")
        return self._one_of(_single(character))

    def _group(self, depth: int) -> Part:
        if not self._accept("?:") and self._peek() == "?":
            kind = self._pattern[self.place - 1 : self.place + 2]
            raise PatternError(f"groups that begin with {kind} are not supported")
        part = self.alternatives(depth + 1)
        if not self._accept(")"):
            raise PatternError("a ) is missing")
        return part

    def _class(self) -> _Set:
        negated = self._accept("^")
        found = _same([])
        if self._peek() == "]":
            raise PatternError("an empty class is not supported")
        while not self._accept("]"):
            member = self._member()
            if self._peek() == "-" and self._pattern[self.place + 1 : self.place + 2] != "]":
                self.place += 1
                member = _span(member, self._member())
            found = found.joined(member)
        return found.negated() if negated else found

    def _member(self) -> _Set:
        character = self._take()
        if character == "[" or (character in "-&|~" and self._peek() == character):
            raise PatternError(
                f"{character} in a class must be written as \\{character}: it may mean a set in future"
            )
        return self._escape() if character == "\\" else _single(character)

    def _escape(self) -> _Set:
        character = self._take()
        if character.lower() in _SHORTHANDS:
            meant = _SHORTHANDS[character.lower()]
            return meant if character.islower() else meant.negated()
        if character in "xu":
            digits = self._pattern[self.place : self.place + (2 if character == "x" else 4)]
            self.place += len(digits)
            if len(digits) not in (2, 4) or not all(digit in "0123456789abcdefABCDEF" for digit in digits):
                raise PatternError(f"\\{character} must be followed by hexadecimal digits")
            return _same([(int(digits, 16), int(digits, 16))])
        if character in _CONTROLS:
            return _single(_CONTROLS[character])
        if character.isalnum() or not character.isascii():
            raise PatternError(f"\\{character} is not supported")
        return _single(character)

    def _one_of(self, meant: _Set) -> Part:
        """One character as JSON writes it: as it is, or escaped."""
        allowed = _intersection(meant.sure, _CHARACTERS)
        if not allowed:
            raise PatternError("a class in it has no character that can be written")
        escaped = [mark for mark in _SHORT_ESCAPES if any(a <= ord(mark) <= b for a, b in allowed)]
        plain = _intersection(
            allowed, _complement([(0, 0x1F), *((ord(mark), ord(mark)) for mark in escaped)])
        )
        bodies = [character_class(plain)] if plain else []
        if escaped:
            letters = sorted(ord(_SHORT_ESCAPES[mark]) for mark in escaped)
            bodies.append(rf'"\\" {character_class([(letter, letter) for letter in letters])}')
        body = bodies[0] if len(bodies) == 1 and plain else self._rules.add("character", " | ".join(bodies))
        return Part(body, 1, 1)


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5


def _span(first: _Set, last: _Set) -> _Set:
    ends = [ranges.sure for ranges in (first, last)]
    if (
        any(len(ranges) != 1 or ranges[0][0] != ranges[0][1] for ranges in ends)
        or first.sure != first.possible
    ):
        raise PatternError("a range in a class must go from one character to another")
    if ends[0][0][0] > ends[1][0][0]:
        raise PatternError("a range in a class runs backwards")
    return _same([(ends[0][0][0], ends[1][0][0])])
