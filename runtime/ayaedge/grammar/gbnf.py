"""GBNF, the grammar notation of llama.cpp: writing rules in it.

Nothing here knows JSON. What a grammar must not contain is in `ayaedge.grammar.gbnf_check`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

MOST_REPEATS = 50_000
"""Of one thing, in the rules that `Rules` writes."""
LLAMA_REPEATS = 2000
"""llama.cpp refuses more as a least count, and silently takes more as "without end" as a greatest one."""
_BLOCK = 1000
_SPECIAL = '"\\[]^-'

Ranges = list[tuple[int, int]]
"""Code points, first and last of each range, in order and apart from one another."""


def literal(text: str) -> str:
    """A text that must stand exactly so."""
    return '"' + "".join(_escaped(ord(character)) for character in text) + '"'


def character_class(ranges: Ranges) -> str:
    """One character out of these."""
    parts = [_escaped(first) + (f"-{_escaped(last)}" if last > first else "") for first, last in ranges]
    return f"[{''.join(parts)}]"


def _escaped(code: int) -> str:
    character = chr(code)
    if character.isprintable() and character not in _SPECIAL:
        return character
    if code < 0x100:
        return f"\\x{code:02X}"
    return f"\\u{code:04X}" if code < 0x10000 else f"\\U{code:08X}"


class Rules:
    """Rules as they are written; the same body gets one name only."""

    def __init__(self, common: Mapping[str, str] | None = None):
        self._bodies = dict(common or {})
        self._names = {body: name for name, body in self._bodies.items()}

    def add(self, hint: str, body: str) -> str:
        """The name of a rule with this body; `hint` is for people who read the grammar."""
        if body not in self._names:
            self._names[body] = self.reserve(hint)
            self._bodies[self._names[body]] = body
        return self._names[body]

    def reserve(self, hint: str) -> str:
        """A name whose body comes later, in `define`."""
        slug = re.sub("[^a-zA-Z0-9]+", "-", hint)[:24].strip("-") or "part"
        name = f"{slug}-{len(self._bodies)}"
        self._bodies[name] = ""
        return name

    def define(self, name: str, body: str) -> None:
        """Give a reserved name its body."""
        self._bodies[name] = body

    def repeat(self, item: str, least: int, most: int | None) -> str:
        """`item`, a rule's name or a class, so often; counts go to `MOST_REPEATS`."""
        if max(least, most or 0) <= LLAMA_REPEATS:
            return f"{item}{_count(least, most)}"
        block = self.add("block", f"{item}{{{_BLOCK}}}")
        counts = [(block, least // _BLOCK), (item, least % _BLOCK)]
        start = "".join(f"{part}{{{count}}} " for part, count in counts if count)
        if most is None:
            return f"{start}{item}*"
        blocks, rest = divmod(most - least, _BLOCK)
        tail = f"{item}{{0,{rest}}}"
        for _ in range(blocks):
            tail = f"{block} {self.add('up-to', tail)} | {item}{{0,{_BLOCK - 1}}}"
        return f"{start}{self.add('up-to', tail)}"

    def one_of(self, hint: str, texts: Iterable[str]) -> str:
        """The name of a rule for one of these texts, written as a tree: what begins alike is tried once."""
        name = self.reserve(hint)
        work = [(name, sorted(set(texts)))]
        while work:
            node, ends = work.pop()
            branches = ['""'] if ends[0] == "" else []
            for group in _by_first_character([end for end in ends if end]):
                length = len(_common_prefix(group[0], group[-1]))
                branch = literal(group[0][:length])
                if len(group) > 1:
                    child = self.reserve(hint)
                    work.append((child, [end[length:] for end in group]))
                    branch += f" {child}"
                branches.append(branch)
            self.define(node, " | ".join(branches))
        return name

    def text(self, root: str) -> str:
        """The grammar, which begins with the rule `root`."""
        lines = [f"{name} ::= {body}" for name, body in self._bodies.items()]
        return "\n".join([f"root ::= {root}", *lines]) + "\n"


def _count(least: int, most: int | None) -> str:
    if most is None:
        return {0: "*", 1: "+"}.get(least, f"{{{least},}}")
    return f"{{{least}}}" if least == most else f"{{{least},{most}}}"


def _by_first_character(texts: Sequence[str]) -> Iterator[list[str]]:
    groups: dict[str, list[str]] = defaultdict(list)
    for text in texts:
        groups[text[0]].append(text)
    yield from groups.values()


def _common_prefix(first: str, second: str) -> str:
    length = 0
    while length < min(len(first), len(second)) and first[length] == second[length]:
        length += 1
    return first[:length]
