"""How JSON is written, as GBNF: strings, numbers in a range, dates.

Bounded where JSON is not: at most one blank or one indented line between two parts, 19 digits, short exponents. What
these rules give is read by Python's `json` without loss, and so it compares with a schema's bounds as it is written.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Any

from ayaedge.grammar.gbnf import Ranges, Rules, character_class, literal

UNESCAPED: Ranges = [(0x20, 0x21), (0x23, 0x5B), (0x5D, 0xD7FF), (0xE000, 0x10FFFF)]
"""What may stand in a string as it is; surrogates are no characters."""

_HEX = "[0-9a-fA-F]"
COMMON = {
    "gap": r'"" | " " | "\n" " "{0,16}',
    "char": f"{character_class(UNESCAPED)} | "
    rf'"\\" (["\\/bfnrt] | "u" ([0-9abcefABCEF] {_HEX}{{3}} | [dD] [0-7] {_HEX}{{2}}))',
    "string": r'"\"" char* "\""',
    "integer": r'"-"? ("0" | [1-9] [0-9]{0,18})',
    "number": r'integer ("." [0-9]{1,16})? ([eE] [-+]? [0-9]{1,2})?',
    "value": r'object | array | string | number | "true" | "false" | "null"',
    "pair": r'string ":" " "? value',
    "object": r'"{" gap (pair ("," gap pair)* gap)? "}"',
    "array": r'"[" gap (value ("," gap value)* gap)? "]"',
}
"""Rules that every grammar for JSON has."""

_MOST_INTEGER_DIGITS = 19
_EXACT_DIGITS = 15
"""Decimals of so many digits keep their order when they become floats."""
_FRACTION_DIGITS = 6
_WHOLE_DIGITS = 9
"""Before the point, where a range has no end."""

_YEAR = "[1-9] [0-9]{3}"
_LEAP_YEAR = '([1-9] [0-9] ("0" [48] | [2468] [048] | [13579] [26]) | ([13579] [26] | [2468] [048]) "00")'
_DATE = (
    f'{_YEAR} "-" (("0" [13578] | "1" [02]) "-" ("0" [1-9] | [12] [0-9] | "3" [01])'
    ' | ("0" [469] | "11") "-" ("0" [1-9] | [12] [0-9] | "30") | "02-" ("0" [1-9] | "1" [0-9] | "2" [0-8]))'
    f' | {_LEAP_YEAR} "-02-29"'
)
_TIME = (
    '("0" [0-9] | "1" [0-9] | "2" [0-3]) ":" [0-5] [0-9] ":" [0-5] [0-9] ("." [0-9]{1,6})?'
    ' ("Z" | [+-] ("0" [0-9] | "1" [0-9] | "2" [0-3]) ":" [0-5] [0-9])'
)
_ATOM = "[a-zA-Z0-9_+-]"
_LABEL = "[a-zA-Z0-9]{1,20}"
_OCTET = '("25" [0-5] | "2" [0-4] [0-9] | "1" [0-9] [0-9] | [1-9] [0-9] | [0-9])'
FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f'({_DATE}) "T" {_TIME}',
    "uuid": f'{_HEX}{{8}} "-" {_HEX}{{4}} "-" {_HEX}{{4}} "-" {_HEX}{{4}} "-" {_HEX}{{12}}',
    "email": f'{_ATOM}{{1,30}} ("." {_ATOM}{{1,30}}){{0,3}} "@" ({_LABEL} "."){{1,4}} [a-zA-Z]{{2,12}}',
    "ipv4": f'{_OCTET} ("." {_OCTET}){{3}}',
}
"""The formats that are honoured: their text without quotes. Years have four digits, times an offset (RFC 3339)."""


def quoted(text: str) -> str:
    """A rule's body for a string of such a text."""
    return rf'"\"" {text} "\""'


def string_of_length(rules: Rules, least: int, most: int | None) -> str:
    """A string of so many characters."""
    return quoted(rules.add("characters", rules.repeat("char", least, most)))


