"""What is wrong with values, in words: of options, of requests and of what files say.

A check gives None if nothing is wrong; `require_...` gives the value as Python's own, or raises InvalidOptionError.
Numbers of numpy and other libraries count as numbers; `plain` and `make_plain` turn them into Python's own, so that
what is stored can be written as JSON and handed to C. `earlier_name` warns of names that are gone soon.
"""

from __future__ import annotations

import math
import operator
import os
import types
import typing
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ayaedge.errors import InvalidOptionError

_T = TypeVar("_T")

_SHOWN = 100
_BRIEF = 60


def check_options(*faults: str | None) -> None:
    """Raise InvalidOptionError for what is wrong with options, all at once."""
    found = [fault for fault in faults if fault]
    if found:
        raise InvalidOptionError("; ".join(found))


def earlier_name(earlier: str, now: str) -> Any:
    """A property that reads the attribute `now`, with a DeprecationWarning which names it."""

    def read(owner: object) -> Any:
        what = type(owner).__name__
        warnings.warn(f"{what}.{earlier} is now {what}.{now}", DeprecationWarning, stacklevel=2)
        return getattr(owner, now)

    return property(read, doc=f"The earlier name of `{now}`; the next version does not have it.")


def plain(value: Any) -> Any:
    """A number or truth value of numpy, or anything that Python takes for a whole number, as Python's own.

    Anything else stays as it is: whether it is wanted is for the checks to say.
    """
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, np.floating):
        return float(value)
    try:
        return value if isinstance(value, bool) else operator.index(value)
    except Exception:  # noqa: BLE001 - of a foreign object
        return value


def make_plain(options: Any) -> None:
    """Do so with all fields of a frozen dataclass; for its `__post_init__`."""
    for field in fields(options):
        object.__setattr__(options, field.name, plain(getattr(options, field.name)))


def whole_number(
    name: str, value: object, *, least: int, most: int | None = None, optional: bool = False
) -> str | None:
    """A whole number in a range; True and False are none."""
    value = plain(value)
    if optional and value is None:
        return None
    if (
        isinstance(value, int)
        and not isinstance(value, bool)
        and least <= value <= (value if most is None else most)
    ):
        return None
    limits = f"of {least} or more" if most is None else f"from {least} to {most}"
    return f"{name} must be a whole number {limits}, not {shown(value)}"


def real_number(
    name: str, value: object, *, above: float = -math.inf, least: float = -math.inf, most: float = math.inf,
    limits: str, optional: bool = False,
) -> str | None:  # fmt: skip
    """A finite number; `limits` says in words what `above`, `least` and `most` say."""
    value = plain(value)
    if optional and value is None:
        return None
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number) and number > above and least <= number <= most:
            return None
    return f"{name} must be {limits}, not {shown(value)}"


def one_of(name: str, value: object, choices: Sequence[str], *, optional: bool = False) -> str | None:
    """One of some strings."""
    if (optional and value is None) or (isinstance(value, str) and value in choices):
        return None
    return f"{name} must be one of {', '.join(choices)}, not {shown(value)}"


def instance(name: str, value: object, kind: type, *, optional: bool = False) -> str | None:
    """An object of a class, or numpy's of the same kind."""
    if (optional and value is None) or isinstance(plain(value), kind):
        return None
    return f"{name} must be a {kind.__name__}, not {shown(value)}"


def function(name: str, value: object) -> str | None:
    """Something that can be called, or None."""
    return None if value is None or callable(value) else f"{name} must be a function, not {shown(value)}"


