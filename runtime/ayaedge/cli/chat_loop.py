"""A chat: lines in, answers on stdout, everything else on stderr.

Knows commands, attached images and what Ctrl-C means. Where lines come from is the concern of `chat_input` beside it,
what they mean that of `chat_commands`, and how an answer is made the conversation's.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from rich.text import Text

from ayaedge.answers import Answer
from ayaedge.cli.chat_commands import (
    Command,
    DroppedImages,
    Question,
    describe_tiles,
    help_text,
    parse_tiles,
    read_line,
)
from ayaedge.cli.chat_input import LineReader
from ayaedge.cli.console import accelerated, announce, print_error, stderr, step_progress, write
from ayaedge.cli.interrupts import Interrupts
from ayaedge.cli.pasted_paths import find_path, find_paths, is_file, is_image_file
from ayaedge.conversation import Conversation
from ayaedge.engine.streams import AnswerStream
from ayaedge.errors import AyaEdgeError, CancelledError, ChatFileError, ImageError, InvalidOptionError
from ayaedge.images.encoded_image import AnyImage
from ayaedge.images.load import load_image
from ayaedge.images.pages import Page, given_pages
from ayaedge.images.sources import read_file
from ayaedge.images.tile_budget import TileChoice
from ayaedge.model import AyaVision
from ayaedge.options import AnswerKeywords

CHAT_SUFFIX = ".ayachat"
_SHOWN = 70
"""Characters of a question or answer in a message about it."""


@dataclass(frozen=True)
class Attachment:
    """An image that goes with the next question."""

    name: str
    image: AnyImage


def attach(given: str | Page) -> Attachment:
    """Read an image file whole, since it may be gone when the question is asked. Raises ImageError."""
    height, width = load_image(given).shape[:2]
    image: AnyImage
    if isinstance(given, Page):
        path, which, image = given.file, f"page {given.number}, ", Page(read_file(given.file), given.number)
    else:
        path, which, image = given, "", read_file(given)
    name = _excerpt(path) if path[:5].lower() == "data:" else path
    return Attachment(f"{name} ({which}{width} x {height} pixels)", image)


class ChatLoop:
    """Carries out one line after the other.

    `attached` are images for the first question; `tiles` and `options` hold until commands change them.
    """

    def __init__(
        self,
        model: AyaVision,
        conversation: Conversation,
        lines: LineReader,
        *,
        attached: Iterable[Attachment] = (),
        tiles: TileChoice | None = None,
        options: AnswerKeywords | None = None,
        verbose: bool = False,
    ):
        self.failed = False
        """Whether any line could not be followed."""
        self._model, self._conversation, self._lines = model, conversation, lines
        self._attached, self._tiles = list(attached), tiles or TileChoice()
        self._options, self._verbose = options or AnswerKeywords(), verbose
        self._answer: Answer | None = None
        self._own_files: set[Path] = set()
        self._over = False

    def run(self) -> None:
        """Follow lines until they end or one says goodbye.

        Where somebody types, Ctrl-C stops an answer, and leaves if it is pressed twice with nothing typed:
        KeyboardInterrupt is raised then, elsewhere at once. OSError if stdout takes no more.
        """
        warned = False
        while not self._over:
            line = None
            try:
                line = self._lines.read(self._prompt())
                if line is None:
                    return
                warned = False
                self._follow(line)
            except KeyboardInterrupt:
                if warned or not self._lines.interactive:
                    raise
                warned = line is None
                _notice("Ctrl-C once more leaves, and so does /bye" if warned else "stopped")

    def open(self, path: Path, *, system: str | None = None) -> None:
        """Go on with a conversation that was saved, perhaps with another instruction.

        Raises ChatFileError, and the conversation is as it was.
        """
        self._conversation = self._model.open_chat(path)
        if system is not None:
            self._conversation.system = system
        self._own_files.add(path.resolve())
        turns = self._conversation.turns
        images = sum(len(turn.images) for turn in turns)
        announce("opened", f"{path}: {_count(len(turns), 'question')}, {_count(images, 'image')}")
        if turns:
            _notice(f"last: {_excerpt(turns[-1].question)} → {_excerpt(turns[-1].answer)}")

    def _prompt(self) -> str:
        return f"[{_count(len(self._attached), 'image')}] > " if self._attached else "> "

    def _follow(self, line: str) -> None:
        try:
            typed = read_line(line, is_image_file)
            if isinstance(typed, Question):
                self._ask(typed.text)
            elif isinstance(typed, DroppedImages):
                self._attach(typed.paths)
            elif isinstance(typed, Command):
                self._carry_out(typed)
        except AyaEdgeError as error:
            self._fail(error)

    def _fail(self, error: AyaEdgeError) -> None:
        self.failed = True
        print_error(str(error))

    def _ask(self, question: str) -> None:
        """Attached images stay for another try, unless the conversation has taken the question up."""
        before = len(self._conversation.turns)
        try:
            answer = self._stream(question)
        finally:
            kept = len(self._conversation.turns) > before
            if kept:
                self._attached.clear()
        if answer is not None:
            self._answer = answer
            self._comment(answer)
        if answer is None or answer.stop_reason == "cancelled":
            _notice("stopped" if kept else "stopped, and the question forgotten")

    def _stream(self, question: str) -> Answer | None:
        """Write an answer as it comes; None if it was stopped before it began."""
        options: AnswerKeywords = {
            **self._options,
            "tiles": self._tiles.policy,
            "max_tiles": self._tiles.max_tiles,
            "budget": self._tiles.budget,
        }
        images, written = [attachment.image for attachment in self._attached], 0
        typed = self._lines.interactive
        with Interrupts(enabled=typed) as interrupts, ExitStack() as bars:
            on_progress = bars.enter_context(step_progress())
            with self._conversation.stream(
                question, images=images, on_progress=on_progress, **options
            ) as stream:
                try:
                    with interrupts.expected():
                        first = next(stream, "")
                    bars.close()
                    with interrupts.expected():
                        for piece in chain([first], stream):
                            write(piece)
                            written += len(piece)
                    write("\n")
                    return stream.answer
                except KeyboardInterrupt:
                    if not typed:
                        raise
                    bars.close()
                    _end_line(written)
                    return _stopped(stream)
                except AyaEdgeError:
                    if written:
                        write("\n")
                    raise

    def _comment(self, answer: Answer) -> None:
        """What somebody who reads along should know of an answer."""
        if answer.usage.dropped_turns:
            _notice(f"{_count(answer.usage.dropped_turns, 'old question')} did not fit any more: left out")
        if answer.stop_reason == "length":
            _notice(f"cut off after {_count(answer.usage.completion_tokens, 'token')}")
        if self._verbose:
            _notice(stats_text(answer))

    def _attach(self, paths: Iterable[str]) -> None:
        """Attach those that can be read; the others are reported."""
        for path in paths:
            try:
                attachments = [attach(page) for page in given_pages(path)]
            except ImageError as error:
                self._fail(error)
                continue
            self._attached += attachments
            for attachment in attachments:
                announce("attached", attachment.name)

    def _carry_out(self, command: Command) -> None:
        {
            "image": self._image,
            "clear": self._clear,
            "undo": self._undo,
            "system": self._system,
            "tiles": self._set_tiles,
            "stats": self._stats,
            "save": self._save,
            "open": self._open,
            "help": lambda _: _notice(help_text()),
            "bye": self._bye,
        }[command.name](command.argument)

    def _image(self, argument: str) -> None:
        if argument == "clear" and not is_file(argument):
            self._attached.clear()
            _notice("no image is attached")
        elif argument:
            self._attach(find_paths(argument, is_file))
        else:
            names = [attachment.name for attachment in self._attached]
            _notice("\n".join(names) or "no image is attached: /image PATH, or drop a file here")

    def _clear(self, _: str) -> None:
        self._conversation.clear()
        _notice("forgotten" + ("; the instruction stays (/system none)" if self._conversation.system else ""))

    def _undo(self, _: str) -> None:
        turn = self._conversation.undo()
        if turn is None:
            _notice("there is no question to forget")
            return
        _notice(f"forgotten: {_excerpt(turn.question)}")
        for image in turn.images:
            name = f"its image ({image.cost.width} x {image.cost.height} pixels)"
            self._attached.append(Attachment(name, image))
            announce("attached", name)

    def _system(self, argument: str) -> None:
        if argument:
            self._conversation.system = None if argument.lower() == "none" else argument
        system = self._conversation.system
        _notice(f"instruction: {system}" if system else "no instruction")

    def _set_tiles(self, argument: str) -> None:
        if argument:
            self._tiles = parse_tiles(argument, self._tiles)
        _notice(f"tiles: {describe_tiles(self._tiles)}")

    def _stats(self, _: str) -> None:
        _notice(stats_text(self._answer) if self._answer else "there is no answer yet")

    def _save(self, argument: str) -> None:
        path = Path(_file_argument("save", argument))
        if path.exists() and path.suffix != CHAT_SUFFIX and path.resolve() not in self._own_files:
            raise ChatFileError(f"{path} exists and is no {CHAT_SUFFIX} file: choose another name")
        self._conversation.save(path)
        self._own_files.add(path.resolve())
        announce("saved", str(path))

    def _open(self, argument: str) -> None:
        self.open(Path(_file_argument("open", argument)))

    def _bye(self, _: str) -> None:
        self._over = True


def stats_text(answer: Answer) -> str:
    """Tokens, tiles and seconds of an answer, a few lines."""
    usage, timings = answer.usage, answer.timings
    lines = [
        f"prompt   {usage.prompt_tokens} tokens, {usage.image_tokens} of them of images, {usage.cached_tokens} known",
        *(f"image    {image}" for image in usage.images),
        f"answer   {_count(usage.completion_tokens, 'token')}{_speed(answer)}",
        (
            f"seconds  vision {timings.vision:.2f}, prefill {timings.prefill:.2f}{accelerated(timings)}, "
            f"first token after {timings.first_token:.2f}, decode {timings.decode:.2f}"
        ),
    ]
    return "\n".join(lines)


def _speed(answer: Answer) -> str:
    """The first token is not counted: its time is that of the prompt."""
    following, seconds = answer.usage.completion_tokens - 1, answer.timings.decode
    return f", {following / seconds:.1f} a second" if following > 0 and seconds > 0 else ""


def _stopped(stream: AnswerStream) -> Answer | None:
    """What there is of an answer once it has ended, which is asked for here."""
    stream.cancel()
    try:
        return stream.result()
    except CancelledError as error:
        return error.answer


def _end_line(written: int) -> None:
    """Behind the ^C that a terminal shows; stdout gets it only if part of an answer stands there."""
    if written:
        write("\n")
    else:
        stderr.print()


def _file_argument(name: str, argument: str) -> str:
    if not argument:
        raise InvalidOptionError(f"/{name} needs the name of a file")
    return find_path(argument, is_file)


def _notice(message: str) -> None:
    stderr.print(Text(message, "dim"))


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" + "s" * (number != 1)


def _excerpt(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
