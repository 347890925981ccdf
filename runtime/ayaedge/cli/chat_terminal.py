"""The editor of a chat's lines on a terminal: history, several lines, completion of commands and of file names.

Loading this module loads prompt_toolkit. History is kept in memory only: questions are private.
"""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import completion_is_selected, has_focus
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.input import create_input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import create_output

from ayaedge.cli.chat_commands import COMMANDS, joins_next_line
from ayaedge.cli.interrupts import signals_deferred
from ayaedge.cli.pasted_paths import BLANKS, WINDOWS, image_suffixes, quote_path, split_words
from ayaedge.errors import printable

_ARGUMENTS = {"system": ("none",), "tiles": ("faithful", "native", "auto")}
_CHAT_SUFFIXES = frozenset({".ayachat"})


class TerminalLines:
    """A `LineReader` over an editor that draws on `screen`.

    Ctrl-C clears what was typed, and is a KeyboardInterrupt where nothing was.
    """

    interactive = True

    def __init__(self, screen: TextIO):
        if sys.stdin.encoding.lower() in ("ascii", "us-ascii") and hasattr(sys.stdin, "reconfigure"):
            sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
        self._session: PromptSession[str] = PromptSession(
            prompt_continuation="  ",
            history=InMemoryHistory(),
            completer=LineCompleter(),
            complete_while_typing=False,
            key_bindings=_key_bindings(),
            enable_suspend=True,
            input=create_input(sys.stdin),
            output=create_output(screen),
        )

    def read(self, prompt: str) -> str | None:
        """See `LineReader`."""
        app = self._session.app
        app.erase_when_done = False
        came: list[bool] = []

        def leave() -> None:
            if came and app.future is not None and not app.is_done:
                app.exit(result="")

        def on_signal() -> None:
            came.append(True)
            if app.loop is not None and app.is_running:
                app.loop.call_soon_threadsafe(leave)

        try:
            with signals_deferred(on_signal):
                return self._session.prompt(prompt, pre_run=leave, handle_sigint=False)
        except EOFError:
            return None


def _key_bindings() -> KeyBindings:
    keys = KeyBindings()
    typing = has_focus(DEFAULT_BUFFER)

    @keys.add("enter", filter=typing)
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if joins_next_line(buffer.document.text_before_cursor) and buffer.document.is_cursor_at_the_end:
            buffer.delete_before_cursor()
            buffer.newline(copy_margin=False)
        else:
            buffer.validate_and_handle()

    @keys.add("enter", filter=typing & completion_is_selected)
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.complete_state = None

    @keys.add("escape", "enter", filter=typing)
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    @keys.add("c-c", filter=typing)
    def _(_event: KeyPressEvent) -> None:
        app = get_app()
        if app.current_buffer.text:
            app.current_buffer.reset()  # the caller gets a blank line, so that the next Ctrl-C is a first one
            app.erase_when_done = True
            app.exit(result="")
        else:
            app.exit(exception=KeyboardInterrupt)

    return keys


class LineCompleter(Completer):
    """Names of commands behind a slash, what may follow them, and names of files."""

    def get_completions(
        self,
        document: Document,
        complete_event: CompleteEvent,  # noqa: ARG002  # prompt_toolkit passes it by name
    ) -> Iterable[Completion]:
        """See prompt_toolkit's `Completer`."""
        line = document.text_before_cursor.lstrip(BLANKS)
        if not line.startswith("/") or "\n" in line:
            return
        name, blank, argument = line[1:].partition(" ")
        if not blank:
            for command in COMMANDS:
                if command.startswith(name.lower()):
                    yield Completion("/" + command, start_position=-len(line))
            return
        yield from _arguments(name.lower(), argument.lstrip(BLANKS))


def _arguments(name: str, argument: str) -> Iterable[Completion]:
    for word in _ARGUMENTS.get(name, ()):
        if word.startswith(argument.lower()):
            yield Completion(word, start_position=-len(argument))
    if name in ("open", "save"):
        yield from complete_path(argument, _CHAT_SUFFIXES)
    elif name == "image":
        yield from complete_path(argument, image_suffixes())


def complete_path(
    argument: str, suffixes: frozenset[str], *, windows: bool = WINDOWS
) -> Iterable[Completion]:
    """What may stand in place of the argument's last word: folders, and files whose names end in these suffixes."""
    word = split_words(argument + "x", escapes=not windows)[
        -1
    ]  # which is still being written, and may be empty
    written = word.text[:-1]
    slash = max(written.rfind("/"), written.rfind("\\") if windows else -1) + 1
    folder, begun = written[:slash], _comparable(written[slash:])
    for entry in _entries(folder):
        is_folder = entry.is_dir()
        if not _comparable(entry.name).startswith(begun) or entry.name[:1] == "." != begun[:1]:
            continue
        if is_folder or entry.suffix.lower() in suffixes:
            path = folder + entry.name + ("/" if is_folder else "")
            text = quote_path(path, quote=word.quote, complete=not is_folder, windows=windows)
            yield Completion(
                text,
                start_position=word.start - len(argument),
                display=printable(entry.name) + "/" * is_folder,
            )


def _comparable(name: str) -> str:
    """A name as typed and as listed: macOS takes characters apart, keyboards do not."""
    return unicodedata.normalize("NFC", name).casefold()


def _entries(folder: str) -> list[Path]:
    try:
        return sorted(Path(folder or ".").expanduser().iterdir())
    except (OSError, RuntimeError, ValueError):
        return []
