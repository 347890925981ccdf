"""Values of a configuration file, read with the type and range that they must have.

What is wrong is collected, never raised, so that a user sees all of it at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ayaedge.checks import real_number, shown

LARGEST = 1 << 24
"""Above any count, size or id that a real checkpoint has."""


class Fields:
    """One JSON object of a file; a value of the wrong type or range becomes a fault, and its default is used."""

    def __init__(
        self, values: object, where: str, faults: list[str], defaults: Mapping[str, Any] | None = None
    ):
        self._where, self._faults = where, faults
        if not isinstance(values, Mapping):
            faults.append(f"{where} must be an object, not {shown(values)}")
            values = {}
        self._values = {**(defaults or {}), **values}

    def __contains__(self, key: str) -> bool:
        return self._values.get(key) is not None

    def get(self, key: str) -> Any:
        """The value as it is, None if it is missing."""
        return self._values.get(key)

    def section(
        self, key: str, defaults: Mapping[str, Any] | None = None, *, required: bool = False
    ) -> Fields:
        """An object inside this one."""
        if required and key not in self:
            self._faults.append(f"{self._where} has no {key}")
        values = self._values.get(key)
        return Fields({} if values is None else values, key, self._faults, defaults)

    def integer(self, key: str, default: int = 1, *, low: int = 1, high: int = LARGEST) -> int:
        """A whole number from `low` to `high`."""
        value = self._values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self._fault(key, value, f"a whole number from {low} to {high}")
            return max(low, min(default, high))
        return value

    def number(self, key: str, default: float = 1.0, *, positive: bool = True) -> float:
        """A finite number, above zero unless `positive` is false."""
        value = self._values.get(key, default)
        limits = "a finite number" + " above 0" * positive
        if real_number(key, value, above=0 if positive else -math.inf, limits=limits):
            self._fault(key, value, limits)
            return default
        return float(value)

    def channels(self, key: str, default: tuple[float, float, float]) -> tuple[float, float, float]:
        """A finite number for each of three channels."""
        value = self._values.get(key, default)
        if not isinstance(value, (list, tuple)) or len(value) != 3:
            self._fault(key, value, "a list of 3 numbers")
            return default
        items = Fields(dict(zip("rgb", value, strict=True)), f"{self._where}.{key}", self._faults)
        red, green, blue = (items.number(c, d, positive=False) for c, d in zip("rgb", default, strict=True))
        return red, green, blue

    def text(self, key: str, default: str) -> str:
        """A string of at least one character."""
        value = self._values.get(key, default)
        if not isinstance(value, str) or not value:
            self._fault(key, value, "a text")
            return default
        return value

    def flag(self, key: str, *, default: bool) -> bool:
        """True or false."""
        value = self._values.get(key, default)
        if not isinstance(value, bool):
            self._fault(key, value, "true or false")
            return default
        return value

    def expect(self, key: str, wanted: object) -> None:
        """A fault unless the value is `wanted` or missing."""
        value = self._values.get(key, wanted)
        if value != wanted:
            self._faults.append(f"{self._where} has {key} {shown(value)}; supported is {wanted!r}")

    def _fault(self, key: str, value: object, wanted: str) -> None:
        self._faults.append(f"{self._where} has {key} {shown(value)}, which is not {wanted}")
