"""What both halves of the command line share: where text goes, and how progress looks.

stdout carries answers and reports and nothing else; everything for the eye goes to stderr.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from ayaedge.errors import printable

if TYPE_CHECKING:  # answers need numpy, which not every command does
    from ayaedge.answers import Timings


class _Screen(Console):
    """Everything that people read passes through here: nothing that it quotes is markup, or steers their terminal."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """See rich's `Console.render`, through which bars and tables go as well."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


stderr = _Screen(stderr=True, soft_wrap=True)
JsonFlag = Annotated[bool, typer.Option("--json", help="Write one JSON object to stdout.")]

_DESCRIPTION = TextColumn("{task.description}", markup=False)
_STEPS = {"vision": "tiles", "prefill": "tokens"}
_REPORT_WIDTH = 120
_LABEL_WIDTH = 40
_CONTROL = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u202d\u202e]")
"""What no text in any language needs; other marks of direction do stand in answers."""
_IN_JSON = re.compile("[\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What `json` writes as it is."""


def write(text: str) -> None:
    """Put an answer, or a part of it, on stdout at once; OSError if there is none.

    On a terminal control characters are replaced: an answer may repeat what an image says, and a terminal obeys them.
    """
    if sys.stdout is None:
        raise OSError("there is no standard output to write the answer to")
    sys.stdout.write(_CONTROL.sub("\ufffd", text.replace("\r", "")) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def write_line(text: str) -> None:
    """Put a line of a report on stdout, wherever that leads."""
    write(f"{printable(text)}\n")


def write_json(value: object, *, indent: int | None = None) -> None:
    """Put one JSON value on stdout."""
    write_json_text(json.dumps(value, indent=indent, ensure_ascii=False) + "\n")


def write_json_text(text: str) -> None:
    """Put JSON on stdout; what would steer a terminal is written as `\\u....`, which means the same."""
    write(_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


FLAGS = {
    "AyaVision.measure": "ayaedge tune",
    "another target": "-o DIR",
    "answer_tokens": "-n N",
    "api_key": "--api-key KEY",
    "context_size": "-c N",
    "force=True": "--force",
    "leave out trace": "--trace",
    "logit_scale=1": "--logit-scale 1",
    "merge ancestor": "--merge-ancestor DIR",
    "merge base": "--merge BASE",
    "merge weight": "--merge-weight W",
    "max_error_rate": "--max-error-rate SHARE",
    "max_tiles": "--max-tiles N",
    "no_auth": "--no-auth",
    "resume=True": "--resume",
    "smaller quant": "--quant",
    'tiles="auto"': "--tiles auto",
    'through="layers"': "--through layers",
    "verbose shows": "-v",
    'vision="fp16"': "--vision fp16",
    'vision="fp32"': "--vision fp32",
    'vision="int8-block"': "--vision int8-block",
    'VisionOptions(device="cpu")': "--vision-device cpu",
}
"""What the library's advice, as it stands in messages, is called on the command line."""


def with_flags(message: str) -> str:
    """A message of the library, and which flags of the command line do what it advises."""
    flags = [flag for name, flag in FLAGS.items() if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", message)]
    return f"{message} (on the command line: {', '.join(flags)})" if flags else message


def print_error(message: str) -> None:
    """What went wrong, on stderr."""
    stderr.print(Text("error: ", "bold red").append(with_flags(message), "default not bold"))


def print_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: object, **__: object
) -> None:
    """What Python warns of, on stderr; takes the place of `warnings.showwarning`."""
    stderr.print(f"{filename}:{lineno}: {category.__name__}: {message}")


def accelerated(timings: Timings) -> str:
    """Behind the seconds of a prefill: which kernel ran and what it gains; nothing where none did."""
    if timings.acceleration == "off":
        return ""
    return f" ({timings.acceleration}, {timings.acceleration_gain:.1f} x llama.cpp's products)"


def announce(done: str, what: str) -> None:
    """One line on stderr for something that went well."""
    stderr.print(Text(f"{done} ", "green").append(what, "default"))


def print_table(table: Table) -> None:
    """A report on stdout; a pipe has no width, so every row stays on one line there."""
    _Screen(width=None if sys.stdout.isatty() else _REPORT_WIDTH).print(table)


@contextmanager
def byte_progress(total: int, *, even: bool = True) -> Iterator[Callable[[int, str], None]]:
    """A bar over bytes; called with how many more are done, and what they belong to.

    With speed and time left where bytes are all the work, at an `even` speed.
    """
    columns = [_DESCRIPTION, BarColumn(), DownloadColumn()]
    if even:
        columns += [TransferSpeedColumn(), TimeRemainingColumn()]
    with Progress(*columns, console=stderr, transient=True) as progress:
        task = progress.add_task("reading", total=total)

        def advance(count: int, what: str) -> None:
            progress.update(task, advance=count, description=what[-_LABEL_WIDTH:].rjust(_LABEL_WIDTH))

        yield advance


@contextmanager
def count_progress(what: str) -> Iterator[Callable[..., None]]:
    """A bar over things that are counted; called with how many are done, of how many, and perhaps a name."""
    columns = (_DESCRIPTION, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=stderr, transient=True) as progress:
        task = progress.add_task(what, total=None)

        def advance(done: int, of: int, name: str = "") -> None:
            progress.update(task, completed=done, total=of, description=f"{what} {name}".strip())

        yield advance


@contextmanager
def step_progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each step of a question, gone when it ends; nothing where stderr is no terminal."""
    columns = (_DESCRIPTION, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as progress:
        tasks: dict[str, TaskID] = {}

        def advance(step: str, done: int, of: int) -> None:
            if step not in tasks:
                tasks[step] = progress.add_task(_STEPS[step], total=of)
            progress.update(tasks[step], completed=done)

        yield advance


class _ConsoleHandler(logging.Handler):
    """Writes messages above a progress bar, if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler.emit`."""
        stderr.print(Text(with_flags(self.format(record))))


def show_messages(level: int) -> None:
    """Write what ayaedge and its libraries say to stderr, from this level of `logging` on."""
    from ayaedge.cache.verified import HASHING  # numpy: a third of the start of what shows none

    handler = _ConsoleHandler()
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    logger = logging.getLogger("ayaedge")
    logger.addHandler(handler)
    logger.setLevel(level)
    logging.getLogger(HASHING).setLevel(min(level, logging.INFO))  # seconds in which nothing else is shown


def size_text(size: int) -> str:
    """Bytes as people read them."""
    return f"{size / 1e6:,.1f} MB" if size < 1e9 else f"{size / 1e9:,.2f} GB"
