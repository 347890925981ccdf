"""GBNF, the grammar notation of llama.cpp, as a grammar of llguidance.

llguidance has a converter. Before it come the checks that it lacks, and the escapes that it misreads are spelled out.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

from ayaedge.grammar.schema_keywords import shortened

_LONGEST = 200_000
_MOST_RULES = 500
"""llguidance follows rules by recursion: a chain of 3000 overflows the stack."""
_DEEPEST = 100
_MOST_REPEATS = 2000
_TOKEN = re.compile(
    r"""(?P<literal>"(?:\\.|[^"\\\r\n])*") | (?P<class>\[\^?(?:\\.|[^\]\\\r\n])*\]) | (?P<comment>\#[^\r\n]*)
    | (?P<name>[A-Za-z0-9][A-Za-z0-9_-]*) | (?P<is>::=) | (?P<repeat>[*+?]|\{\s*\d+\s*(?:,\s*\d*\s*)?\})
    | (?P<open>\() | (?P<close>\)) | (?P<or>\|) | (?P<any>\.) | (?P<break>\r\n|\r|\n) | (?P<blank>[ \t]+)""",
    re.VERBOSE,
)
_CHARACTER = re.compile(
    r'\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[nrt\\"\[\]^-])|[^\\]', re.DOTALL
)
_CONTROLS = {"n": "\n", "r": "\r", "t": "\t"}


class GbnfError(ValueError):
    """A grammar that cannot be followed."""


def gbnf_grammar(text: str) -> str:
    """The grammar of GBNF with the rule `root`, for `matcher.Matcher`; GbnfError says what is wrong with it.

    A part without recursion is one regular expression, tried as a whole; between such parts the longest wins.
    """
    from llguidance import LLMatcher
    from llguidance.gbnf_to_lark import gbnf_to_lark

    if len(text) > _LONGEST:
        raise GbnfError(f"has {len(text)} characters, more than {_LONGEST}")
    plain = "".join(_spelled(kind, part) for kind, part in _checked(list(_tokens(text))))
    try:
        # with a rule around it the whole is one expression, if it is regular
        lark = gbnf_to_lark(f"root ::= {_ROOT}\n{plain}")
    except Exception as error:  # noqa: BLE001  its converter raises bare Exceptions
        raise GbnfError(str(error)) from None
    grammar: str = LLMatcher.grammar_from_lark(lark)
    failed, reasons = LLMatcher.validate_grammar_with_warnings(grammar)
    if failed:
        raise GbnfError(f"cannot be followed: {' '.join(reasons[0].split())[:300]}")
    return grammar


_ROOT = "the-whole"


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    place = 0
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            line = text.count("\n", 0, place) + 1
            raise GbnfError(f"line {line} cannot be read from {shortened(text[place : place + 20])} on")
        yield str(match.lastgroup), match[0]
        place = match.end()


def _checked(tokens: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The same tokens, if they make a grammar that ends; repetitions of repetitions get parentheses."""
    meaning = [token for token in tokens if token[0] not in ("blank", "comment")]
    meaning.append(("break", "\n"))
    names = [text for (_, text), after in pairwise(meaning) if after[0] == "is"]
    if "root" not in names:
        raise GbnfError("has no rule 'root'")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise GbnfError(f"defines the rule {twice[0]!r} twice")
    if len(names) > _MOST_RULES:
        raise GbnfError(f"has {len(names)} rules, more than {_MOST_RULES}")
    used = {text for kind, text in meaning if kind == "name"}
    if missing := sorted(used - set(names)):
        raise GbnfError(f"uses the rule {missing[0]!r}, which it does not define")
    _check_shape(meaning)
    if endless := _endless(_bodies(meaning)):
        raise GbnfError(f"the rule {endless!r} can never end: it always leads to itself again")
    return [token for token in tokens if token[0] != "comment"]


def _bodies(tokens: list[tuple[str, str]]) -> dict[str, list[tuple[str, str]]]:
    """The tokens of each rule, behind its `::=`."""
    found: dict[str, list[tuple[str, str]]] = {}
    name = ""
    for token, after in pairwise(tokens):
        if after[0] == "is":
            name = token[1]
            found[name] = []
        elif token[0] not in ("is", "break"):
            found.setdefault(name, []).append(token)
    return found