def unicode_text(name: str, text: str) -> str | None:
    """Text that can be encoded."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"{name} is not valid Unicode: half of a surrogate pair at character {error.start}"
    return None


def require_whole(name: str, value: object) -> int:
    """A whole number of any size."""
    value = plain(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise InvalidOptionError(f"{name} must be a whole number, not {brief(value)}")


def require_real(name: str, value: object) -> float:
    """A number."""
    value = plain(value)
    try:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    except OverflowError:
        raise InvalidOptionError(f"{name} is far too large") from None
    raise InvalidOptionError(f"{name} must be a number, not {brief(value)}")


def require_flag(name: str, value: object) -> bool:
    """True or False."""
    value = plain(value)
    if isinstance(value, bool):
        return value
    raise InvalidOptionError(f"{name} must be true or false, not {brief(value)}")


def require_string(name: str, value: object) -> str:
    """A string that can be encoded."""
    if not isinstance(value, str):
        raise InvalidOptionError(f"{name} must be a string, not {brief(value)}")
    check_options(unicode_text(name, value))
    return value


def require_strings(name: str, value: object) -> tuple[str, ...]:
    """A list of such strings."""
    if not isinstance(value, (list, tuple)):
        raise InvalidOptionError(f"{name} must be a list of strings, not {brief(value)}")
    return tuple(require_string(f"{name}[{number}]", item) for number, item in enumerate(value))


def path_of(name: str, value: object) -> Path:
    """A path from whatever names one; InvalidOptionError for anything else."""
    if isinstance(value, (str, os.PathLike)):
        try:
            return Path(os.fsdecode(value))
        except TypeError:  # of a PathLike that gives something else
            pass
    raise InvalidOptionError(f"{name} must be a path, not {shown(value)}")


def build(cls: type[_T], data: object, where: str, faults: list[str]) -> _T:
    """A dataclass from parsed JSON, checking every field's type; unknown keys are ignored.

    Bytes are hexadecimal digits there, and paths and tuples strings and lists.
    """
    if not isinstance(data, Mapping):
        faults.append(f"{where or 'the whole'} must be an object")
        data = {}
    hints = _hints(cls)  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for item in fields(cls):  # type: ignore[arg-type]
        place = f"{where}.{item.name}".lstrip(".")
        if item.name in data:
            values[item.name] = _convert(hints[item.name], data[item.name], place, faults)
        elif item.default is MISSING and item.default_factory is MISSING:
            faults.append(f"{place} is missing")
            values[item.name] = None
    return cls(**values)


@cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _convert(hint: Any, value: object, place: str, faults: list[str]) -> Any:
    if is_dataclass(hint):
        return build(typing.cast("type[Any]", hint), value, place, faults)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):  # only "or None" is used
        return None if value is None else _convert(arguments[0], value, place, faults)
    if origin is tuple and isinstance(value, list):
        return tuple(_convert(arguments[0], item, place, faults) for item in value)
    if origin is dict and isinstance(value, dict):
        return {key: _convert(arguments[1], item, f"{place}.{key}", faults) for key, item in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, str) and hint in (bytes, Path):
        return _from_string(hint, value, place, faults)
    if (origin is typing.Literal and value in arguments) or (hint is Any and value is None):
        return value
    if not (isinstance(hint, type) and isinstance(value, hint)) or isinstance(value, bool) != (hint is bool):
        faults.append(f"{place} has the wrong type: {shown(value)}")
    return value


def _from_string(hint: Any, value: str, place: str, faults: list[str]) -> Any:
    try:
        return bytes.fromhex(value) if hint is bytes else hint(value)
    except ValueError:
        faults.append(f"{place} is not made of hexadecimal digits: {shown(value)}")
        return b""


def shown(value: object) -> str:
    """A value for a message: its `repr`, cut; or its type, where that is too long, too deep or fails."""
    if isinstance(value, (str, bytes)) and len(value) > _SHOWN:
        value = value[:_SHOWN]
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - of a foreign object
        return f"a {type(value).__name__}"
    return text if len(text) <= 3 * _SHOWN else f"{text[: 3 * _SHOWN]}..."


def brief(value: object) -> str:
    """A short text or a number as it is, of anything else the type, for what anybody may send: it may be huge."""
    if isinstance(value, str):
        return repr(str(value) if len(value) <= _BRIEF else value[:_BRIEF] + "...")
    if value is None or isinstance(value, (bool, float)) or (isinstance(value, int) and abs(value) < 10**18):
        return repr(value)
    return type(value).__name__


def nearest(name: object, known: Collection[str]) -> str:
    """The end of a message about a name that is not known: which known one it may be meant for, if any."""
    import difflib  # slow to load, for messages alone

    near = difflib.get_close_matches(name[:_BRIEF], sorted(known), 1) if isinstance(name, str) else []
    return f"; did you mean {near[0]}?" if near else ""
