"""What a long computation knows after a step, in one file that is replaced at once."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ayaedge.files import replacing
from ayaedge.untrusted.json_text import parse_json
from ayaedge.untrusted.regular_file import open_regular

_HEADER = "header"
_SUFFIX = ".npz"

Values = dict[str, Any]
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class StateFile:
    """A file for JSON values and arrays, which belong to one computation."""

    path: Path
    mark: str
    """Everything that decides about the computation; a state with another one is not taken up."""

    def write(self, values: Values, arrays: Arrays) -> None:
        """Put this state in the place of the file's; OSError if it cannot be written."""
        header = np.array(json.dumps({"mark": self.mark, "values": values}))
        with replacing(self.path, private=True) as stream:
            np.savez(stream, **{_HEADER: header, **arrays})  # type: ignore[arg-type]

    def read(self) -> tuple[Values, Arrays] | None:
        """The last state; None if there is none, or none of this computation that is whole."""
        try:
            with open_regular(self.path, links=False) as stream, np.load(stream, allow_pickle=False) as file:
                header = parse_json(str(file[_HEADER]).encode(), constants=True)
                if header["mark"] != self.mark:
                    return None
                return header["values"], {name: file[name] for name in file.files if name != _HEADER}
        except (FileNotFoundError, KeyError, TypeError, ValueError, EOFError, zipfile.BadZipFile):
            return None


def forget_states(directory: Path) -> None:
    """Remove all state files in `directory`."""
    for path in directory.glob(f"*{_SUFFIX}"):
        path.unlink()
