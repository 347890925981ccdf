"""Regular expressions of JSON schemas in the dialect of llguidance, where all readers of a pattern agree.

What a class like \\w means differs between ECMAScript, Python and Rust: it becomes what is in all of them, and \\W what
is in none. Syntax that they read differently is refused.
"""

from __future__ import annotations

import re

from ayaedge.grammar.schema_keywords import shortened

_LONGEST = 10_000
_DEEPEST = 50
_MOST_CHARACTERS = 2000
_SURE = {"d": "0-9", "w": "0-9A-Za-z_", "s": r" \t\n\r\f\v"}
"""What every reader counts into a class; inside of brackets."""
_UNSURE = {
    "d": r"\p{Nd}",
    "w": r"\p{Alphabetic}\p{M}\p{N}\p{Pc}\p{Join_Control}",
    "s": r"\s\x1C-\x1F\uFEFF\u2028\u2029",
}
"""What some reader counts into it, so that its complement is sure."""
_TOKEN = re.compile(
    r"""(?P<escape>\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|[dDwWsStnrfv]|[^a-zA-Z0-9]))
    | (?P<open>\((?:\?:)?(?!\?)) | (?P<close>\)) | (?P<or>\|) | (?P<any>\.)
    | (?P<class>\[\^?(?:\\.|[^\]\\])+\]) | (?P<repeat>(?:[*+?]|\{\d+(?:,\d*)?\})\??)
    | (?P<begin>\^) | (?P<end>\$) | (?P<plain>[^\\()\[\]{}|.*+?^$])""",
    re.VERBOSE | re.DOTALL,
)
_MEMBER = re.compile(r"\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|.)|.", re.DOTALL)


class PatternError(ValueError):
    """A pattern that not all readers understand alike."""


def rust_pattern(pattern: str) -> str:
    """A pattern for llguidance whose matches are matches of this one; PatternError if it is not supported."""
    if len(pattern) > _LONGEST:
        raise PatternError(f"it has more than {_LONGEST} characters")
    parts, place, repeatable, sizes = [], 0, False, [[0]]
    while place < len(pattern):
        match = _TOKEN.match(pattern, place)
        if match is None:
            raise PatternError(f"{shortened(pattern[place : place + 10])} is not supported")
        kind, text, place = str(match.lastgroup), match[0], match.end()
        if kind == "repeat" and not repeatable:
            raise PatternError(f"{text} has nothing to repeat")
        _count(sizes, kind, text)
        repeatable = kind not in ("open", "or", "begin", "end", "repeat")
        parts.append(_translated(kind, text))
    _check_anchors(pattern)
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise PatternError(str(error)) from None
    return "".join(parts)


def _count(sizes: list[list[int]], kind: str, text: str) -> None:
    """Add a token to the sizes of the parts of each open group; all together must be small when repeated."""
    if kind == "open":
        sizes.append([0])
    elif kind == "close" and len(sizes) > 1:
        group = sum(sizes.pop())
        sizes[-1].append(group)
    elif kind == "repeat":
        sizes[-1][-1] *= max((int(count) for count in re.findall(r"\d+", text)), default=1) or 1
    else:
        sizes[-1].append(1)
    if len(sizes) > _DEEPEST:
        raise PatternError(f"it is nested deeper than {_DEEPEST} levels")
    if sizes[-1][-1] > _MOST_CHARACTERS:
        raise PatternError(f"it repeats for more than {_MOST_CHARACTERS} characters")


def _check_anchors(pattern: str) -> None:
    """An anchor may stand at the ends of the pattern, or of one of its alternatives."""
    kinds = [match.lastgroup for match in _TOKEN.finditer(pattern)]
    depth = 0
    for number, kind in enumerate(kinds):
        depth += (kind == "open") - (kind == "close")
        first = number == 0 or kinds[number - 1] == "or"
        last = number == len(kinds) - 1 or kinds[number + 1] == "or"
        if (kind == "begin" and (depth or not first)) or (kind == "end" and (depth or not last)):
            raise PatternError("^ and $ inside of it are not supported")


def _translated(kind: str, text: str) -> str:
    if kind == "any":
        return r"[^\n\r\u2028\u2029]"
    if kind == "class":
        return _class(text)
    if kind == "repeat":
        return text[:-1] if len(text) > 1 and text.endswith("?") else text
    if kind == "escape" and text[1].lower() in _SURE and len(text) == 2:
        letter = text[1]
        return f"[{_SURE[letter]}]" if letter.islower() else f"[^{_UNSURE[letter.lower()]}]"
    return "(?:" if kind == "open" else _single(text) if kind in ("escape", "plain") else text


def _class(text: str) -> str:
    """A class: its members are those that are sure, or, where it is negated, those that are not."""
    negated = text.startswith("[^")
    members = _MEMBER.findall(text[2 if negated else 1 : -1])
    parts = []
    for number, member in enumerate(members):
        letter = member[1:2]
        if member == "[" or (member in "-&|~" and members[number - 1 : number] == [member]):
            raise PatternError(
                f"{member} in a class must be written as \\{member}: it may mean a set in future"
            )
        if len(member) == 2 and member[0] == "\\" and letter.isalnum() and letter.lower() in _SURE:
            if letter.isupper():
                raise PatternError(f"{member} in a class is not supported")
            parts.append((_UNSURE if negated else _SURE)[letter])
        elif member == "-" and 0 < number < len(members) - 1:
            ends = members[number - 1], members[number + 1]
            if any(end[:1] == "\\" and end[1:2].lower() in _SURE for end in ends):
                raise PatternError("a range in a class must go from one character to another")
            parts.append("-")
        else:
            parts.append(_single(member))
    return f"[{'^' if negated else ''}{''.join(parts)}]"


def _single(text: str) -> str:
    """One character, written so that it means only itself."""
    if text[0] == "\\" and len(text) > 1 and text[1].isalnum():
        if text[1] in "tnrfv" or (text[1] in "xu" and len(text) > 2):
            return text
        raise PatternError(f"{text} is not supported")
    character = text[-1]
    if "\ud800" <= character <= "\udfff":
        raise PatternError("half a character is not supported")
    if character.isascii() and not character.isalnum():
        return f"\\x{ord(character):02X}"
    return character
