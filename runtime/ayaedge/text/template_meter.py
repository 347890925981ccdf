"""How much work a chat template may do, in units of about one byte copied; knows nothing of Jinja.

A template comes with a checkpoint or a bundle, and so from strangers. Whatever it does costs units before it is done:
what is copied by its size, and steps of the interpreter by their time. So time, memory and output are bounded alike.
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection, ItemsView, Iterable, KeysView, Mapping, ValuesView

from ayaedge.errors import PromptError

STEP, CALL = 8, 64
"""Units of a step in Python, and of a call."""
PER_ITEM = 32
"""Units of an item that a filter looks at in Python."""
_UNITS, _UNITS_PER_SIZE = 1 << 22, 256
"""What any template may spend, and for each character and object of the conversation. The released ones spend 6."""
_OUTPUT, _OUTPUT_PER_SIZE = 1 << 20, 8
"""Characters that any template may write, more than a context holds, and for each of the conversation."""
_NODE = 16
"""Size of an object without its contents."""
_SECONDS_PER_UNIT = 2e-7
"""The last net: a hundred times what a step takes. Seconds of this thread, which a busy machine does not lengthen."""
_LOOK = 1 << 13
"""Units between two looks at the clock."""
_LARGEST_BITS = 1 << 13
"""Of a whole number; there is no use for more in a template."""
_NUMBER = re.compile(r"\d+")


class Meter:
    """What one rendering may still spend; PromptError when nothing is left."""

    def __init__(self, variables: Mapping[str, object]) -> None:
        self._left, self._sizes, self._kept = float("inf"), dict[int, int](), list[object]()
        self._look = -float("inf")
        size = self.size(dict(variables))
        self._left = _UNITS + _UNITS_PER_SIZE * size
        self._output = _OUTPUT + _OUTPUT_PER_SIZE * size
        self._look = self._left - _LOOK
        self._end = time.thread_time() + _SECONDS_PER_UNIT * self._left

    def spend(self, units: float) -> None:
        """Take units from what is left."""
        self._left -= units
        if self._left < self._look:
            self._look = self._left - _LOOK
            if self._left < 0 or time.thread_time() > self._end:
                self._left = -1
                raise PromptError("it does more work than any conversation of this length needs")

    def write(self, characters: int) -> None:
        """Count what the template writes, into the prompt or into a variable."""
        self.spend(characters + STEP)
        self._output -= characters
        if self._output < 0:
            raise PromptError("it writes more text than any conversation of this length needs")

    def size(self, value: object) -> int:
        """Characters and objects of a value, everything inside counted as often as it occurs: its text is as long."""
        if value is None:
            return 1
        if isinstance(value, (str, bytes)):
            return len(value) + 1
        if isinstance(value, int):
            return 1 + value.bit_length() // 8
        if isinstance(value, range):
            return _NODE + 4 * len(value)
        if isinstance(value, Mapping):
            inside: Iterable[object] = (part for item in value.items() for part in item)
        elif isinstance(value, (list, tuple, set, frozenset, KeysView, ValuesView, ItemsView)):
            inside = value
        else:
            return _NODE
        known = self._sizes.get(id(value))
        if known is not None:
            return known
        total = _NODE
        for part in inside:
            self.spend(STEP)
            total += self.size(part)
        self._sizes[id(value)] = total
        self._kept.append(value)  # so that no other object gets its id; templates cannot change a value
        return total

    def read(self, value: object) -> None:
        """Pay for what looks at all of a value, such as a comparison."""
        self.spend(STEP + (len(value) if type(value) is str else self.size(value)))

    def all_of(self, values: Iterable[object]) -> list[object]:
        """The values of an iterator, each paid for."""
        found = []
        for value in values:
            self.spend(STEP)
            found.append(value)
        return found

    def operation(self, operator: str, left: object, right: object) -> None:
        """Pay for what an arithmetic operator is about to do."""
        self.spend(STEP)
        if isinstance(left, int) and isinstance(right, int):
            self._whole_numbers(operator, left, right)
        elif operator == "%" and isinstance(left, (str, bytes)):
            self.percent(left, right)
        elif operator == "*":
            for value, times in ((left, right), (right, left)):
                if isinstance(value, Collection) and isinstance(times, int):
                    self.spend(len(value) * max(times, 0))
        elif operator == "+" and isinstance(left, Collection) and isinstance(right, Collection):
            self.spend(len(left) + len(right))
        elif not isinstance(left, (int, float)) or not isinstance(right, (int, float)):
            self.spend(self.size(left) + self.size(right))

    def percent(self, text: str | bytes, values: object) -> None:
        """Pay for `text % values`: a field takes all values at most, as wide as any number says."""
        text = text if isinstance(text, str) else text.decode("latin-1")
        widths = [len(text), *map(int, _NUMBER.findall(text))]
        if "*" in text:
            listed = values if isinstance(values, tuple) else (values,)
            widths += [abs(value) for value in listed if isinstance(value, int)]
        self.spend(text.count("%") * (CALL + self.size(values)) + sum(widths))

    def _whole_numbers(self, operator: str, left: int, right: int) -> None:
        bits, more = left.bit_length(), right.bit_length()
        if operator == "**":
            bits *= max(right, 1) if right > 0 else 1
        elif operator == "*":
            bits += more
        if max(bits, more) > _LARGEST_BITS:
            raise PromptError(f"it computes with whole numbers of more than {_LARGEST_BITS} bits")
