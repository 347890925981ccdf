"""What Jinja's filters and tests and the methods of Python's values cost (see `ayaedge.text.template_meter`).

Those that templates use in earnest have a bound that fits. Any other is taken to need the square of all it is given,
which leaves it to short texts and lists.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from itertools import chain
from types import BuiltinMethodType, MethodType
from typing import Any

from ayaedge.errors import PromptError
from ayaedge.text.template_meter import CALL, PER_ITEM, STEP, Meter


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_AT_ONCE = _names("attr count length d default first last random abs filesizeformat")
"""Filters that look at no more than one item."""
_EACH_ITEM = _names("items list map reject rejectattr reverse select selectattr batch slice")
_ALL_TEXT = _names(
    "capitalize e escape float forceescape int lower max min safe string title trim truncate unique upper urlencode "
    "wordcount"
)
_SORTED = _names("dictsort groupby sort")
_BY_ATTRIBUTE = _names("groupby join map max min rejectattr selectattr sort sum unique")
"""Filters that may be given attributes with dots and commas, and then take a step for each part and item."""
_OF_VALUES = _names("!= < <= == > >= eq equalto ge greaterthan gt in le lessthan lt ne lower upper")
"""Tests that look at all of a value; the others ask what kind it has."""
_SORTING = 32
_FINEST = 400
"""Digits behind a point or before it that a number may be rounded to."""
_WIDEST_INDENT = 1 << 10
_LINEAR_METHODS = _names(
    "capitalize casefold count endswith find index isalnum isalpha isascii isdecimal isdigit isidentifier islower "
    "isnumeric isprintable isspace istitle isupper lower partition removeprefix removesuffix startswith swapcase title "
    "upper copy"
)
_FROM_THE_END = _names("lstrip rfind rindex rpartition rsplit rstrip strip trim")
"""What compares up to all of its argument at each place: only searching forwards is linear in Python."""
_SPLITTING = frozenset(("split", "splitlines"))
_VIEWS = frozenset(("items", "keys", "values"))
_PADDING = frozenset(("center", "ljust", "rjust", "zfill"))


def pay_filter(
    meter: Meter, name: str, value: object, arguments: tuple[Any, ...], named: Mapping[str, Any]
) -> None:
    """Pay for a filter before it runs."""
    given = [*arguments, *named.values()]
    meter.spend(CALL)
    if name in _BY_ATTRIBUTE:
        parts = sum(one.count(".") + one.count(",") for one in given if isinstance(one, str))
        meter.spend(PER_ITEM * _count(value) * parts)
    if name in _AT_ONCE:
        return
    if name in _EACH_ITEM:
        counts = _amounts(meter, given) if name in ("batch", "slice") else 0
        meter.spend(PER_ITEM * (_count(value) + counts))
    elif name == "round":
        if any(isinstance(one, int) and abs(one) > _FINEST for one in given):
            raise PromptError(f"it rounds to more than {_FINEST} digits")
    elif name == "tojson":
        _pay_json(meter, value, given)
    elif name == "format":
        meter.percent(str(value), tuple(arguments) or dict(named))
    else:
        meter.spend(_filter_cost(meter, name, value, given))


def pay_test(
    meter: Meter, name: str, value: object, arguments: tuple[Any, ...], named: Mapping[str, Any]
) -> None:
    """Pay for a test before it runs."""
    meter.spend(CALL)
    if name in _OF_VALUES:
        meter.spend(meter.size(value) + sum(map(meter.size, (*arguments, *named.values()))))


def pay_call(meter: Meter, called: Any, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
    """Pay for a call before it is made: of a method of a value, or of what a template has defined."""
    given = [*arguments, *named.values()]
    meter.spend(CALL + STEP * len(given))
    owner = called.__self__ if isinstance(called, (BuiltinMethodType, MethodType)) else None
    if called is dict or (isinstance(called, MethodType) and called.__name__ == "changed"):
        meter.spend(sum(map(meter.size, given)))
    elif isinstance(called, BuiltinMethodType) or isinstance(owner, str):
        meter.spend(_method_cost(meter, called.__name__, owner, given))


def _filter_cost(meter: Meter, name: str, value: object, given: list[Any]) -> int:
    size = meter.size(value)
    if name == "replace":
        return _replaced(size, given)
    if name in _FROM_THE_END:
        return size * (1 + _amounts(meter, given))
    if name in _ALL_TEXT:
        return size if name not in ("urlencode", "unique") else PER_ITEM * size
    if name in _SORTED:
        return _SORTING * size
    amounts = _amounts(meter, given)
    if name == "center":
        return size + amounts
    if name == "join":
        return 4 * size + (_count(value) + 1) * amounts
    if name == "indent":
        lines = value.count("\n") + value.count("\r") + 1 if isinstance(value, str) else size
        return 2 * size + lines * amounts
    return _square(meter, value, given)


def _method_cost(meter: Meter, name: str, owner: object, given: list[Any]) -> int:
    if name in _VIEWS:
        return 0
    if name == "get":
        return sum(map(meter.size, given[:1]))
    if name in _LINEAR_METHODS:
        return meter.size(owner) + sum(map(meter.size, given))
    if name in _SPLITTING:
        return PER_ITEM * meter.size(owner)
    amounts = _amounts(meter, given)
    if name in _FROM_THE_END:
        return meter.size(owner) * ((PER_ITEM if name == "rsplit" else 1) + _amounts(meter, given[:1]))
    if name in _PADDING:
        return meter.size(owner) + amounts
    if name == "join" and given:
        return meter.size(given[0]) + (_count(given[0]) + 1) * _amount(meter, owner)
    if name == "replace":
        return _replaced(meter.size(owner), given)
    if name == "expandtabs" and isinstance(owner, (str, bytes)):
        return len(owner) * max(amounts, 8)
    return _square(meter, owner, given)


def _replaced(size: int, given: list[Any]) -> int:
    """Bound of the length of a text with something replaced."""
    old, new = 1, 0
    for place, one in enumerate(given):
        length = len(one) if isinstance(one, str) else len(str(one))
        if place == 0 and len(given) > 1:
            old = max(length, 1)
        else:
            new += length
    return size + (size // old + 1) * new


def _square(meter: Meter, value: object, given: list[Any]) -> int:
    return (meter.size(value) + sum(map(meter.size, given)) + _amounts(meter, given)) ** 2


def _pay_json(meter: Meter, value: object, given: list[Any]) -> None:
    """An indented text has a line for each object, in front of which the blanks of its depth stand."""
    widest = max((_amount(meter, one) for one in given), default=0)
    if widest > _WIDEST_INDENT:
        raise PromptError(f"it indents JSON by more than {_WIDEST_INDENT} characters")
    size = meter.size(value)
    meter.spend(6 * size + size * widest * (_depth(value) if widest > 1 else 1))


def _depth(value: object) -> int:
    """How deep lists and dictionaries are nested."""
    depth, level = 0, [value]
    while level and depth < _WIDEST_INDENT:  # deeper ones are refused by json
        depth += 1
        inside = (
            one.values() if isinstance(one, Mapping) else one
            for one in level
            if isinstance(one, (Mapping, list, tuple))
        )  # fmt: skip
        level = list({id(one): one for one in chain.from_iterable(inside)}.values())
    return depth


def _count(value: object) -> int:
    return len(value) if isinstance(value, Collection) else 1


def _amounts(meter: Meter, values: Iterable[object]) -> int:
    return sum(_amount(meter, value) for value in values)


def _amount(meter: Meter, value: object) -> int:
    """What an argument may lengthen a text by: itself if it is a number, or else its size."""
    if isinstance(value, int):
        return abs(value)
    return len(value) if isinstance(value, (str, bytes)) else meter.size(value)