def string_except(rules: Rules, names: Iterable[str]) -> str:
    """The name of a rule for any string without escapes but these; how a free property differs from declared ones."""
    children: dict[str, set[str]] = defaultdict(set)
    banned = {name for name in names if all(_stands_unescaped(character) for character in name)}
    for name in banned:
        for end in range(len(name)):
            children[name[:end]].add(name[end])
    other = rules.add("free", rf'{character_class(UNESCAPED)}* "\""')
    nodes = {prefix: rules.reserve("name") for prefix in {"", *children}}
    for prefix, node in nodes.items():
        alternatives = [] if prefix in banned else [r'"\""']
        rest = UNESCAPED
        for character in sorted(children[prefix]):
            longer = prefix + character
            # a name that no other continues: it must go on
            after = nodes.get(longer) or rules.add("longer", f"{character_class(UNESCAPED)} {other}")
            alternatives.append(f"{literal(character)} {after}")
            rest = without(rest, ord(character))
        rules.define(node, " | ".join([*alternatives, f"{character_class(rest)} {other}"]))
    return rules.add("free-name", rf'"\"" {nodes[""]}')


def without(ranges: Ranges, code: int) -> Ranges:
    """The ranges less one code point."""
    found: Ranges = []
    for first, last in ranges:
        parts = [(first, code - 1), (code + 1, last)] if first <= code <= last else [(first, last)]
        found += [(a, b) for a, b in parts if a <= b]
    return found


def _stands_unescaped(character: str) -> bool:
    return any(first <= ord(character) <= last for first, last in UNESCAPED)


def integer_between(least: int | None, most: int | None) -> str:
    """A rule's body for an integer in a range that is not empty; without end it goes on for 19 digits."""
    digits = max(_MOST_INTEGER_DIGITS, *(len(str(abs(bound or 0))) + 1 for bound in (least, most)))
    limit = 10**digits - 1
    low, high = -limit if least is None else least, limit if most is None else most
    parts = []
    if low < 0:
        parts += [f'"-" ({part})' for part in _whole_numbers(max(1, -high), -low)]
    if high >= 0:
        parts += _whole_numbers(max(0, low), high)
    return " | ".join(parts)


def number_between(low: Decimal | None, high: Decimal | None, *, open_low: bool, open_high: bool) -> str:
    """A rule's body for a decimal number without exponent in a range; empty if there is none that is exact.

    Bounds are those numbers that Python prints for a schema's; `open_low` and `open_high` exclude them.
    """
    bounds = [bound for bound in (low, high) if bound is not None]
    whole = max(len(str(int(abs(bound)))) for bound in bounds)
    if len(bounds) == 1:
        whole = max(_WHOLE_DIGITS, whole + 1)
    decimals = max(_FRACTION_DIGITS, *(-_exponent(bound) for bound in bounds))
    decimals = min(decimals, _EXACT_DIGITS - whole)
    if decimals < 0:
        return ""
    scale, limit = 10**decimals, 10 ** (whole + decimals) - 1
    first = -limit if low is None else int((low * scale).to_integral_value(ROUND_CEILING))
    last = limit if high is None else int((high * scale).to_integral_value(ROUND_FLOOR))
    first += open_low and first == (low or 0) * scale
    last -= open_high and last == (high or 0) * scale
    return " | ".join([*_scaled_numbers(first, last, decimals), *_far_numbers(low, high, whole)])


def _exponent(value: Decimal) -> int:
    exponent = value.normalize().as_tuple().exponent
    return exponent if isinstance(exponent, int) else 0


def _far_numbers(low: Decimal | None, high: Decimal | None, whole: int) -> list[str]:
    """Whole numbers beyond those with a fraction, on the side that has no bound."""
    if whole >= _EXACT_DIGITS:
        return []
    far = f"[1-9] [0-9]{{{whole},{_EXACT_DIGITS - 1}}}"
    return ([f'"-" {far}'] if low is None else []) + ([far] if high is None else [])


