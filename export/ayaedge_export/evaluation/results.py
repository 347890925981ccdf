"""What windows gave, and the file in which an evaluation keeps them, so that it goes on after an interruption."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ayaedge.errors import InvalidOptionError
from ayaedge.files import replacing, text_of
from ayaedge.untrusted.json_text import parse_json
from ayaedge.untrusted.regular_file import read_regular

_JOURNAL_VERSION = 1
_MOST_BYTES = 1 << 28
"""Of a journal: a window of 512 tokens takes 15,000."""


@dataclass(frozen=True)
class WindowResult:
    """What one window gave, a value for each compared position."""

    key: str
    language: str
    after_image: bool
    kl: NDArray[np.float64]
    same_top: NDArray[np.bool_]

    def to_json(self) -> str:
        """One line."""
        values = {**asdict(self), "kl": self.kl.tolist(), "same_top": self.same_top.astype(int).tolist()}
        return json.dumps(values, ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> WindowResult:
        """The result that a line holds; ValueError, KeyError or TypeError if it holds none."""
        values = parse_json(line.encode(), constants=True)
        kl, same = np.asarray(values["kl"], np.float64), np.asarray(values["same_top"], np.bool_)
        if not isinstance(values["key"], str):
            raise TypeError("a window without a name")
        return cls(values["key"], values["language"], values["after_image"], kl, same)


class Journal:
    """Results of finished windows in a file of JSON lines, the first of which says what was evaluated.

    Without a path nothing is kept. A last line that was cut off is dropped; InvalidOptionError for a file of another
    evaluation.
    """

    def __init__(self, path: Path | None, identity: Mapping[str, str]):
        self.results: dict[str, WindowResult] = {}
        self._path = path
        if path is None:
            return
        header = json.dumps({"ayaedge_eval": _JOURNAL_VERSION, **identity}, ensure_ascii=False)
        lines = _lines(path)
        if lines and lines[0] != header:
            raise InvalidOptionError(
                f"{path} holds windows of another evaluation; remove it, or choose another journal"
            )
        for line in lines[1:]:
            try:
                result = WindowResult.from_json(line)
            except (ValueError, KeyError, TypeError):
                break
            self.results[result.key] = result
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [header, *(result.to_json() for result in self.results.values())]
        with replacing(path, private=False) as stream:
            stream.write(("\n".join(kept) + "\n").encode())

    def add(self, result: WindowResult) -> None:
        """Keep a result, and write it down at once."""
        self.results[result.key] = result
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(result.to_json() + "\n")


def _lines(path: Path) -> list[str]:
    """The lines of a journal, none if it is not there; InvalidOptionError for what is no file."""
    try:
        return text_of(read_regular(path, most_bytes=_MOST_BYTES)).splitlines()
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise InvalidOptionError(f"the journal {path} cannot be read: {error}") from None
