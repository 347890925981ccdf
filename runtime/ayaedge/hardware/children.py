"""Children: processes that run our own code, and never the program's own main file.

How one is started, made quiet and ended, and what its death is called. What it does, and what is said to it, is
decided elsewhere (`hardware.probes`, `isolation`). A program that is frozen into an executable starts itself as the
child, so it has to call `ayaedge.freeze_support()` before anything else.
"""

from __future__ import annotations

import json
import operator
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from ayaedge.errors import BackendError

_FLAG = "--ayaedge-child"
_START = "import sys; sys.path[:] = eval(sys.stdin.readline()); from ayaedge.hardware.children import begin; begin()"
"""With nothing imported before the path is this program's: the working directory would come first."""
_WINDOWS_FAULTS = {0xC0000005: "ACCESS_VIOLATION", 0xC000001D: "ILLEGAL_INSTRUCTION", 0xC0000409: "FAIL_FAST"}
FAULTS = {"SIGSEGV", "SIGILL", "SIGABRT", "SIGBUS", "SIGFPE", "SIGTRAP", "SIGSYS", *_WINDOWS_FAULTS.values()}
"""Deaths that come again; others, such as SIGKILL where memory ran out, may not."""
_MOST_SAID = 2000
_LAST_WAIT = 10.0
"""Seconds that a child which has closed its output, or was told to end, may take for it."""

_restarts = False
"""Whether this program, frozen, has called `freeze_support`."""


class Child:
    """A process that calls a function of a module with arguments that JSON has.

    `stdin` and `stdout` lead to the child, as text with an `encoding` and unbuffered bytes without; what it writes to
    stderr is kept. `more` goes to `subprocess.Popen`. Raises BackendError where no child can be started.
    """

    def __init__(
        self, function: Callable[..., Any], *arguments: Any, encoding: str | None = None, **more: Any
    ) -> None:
        call = {"function": f"{function.__module__}:{function.__qualname__}", "arguments": arguments}
        path = ascii([entry for entry in sys.path if isinstance(entry, str)])
        command = _command()
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  closed by `close`
        try:
            self.process: subprocess.Popen[Any] = subprocess.Popen(
                command, stderr=self._stderr, creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
                encoding=encoding, **{"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, **more},
            )  # fmt: skip
        except OSError as error:
            self._stderr.close()
            raise BackendError(f"{command[0]} cannot be started as a child process: {error}") from None
        self.opening = f"{path}\n{json.dumps(call, default=operator.index)}\n"
        """What the child waits for on its stdin."""

    def close(self) -> None:
        """End the process, if it has not ended, and close what leads to it."""
        self.process.kill()
        for stream in (self.process.stdin, self.process.stdout):
            if stream:
                with suppress(OSError):
                    stream.close()
        self.process.wait()
        self._stderr.close()

    def death(self) -> str:
        """How it died: `SIGSEGV`, `exit code 1`; it must have died, or have closed its output."""
        try:
            return _death_of(self.process.wait(_LAST_WAIT))
        except subprocess.TimeoutExpired:
            return "it said no more"

    def said(self) -> str:
        """The end of what it has written to stderr."""
        size = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, size - _MOST_SAID))
        return self._stderr.read().decode("utf-8", "replace").strip()


def freeze_support() -> None:
    """Let a frozen program start itself as a child: to be called first in its main file, once.

    In the child it does not return; elsewhere it does nothing else. Without it a frozen program has no children, and
    what needs one is refused: `load(isolated=True)`, `repack=True`, `ayaedge tune`.
    """
    global _restarts
    _restarts = True
    if sys.argv[1:] == [_FLAG]:
        sys.stdin.readline()  # the path, which a frozen program has already
        begin()
        sys.exit()


def begin() -> None:
    """Be the child: read what is called from stdin, and call it."""
    _die_quietly()
    call = json.loads(sys.stdin.readline())
    resolve(call["function"])(*call["arguments"])


def resolve(name: str) -> Callable[..., Any]:
    """The function that `module:function` names."""
    module, _, function = name.partition(":")
    found: Callable[..., Any] = getattr(import_module(module), function)
    return found


def _die_quietly() -> None:
    """No core file, no window with a question, no trace of an interrupt: whoever started this one decides."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "win32":
        import ctypes

        ctypes.windll.kernel32.SetErrorMode(0x0001 | 0x0002)  # no dialogs for critical errors and faults
        return
    import resource

    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _command() -> list[str]:
    """What starts a child; BackendError in a program that cannot be started for that."""
    import multiprocessing.spawn

    executable = os.fsdecode(multiprocessing.spawn.get_executable() or "")
    if not getattr(sys, "frozen", False) and _is_python(executable):
        return [executable, "-c", _START]
    if _restarts:
        return [sys.executable, _FLAG]
    raise BackendError(
        "this program has no Python interpreter to run a child process in: let its main file begin with "
        "`import ayaedge; ayaedge.freeze_support()`"
    )


def _is_python(executable: str) -> bool:
    """Whether it can be told what to run; a program that embeds Python cannot."""
    return Path(executable).name.lower().startswith(("python", "pypy")) and os.access(executable, os.X_OK)


def _death_of(code: int) -> str:
    if code >= 0:
        return _WINDOWS_FAULTS.get(code) or f"exit code {code}"
    with suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"