def _scaled_numbers(first: int, last: int, decimals: int) -> list[str]:
    """Numbers n / 10**decimals for n from `first` to `last`."""
    parts = []
    if first < 0:
        parts += [f'"-" ({part})' for part in _magnitudes(max(1, -last), -first, decimals)]
    if last >= 0:
        parts += _magnitudes(max(0, first), last, decimals)
    return parts


def _magnitudes(first: int, last: int, decimals: int) -> list[str]:
    """The same for numbers without a sign."""
    if first > last:
        return []
    if decimals == 0:
        return _whole_numbers(first, last)
    scale = 10**decimals
    (start, start_fraction), (end, end_fraction) = divmod(first, scale), divmod(last, scale)
    if start == end:
        return [f'"{start}" {_fraction(start_fraction, end_fraction, decimals)}']
    parts = []
    if start_fraction:
        parts.append(f'"{start}" {_fraction(start_fraction, scale - 1, decimals)}')
        start += 1
    if end_fraction < scale - 1:
        parts.append(f'"{end}" {_fraction(0, end_fraction, decimals)}')
        end -= 1
    any_fraction = _fraction(0, scale - 1, decimals)
    return parts + [f"({part}) {any_fraction}" for part in _whole_numbers(start, end)]


def _whole_numbers(first: int, last: int) -> list[str]:
    """Whole numbers from 0 up, without leading zeros."""
    parts = ['"0"'] if first <= 0 <= last else []
    full: list[int] = []
    for length in range(len(str(max(1, first))), len(str(last)) + 1):
        start, end = max(first, 10 ** (length - 1)), min(last, 10**length - 1)
        if start == 10 ** (length - 1) and end == 10**length - 1:
            full.append(length - 1)
        elif start <= end:
            parts.append(_digits(str(start), str(end), shorter=False))
    if full:
        parts.append(f"[1-9] [0-9]{{{full[0]},{full[-1]}}}")
    return parts


def _fraction(first: int, last: int, decimals: int) -> str:
    """A point and digits for `first` to `last` of 10**decimals parts; nothing at all stands for zero."""
    digits = _digits(str(first).zfill(decimals), str(last).zfill(decimals), shorter=True)
    fraction = f'"." ({digits})'
    return f"({fraction})?" if first == 0 else fraction


def _digits(first: str, last: str, *, shorter: bool) -> str:
    """Digits from `first` to `last`, which have the same length; with `shorter` zeros at the end may be left out."""
    length = len(first)
    if set(first) == {"0"} and set(last) == {"9"}:
        return f"[0-9]{{{1 if shorter else length},{length}}}"
    low, high = int(first[0]), int(last[0])
    if length == 1:
        return f"[{low}-{high}]"
    rest = length - 1
    if low == high:
        return f'"{low}" {_tail(first[1:], last[1:], shorter=shorter)}'
    parts = []
    if set(first[1:]) != {"0"}:
        parts.append(f'"{low}" {_tail(first[1:], "9" * rest, shorter=shorter)}')
        low += 1
    if set(last[1:]) != {"9"}:
        parts.append(f'"{high}" {_tail("0" * rest, last[1:], shorter=shorter)}')
        high -= 1
    if low <= high:
        parts.append(f"[{low}-{high}] [0-9]{{{0 if shorter else rest},{rest}}}")
    return " | ".join(parts)


def _tail(first: str, last: str, *, shorter: bool) -> str:
    optional = "?" if shorter and set(first) == {"0"} else ""
    return f"({_digits(first, last, shorter=shorter)}){optional}"


def decimal_of(bound: Any) -> Decimal:
    """A schema's bound as it is printed: the decimal that a reader of the schema sees."""
    return Decimal(repr(bound)) if isinstance(bound, float) else Decimal(bound)
