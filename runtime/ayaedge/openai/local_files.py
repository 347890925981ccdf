"""Which files of this computer messages may name: those below directories that the program gives, and no others.

Messages come from anywhere: a program hands on what somebody has sent it. Names of files on other computers are refused
before anything is asked of the system, since Windows would send them the user's credentials.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ayaedge.checks import brief
from ayaedge.errors import InvalidOptionError, PromptError
from ayaedge.files import resolved

_HOW = "local_files names the directories whose files messages may show"


def allowed_directories(local_files: object) -> tuple[Path, ...]:
    """The directories with links resolved; InvalidOptionError for anything but paths.

    Neither text nor True is one: a program may hand on a request's JSON as keywords, which shall not open files.
    """
    if local_files is None or local_files is False:
        return ()
    given: Sequence[Any] = local_files if isinstance(local_files, (list, tuple)) else [local_files]
    for one in given:
        if not isinstance(one, os.PathLike):
            raise InvalidOptionError(f'{_HOW}, each as a Path, such as Path("images"), not {brief(one)}')
    try:
        return tuple(resolved(Path(one)) for one in given)
    except (OSError, ValueError) as error:
        raise InvalidOptionError(f"{_HOW}, and one is no path: {error}") from None


def allowed_file(path: Any, place: str, directories: Sequence[Path]) -> Path:
    """A path that messages name at `place`, with links resolved; PromptError unless it is below a directory."""
    try:
        name = os.fsdecode(path)
    except TypeError:  # of a PathLike that gives something else
        raise PromptError(f"{place} is a path that is no text") from None
    if name.replace("\\", "/").startswith("//"):
        raise PromptError(f"{place} is {brief(name)}, a file of another computer: ayaedge works offline")
    if not directories:
        raise PromptError(f"{place} is {brief(name)}, a file of this computer: {_HOW}, and none was given")
    try:
        found = resolved(Path(name))
    except (OSError, ValueError):  # too long, links in a circle, or a zero in it
        raise PromptError(f"{place} is {brief(name)}, which is no path") from None
    if not any(found.is_relative_to(directory) for directory in directories):
        raise PromptError(f"{place} is {brief(name)}, outside of the directories that local_files names")
    return found
