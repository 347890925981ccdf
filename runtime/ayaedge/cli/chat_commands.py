"""What a line typed into a chat means: a question, a command, or images that were dropped on the terminal.

Knows text only; commands are carried out by `ayaedge.cli.chat_loop`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import TypeAlias, get_args

from ayaedge.cli.pasted_paths import BLANKS, WINDOWS, find_paths
from ayaedge.errors import InvalidOptionError
from ayaedge.images.tile_budget import DEFAULT_BUDGET, TileChoice
from ayaedge.images.tiling import TilePolicy

COMMANDS = {
    "image": ("PATH... | clear", "attach images to the next question; alone: show what is attached"),
    "clear": ("", "forget all questions and answers"),
    "undo": ("", "forget the last question and its answer; its images are attached again"),
    "system": ("TEXT | none", "set or remove the instruction before the chat; alone: show it"),
    "tiles": ("faithful | native | auto SECONDS | NUMBER", "how finely images are read; alone: show it"),
    "stats": ("", "tokens, tiles and seconds of the last answer"),
    "save": ("FILE", "keep this chat in a file (.ayachat)"),
    "open": ("FILE", "go on with a chat that was saved"),
    "help": ("", "show this"),
    "bye": ("", "leave; so do /exit, /quit and Ctrl-D"),
}
"""What may follow each command, and what it does."""
_ALIASES = {"exit": "bye", "quit": "bye"}


@dataclass(frozen=True)
class Question:
    """Something for the model."""

    text: str


@dataclass(frozen=True)
class Command:
    """Something for the chat itself."""

    name: str
    """One of `COMMANDS`."""
    argument: str
    """What follows the name, without blanks around it."""


@dataclass(frozen=True)
class DroppedImages:
    """Image files whose paths are the whole line."""

    paths: tuple[str, ...]


Input: TypeAlias = "Question | Command | DroppedImages | None"


def read_line(line: str, is_image: Callable[[str], bool], *, windows: bool = WINDOWS) -> Input:
    """What a line means, None for a blank one; `is_image` says of a path whether it is that of an image file.

    Raises InvalidOptionError for a command that there is not: it names those that there are, the nearest first.
    """
    line = line.strip(BLANKS)
    if not line:
        return None
    if line.startswith("//"):
        return Question(line[1:])
    first = line.split(maxsplit=1)[0]
    name = first[1:].lower()
    name = _ALIASES.get(name, name)
    if first.startswith("/") and name in COMMANDS:
        return Command(name, line[len(first) :].strip())
    if all(map(is_image, paths := find_paths(line, is_image, windows=windows))):
        return DroppedImages(tuple(paths))
    if first.startswith("/"):
        raise InvalidOptionError(_no_command(first))
    return Question(line)


def _no_command(word: str) -> str:
    if "/" in word[1:]:
        return (
            f"{word} is neither a command nor an image file: "
            "/image PATH attaches any file, a question that begins with / is written with //"
        )
    nearest = sorted(COMMANDS, key=lambda name: -SequenceMatcher(None, word[1:].lower(), name).ratio())
    return (
        f"there is no command {word}, but {', '.join(f'/{name}' for name in nearest)}; "
        "a question that begins with / is written with //"
    )


def parse_tiles(argument: str, current: TileChoice) -> TileChoice:
    """What /tiles asks for: a policy alone, `auto` with seconds, or a number, which limits the current policy.

    Raises InvalidOptionError for anything else.
    """
    words = argument.lower().split()
    if len(words) == 1 and words[0] in get_args(TilePolicy):
        return TileChoice(words[0])  # type: ignore[arg-type]  # it was just looked up
    if len(words) == 1 and words[0].isdecimal():
        return TileChoice(current.policy, int(words[0]), current.budget)
    if len(words) == 2 and words[0] == "auto":
        return TileChoice("auto", budget=_seconds(words[1]))
    raise InvalidOptionError(f"/tiles takes {COMMANDS['tiles'][0]}, not {argument!r}")


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan  # refused with the others that make no sense


def describe_tiles(choice: TileChoice) -> str:
    """In words: how finely images are read."""
    meaning = {
        "faithful": "faithful (the reference's grid)",
        "native": "native (no more than an image has pixels for)",
        "auto": f"auto (as many as {choice.budget or DEFAULT_BUDGET:g} seconds to the first word allow)",
    }[choice.policy]
    return meaning + (f", at most {choice.max_tiles} for an image" if choice.max_tiles else "")


def help_text() -> str:
    """All commands, a line each, and how to write what is not one."""
    lines = [f"/{name} {argument}".ljust(50) + meaning for name, (argument, meaning) in COMMANDS.items()]
    return "\n".join(
        [
            *lines,
            "",
            "Files dropped on the terminal are attached. Ctrl-C stops an answer.",
            "Alt-Enter, or \\ at the end, begins another line. A question that begins with / is written with //.",
        ]
    )


def joins_next_line(line: str) -> bool:
    """Whether a line ends in a backslash that is not itself escaped."""
    return (len(line) - len(line.rstrip("\\"))) % 2 == 1