def _endless(bodies: dict[str, list[tuple[str, str]]]) -> str | None:
    """A rule of which no text ends; the others are the least fixed point of those that have one."""
    ends: set[str] = set()
    while True:
        found = {name for name, body in bodies.items() if _ends(body, ends)}
        if found == ends:
            return next((name for name in bodies if name not in ends), None)
        ends = found


def _ends(body: list[tuple[str, str]], ends: set[str]) -> bool:
    """Whether an alternative of the body ends, if those rules do."""
    # of each open parenthesis: whether an alternative before ended, and whether this one may
    groups = [(False, True)]
    for number, (kind, text) in enumerate(body):
        after = body[number + 1][1] if number + 1 < len(body) else ""
        optional = after[:1] in ("*", "?") or after.replace(" ", "").startswith("{0")
        earlier, here = groups[-1]
        if kind == "open":
            groups.append((False, True))
        elif kind == "or":
            groups[-1] = (earlier or here, True)
        elif kind == "close":
            groups.pop()
            before, so_far = groups[-1]
            groups[-1] = (before, so_far and (earlier or here or optional))
        elif kind == "name":
            groups[-1] = (earlier, here and (text in ends or optional))
    return any(groups[-1])


def _check_shape(tokens: list[tuple[str, str]]) -> None:
    depth, opened, before = 0, 0, ""
    for kind, text in tokens:
        depth += (kind == "open") - (kind == "close")
        opened += kind == "open" and before == "open"
        if depth < 0 or depth > _DEEPEST or opened > _MOST_RULES:
            raise GbnfError(f"closes what is not open, or is nested deeper than {_DEEPEST} levels")
        if kind == "repeat":
            if before not in ("literal", "class", "name", "close", "any"):
                raise GbnfError(
                    f"{text} has nothing to repeat, or repeats a repetition: write parentheses around it"
                )
            counts = [int(count) for count in re.findall(r"\d+", text[:20])]
            if max(counts, default=0) > _MOST_REPEATS or len(text) > 20:
                raise GbnfError(f"{shortened(text)} repeats more than {_MOST_REPEATS} times")
            if (len(counts) == 2 and counts[1] < counts[0]) or counts[-1:] == [0]:
                raise GbnfError(f"{text} counts backwards, or repeats nothing")
        before = kind
    if depth:
        raise GbnfError("leaves a parenthesis open")


def _spelled(kind: str, text: str) -> str:
    if kind == "name" and text == "root":
        return _ROOT
    if kind == "literal":
        return '"' + "".join(map(_in_literal, _characters(text[1:-1]))) + '"'
    if kind == "class":
        return _class(text)
    return text


def _characters(text: str) -> Iterator[tuple[str, bool]]:
    """Each character, and whether it was escaped."""
    place = 0
    while place < len(text):
        match = _CHARACTER.match(text, place)
        if match is None:
            raise GbnfError(f"has an escape that is not known: {shortened(text[place : place + 6])}")
        place, found = match.end(), match[0]
        if found[0] == "\\":
            code = found[1]
            found = chr(int(found[2:], 16)) if code in "xuU" else _CONTROLS.get(code, code)
        if found == "\0" or "\ud800" <= found <= "\udfff":
            raise GbnfError("demands NUL or half a character, which no text has")
        yield found, match[0][0] == "\\"


def _in_literal(character: tuple[str, bool]) -> str:
    found = character[0]
    return {"\n": "\\n", "\r": "\\r", "\t": "\\t", '"': '\\"', "\\": "\\\\"}.get(found, found)


def _class(text: str) -> str:
    negated = text.startswith("[^")
    members = list(_characters(text[2 if negated else 1 : -1]))
    if not members:
        raise GbnfError("has a class without characters")
    parts = []
    for number, (character, escaped) in enumerate(members):
        if character == "-" and not escaped and 0 < number < len(members) - 1:
            if members[number - 1][0] > members[number + 1][0]:
                raise GbnfError(f"has a range that runs backwards: {shortened(text)}")
            parts.append("-")
        else:
            plain = character.isalnum() or ord(character) > 0x7F
            parts.append(character if plain else f"\\x{ord(character):02X}")
    return f"[{'^' if negated else ''}{''.join(parts)}]"
