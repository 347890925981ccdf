"""A terminal for tests: a program on a pseudo-terminal, and the screen that a person would see."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

import pexpect
import pyte

UP, TAB, ENTER, ALT_ENTER, ESCAPE = "\x1b[A", "\t", "\r", "\x1b\r", "\x1b"
CTRL_C, CTRL_D = "\x03", "\x04"
_PATIENCE = 30.0
"""Seconds to wait for what must come; busy machines are slow."""


class Terminal:
    """Runs this Python with `arguments`; keys go in with `type`, `screen` is what stands there."""

    def __init__(
        self,
        *arguments: str | Path,
        env: Mapping[str, str] | None = None,
        size: tuple[int, int] = (40, 120),
        cwd: Path | None = None,
    ) -> None:
        rows, columns = size
        self._screen = pyte.HistoryScreen(columns, rows, history=10_000)
        self._screen.write_process_input = self._answer  # asked where its cursor is, a terminal says so
        self._stream = pyte.ByteStream(self._screen)
        variables = {**os.environ, "TERM": "xterm-256color", **(env or {})}
        self.process = pexpect.spawn(
            sys.executable, list(map(str, arguments)), env=variables, dimensions=size, cwd=cwd, timeout=_PATIENCE
        )  # fmt: skip
        self.process.delaybeforesend = None
        self.raw = b""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.close(force=True)

    def _answer(self, text: str) -> None:
        self.process.send(text)

    @property
    def screen(self) -> str:
        """The lines that stand on the screen and above it."""
        shown = self._screen
        rows = [*shown.history.top, *(shown.buffer[number] for number in range(shown.lines))]
        lines = ["".join(row[column].data for column in range(shown.columns)) for row in rows]
        return "\n".join(line.rstrip() for line in lines).rstrip("\n")

    def type(self, keys: str) -> None:
        """Press keys."""
        self.process.send(keys.encode("utf-8", "surrogateescape"))

    def enter(self, line: str) -> None:
        """Type a line."""
        self.type(line + ENTER)

    def read(self, seconds: float = 0.05) -> bool:
        """Show what the program has written, if anything comes; False at its end."""
        try:
            data = self.process.read_nonblocking(65536, timeout=seconds)
        except pexpect.TIMEOUT:
            return True
        except pexpect.EOF:
            return False
        self.raw += data
        self._stream.feed(data)
        return True

    def wait_for(self, *texts: str) -> None:
        """Wait until all these texts stand on the screen."""
        self.wait_until(lambda screen: all(text in screen for text in texts), f"waited for {texts}")

    def wait_for_prompt(self, prompt: str = ">") -> None:
        """Wait until this is the last line."""
        self.wait_until(
            lambda screen: screen.rsplit("\n", 1)[-1] == prompt, f"waited for the prompt {prompt}"
        )

    def wait_until(self, condition: Callable[[str], bool], why: str) -> None:
        """Wait until the screen is as it should be."""
        end = time.monotonic() + _PATIENCE
        while not condition(self.screen):
            alive = self.read()
            if not condition(self.screen):
                assert alive, f"{why} and the program ended:\n{self.screen}"
                assert time.monotonic() < end, f"{why} too long:\n{self.screen}"

    def finish(self) -> int:
        """Wait for the program's end: its exit code, or minus the signal that ended it."""
        end = time.monotonic() + _PATIENCE
        while self.read():
            assert time.monotonic() < end, f"still running:\n{self.screen}"
        self.process.close()
        return self.process.exitstatus if self.process.exitstatus is not None else -self.process.signalstatus
