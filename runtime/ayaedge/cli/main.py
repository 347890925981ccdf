"""The command line: arguments in, answers on stdout, everything else on stderr."""

from __future__ import annotations

import io
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from ayaedge import __version__
from ayaedge.cli.console import print_error, print_warning, stderr, write
from ayaedge.errors import AyaEdgeError, printable

if TYPE_CHECKING:  # never run, but PyInstaller finds here what a program takes along
    from ayaedge.cli import (  # noqa: F401
        ask,
        batch,
        bench,
        benchmark,
        cache,
        chat,
        doctor,
        export,
        info,
        mcp,
        plan,
        serve,
    )

_COMMANDS = {
    "ask": "ask:ask",
    "info": "info:info",
    "chat": "chat:chat",
    "batch": "batch:app",
    "serve": "serve:serve",
    "mcp": "mcp:mcp",
    "plan": "plan:plan",
    "tune": "plan:tune",
    "doctor": "doctor:doctor",
    "bench": "bench:bench",
    "benchmark": "benchmark:benchmark",
    "export": "export:export",
    "verify": "export:verify",
    "calibrate": "export:calibrate",
    "eval": "export:evaluate",
    "cache": "cache:app",
}
"""Every command, and where it is: module and name."""


class _Commands(TyperGroup):
    """All commands, each loaded when it is used; a wrong use may quote whatever was given."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._loaded: dict[str, Any] = dict.fromkeys(_COMMANDS)
        self.commands = self._loaded  # whose names are what is proposed instead of a wrong one

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002 - click calls it so
        if cmd_name in _COMMANDS and self._loaded[cmd_name] is None:
            self._loaded[cmd_name] = _load(cmd_name)
        return self._loaded.get(cmd_name)

    def make_context(self, *args: Any, **options: Any) -> Any:
        with _printable_uses():
            return super().make_context(*args, **options)

    def invoke(self, ctx: Any) -> Any:
        with _printable_uses():
            return super().invoke(ctx)


def _load(name: str) -> Any:
    module, _, what = _COMMANDS[name].partition(":")
    found = getattr(import_module(f"ayaedge.cli.{module}"), what)
    if not isinstance(found, typer.Typer):
        alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        alone.command(name)(found)
        found = alone
    command = typer.main.get_command(found)
    command.name = name
    return command


@contextmanager
def _printable_uses() -> Iterator[None]:
    try:
        yield
    except _WrongUse as error:
        error.message = printable(error.message)  # type: ignore[attr-defined]
        raise


_WrongUse: type[Exception] = typer.BadParameter.__mro__[1]
"""click's UsageError, which some releases of typer carry in themselves."""
app = typer.Typer(
    cls=_Commands,
    help="Run Aya Vision, a vision-language model for 23 languages, on an ordinary computer, offline.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_KILLED = 128
"""Exit code of a process that a signal ended, less the signal's number."""


def main() -> None:
    """Run the command line; a known error is one line on stderr and exit code 1, Ctrl-C exit code 130."""
    if isinstance(
        sys.stdout, io.TextIOWrapper
    ):  # answers come in 23 languages, whatever the terminal's encoding
        sys.stdout.reconfigure(encoding="utf-8")
    for name in ("SIGTERM", "SIGHUP"):  # unfinished work is tidied up on the way out
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda number, _: sys.exit(_KILLED + number))
    try:
        with warnings.catch_warnings():
            warnings.showwarning = print_warning
            app()
    except AyaEdgeError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        sys.exit(_KILLED + signal.SIGINT)
    except BrokenPipeError:  # the reader of stdout has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        _fail(str(error))
    except Exception:  # noqa: BLE001 - a defect, which may quote a file
        stderr.print(traceback.format_exc())
        sys.exit(1)


def _fail(message: str) -> None:
    print_error(message)
    sys.exit(1)


def _show_version(wanted: bool) -> None:
    if wanted:
        write(f"ayaedge {__version__}\n")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None: ...
