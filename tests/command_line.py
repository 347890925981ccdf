"""Commands of ayaedge in the tests' own process, which spares each the start of another one."""

from __future__ import annotations

import io
import logging
import signal
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import typer.main

from ayaedge.cli.main import app, main


@dataclass(frozen=True)
class Finished:
    """A command that ran in this process, as `subprocess` would describe it."""

    returncode: int
    stdout: str
    stderr: str


def ayaedge(*arguments: str | Path, typed: bytes = b"") -> Finished:
    """Run a command in this process; `typed` comes through its stdin, which is a pipe."""
    logger, handlers = logging.getLogger("ayaedge"), signal_handlers()
    before = (sys.argv, sys.stdin, list(logger.handlers))
    levels = {name: logging.getLogger(name).level for name in loggers()}
    output, code = io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True), 0
    with redirect_stdout(output), redirect_stderr(io.StringIO()) as errors:
        sys.argv = ["ayaedge", *map(str, arguments)]
        sys.stdin = io.TextIOWrapper(io.BytesIO(typed), "utf-8")
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            sys.argv, sys.stdin, logger.handlers = before
            for one in map(logging.getLogger, loggers()):
                if one.level != (level := levels.get(one.name, logging.NOTSET)):
                    one.setLevel(level)
            for number, handler in handlers.items():
                signal.signal(number, handler)
    return Finished(code, cast("io.BytesIO", output.buffer).getvalue().decode("utf-8"), errors.getvalue())


def loggers() -> list[str]:
    """Names of ayaedge's loggers, whose levels a command sets."""
    return [name for name in logging.Logger.manager.loggerDict if name.partition(".")[0] == "ayaedge"]


def signal_handlers() -> dict[signal.Signals, Any]:
    """Handlers that a command replaces by its own, or has none of from its end on."""
    names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    return {getattr(signal, name): signal.getsignal(getattr(signal, name)) for name in names}


@cache
def commands() -> dict[str, Any]:
    """Every command as typer makes it, by its name."""
    group: Any = typer.main.get_command(app)
    return {name: group.get_command(None, name) for name in group.list_commands(None)}
