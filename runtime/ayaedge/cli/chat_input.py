"""Where the lines of a chat come from: an editor on a terminal, a terminal that has none, or a pipe.

Knows nothing of what the lines mean. The editor itself is `ayaedge.cli.chat_terminal`, loaded only where it is used.
"""

from __future__ import annotations

import io
import os
import sys
from typing import BinaryIO, Protocol, TextIO

from ayaedge.cli.chat_commands import joins_next_line
from ayaedge.cli.console import stderr
from ayaedge.files import encoding_of

_PLAIN_TERMINALS = ("", "dumb", "unknown")


class LineReader(Protocol):
    """Gives the lines of a chat."""

    interactive: bool
    """Whether somebody types them."""

    def read(self, prompt: str) -> str | None:
        """The next line, which may have line breaks in it; None at the end. Raises KeyboardInterrupt."""


class PlainLines:
    """Lines as they come, in UTF-8 or as a byte-order mark says; one that ends in a backslash goes on in the next."""

    def __init__(self, stream: BinaryIO, *, interactive: bool = False):
        self.interactive = interactive
        self._stream = stream
        self._begun = False

    def read(self, prompt: str) -> str | None:
        """See `LineReader`; a prompt is shown only where somebody types."""
        line = self._read(prompt)
        while line is not None and joins_next_line(line):
            line = line[:-1] + "\n" + (self._read("  ") or "")
        return line

    def _read(self, prompt: str) -> str | None:
        if self.interactive:
            stderr.print(prompt, end="", markup=False)
        data = self._next_line()
        if not data and self.interactive:
            stderr.print()
        return _decode(data).rstrip("\r\n") if data else None

    def _next_line(self) -> bytes:
        """A line in UTF-8; input that begins with another mark is read to its end, as its lines end in another way."""
        line = self._stream.readline()
        encoding, begun, self._begun = encoding_of(line), self._begun, True
        if begun or encoding.startswith("utf-8"):
            return line
        text = (line + self._stream.read()).decode(encoding, "replace")
        self._stream = io.BytesIO(text.encode())
        return self._stream.readline()


def _decode(data: bytes) -> str:
    """UTF-8 whatever the locale; bytes that are none are kept, as Python keeps them in names of files."""
    return data.decode("utf-8", "surrogateescape").removeprefix("\ufeff")


def open_lines() -> LineReader:
    """The lines of standard input, with an editor where it and the messages' stream are a capable terminal."""
    if sys.stdin is None:
        return PlainLines(io.BytesIO())
    if not sys.stdin.isatty():
        return PlainLines(sys.stdin.buffer)
    screen = _screen()
    if screen is None:
        return PlainLines(sys.stdin.buffer, interactive=True)
    from ayaedge.cli.chat_terminal import TerminalLines

    return TerminalLines(screen)


def _screen() -> TextIO | None:
    """Where the editor may draw: stderr, as stdout is for answers; None if there is no terminal that can."""
    windows = os.name == "nt"
    if not windows and os.environ.get("TERM", "").lower() in _PLAIN_TERMINALS:
        return None
    streams = (
        [sys.stdout] if windows else [sys.stderr, sys.stdout]
    )  # a console of Windows is found by stdout alone
    return next((stream for stream in streams if stream is not None and stream.isatty()), None)
