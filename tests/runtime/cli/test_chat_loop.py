from __future__ import annotations

import _thread
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ayaedge import AyaVision, Conversation
from ayaedge.cli.chat_loop import ChatLoop, attach, stats_text
from ayaedge.errors import ChatFileError, ImageError
from ayaedge.images.tile_budget import TileChoice

IMAGES = Path(__file__).parents[3] / "examples" / "pictures"
SIX = IMAGES / "six-cells.png"
NUMBER = "What number is at the bottom left?"


class Typed:
    """Lines as somebody types them; an exception is what a key causes, a function is done between two lines."""

    interactive = True

    def __init__(self, *lines: str | BaseException | Callable[[], object]) -> None:
        self._lines = list(lines)
        self.prompts: list[str] = []

    def read(self, prompt: str) -> str | None:
        self.prompts.append(prompt)
        line = self._lines.pop(0) if self._lines else None
        if isinstance(line, BaseException):
            raise line
        if callable(line):
            line()
            return ""
        return line


class Chat:
    """A chat with the demonstration model: `say` lines, read what was written."""

    def __init__(self, model: AyaVision, capsys: pytest.CaptureFixture[str], **settings: Any) -> None:
        self._model, self._capsys, self._settings = model, capsys, settings
        self.conversation = model.chat()

    def say(self, *lines: Any) -> tuple[str, str]:
        """Answers and messages; attached images do not outlive it."""
        self.lines = Typed(*map(_text, lines))
        self.loop = ChatLoop(self._model, self.conversation, self.lines, **self._settings)
        self.loop.run()
        return self._capsys.readouterr()


def _text(line: object) -> Any:
    return str(line) if isinstance(line, Path) else line


@pytest.fixture
def chat(demo_model: AyaVision, capsys: pytest.CaptureFixture[str]) -> Chat:
    return Chat(demo_model, capsys)


def test_an_image_is_attached_for_one_question_and_stays_in_the_chat(chat: Chat) -> None:
    answers, messages = chat.say(f"/image {SIX}", NUMBER, "What shape is at the top right?")
    assert answers == "2675\nstar\n"
    assert "attached" in messages
    assert "480 x 320 pixels" in messages
    assert chat.lines.prompts == ["> ", "[1 image] > ", "> ", "> "]
    assert [len(turn.images) for turn in chat.conversation.turns] == [1, 0]
    assert not chat.loop.failed


def test_a_line_of_paths_attaches_them(chat: Chat) -> None:
    chat.say(f"'{SIX}' '{IMAGES / 'one-heart.png'}' ")
    assert chat.lines.prompts[-1] == "[2 images] > "


def test_an_image_may_go_once_it_is_attached(chat: Chat, tmp_path: Path) -> None:
    copy = tmp_path / "صورة ١.png"
    copy.write_bytes(SIX.read_bytes())
    answers, _ = chat.say(f"/image {tmp_path}/صورة\\ ١.png", copy.unlink, NUMBER)
    assert answers == "2675\n"


def test_an_unreadable_image_is_reported_and_the_others_are_kept(chat: Chat, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(SIX.read_bytes()[:100])
    answers, messages = chat.say(f'/image "{broken}" none.png "{SIX}" https://example.org/a.png', "/image")
    assert answers == ""
    assert "broken.png is damaged" in messages
    assert "no image at none.png" in messages
    assert "works offline" in messages
    assert messages.count(f"{SIX} (480 x 320 pixels)") == 2
    assert chat.lines.prompts[-1] == "[1 image] > "
    assert chat.loop.failed


def test_attached_images_are_shown_and_dropped(chat: Chat) -> None:
    _, messages = chat.say("/image", f"/image {SIX}", "/image clear", "/image")
    assert chat.lines.prompts == ["> ", "> ", "[1 image] > ", "> ", "> "]
    assert messages.count("no image is attached") == 3


def test_an_error_keeps_the_images_for_another_try(chat: Chat) -> None:
    answers, messages = chat.say("/image " + f"{SIX} " * 16, NUMBER, "/tiles 1", "Describe the picture.")
    assert "only" in messages
    assert "fit" in messages
    assert chat.lines.prompts == ["> ", *["[16 images] > "] * 3, "> "]
    assert len(answers.splitlines()) == 1
    (turn,) = chat.conversation.turns
    assert {len(image.tiles) for image in turn.images} == {1}


def test_a_forgotten_question_gives_its_images_back(chat: Chat) -> None:
    answers, messages = chat.say(
        f"/image {SIX}", "What is this?", "/undo", NUMBER, "/undo", "/image clear", "/undo"
    )
    assert answers.splitlines()[-1] == "2675"
    assert "forgotten: What is this?" in messages
    assert "there is no question to forget" in messages
    assert chat.lines.prompts[3] == "[1 image] > "
    assert chat.conversation.turns == ()


def test_clear_forgets_the_questions_and_keeps_the_instruction(chat: Chat) -> None:
    _, messages = chat.say("/system", "/system Be  brief.", "Hi", "/clear", "/system", "/system none")
    assert chat.conversation.turns == ()
    assert chat.conversation.system is None
    assert messages.count("no instruction") == 2
    assert messages.count("instruction: Be  brief.") == 2
    assert "the instruction stays" in messages


def test_tiles_change_what_the_next_images_cost(chat: Chat) -> None:
    _, messages = chat.say(
        "/tiles", "/tiles 2", f"/image {SIX}", "x", "/stats", "/tiles native", SIX, "x", "/stats", "/tiles x"
    )
    assert "tiles: faithful" in messages
    assert "at most 2" in messages
    assert [len(turn.images[0].tiles) for turn in chat.conversation.turns] == [3, 7]
    assert "/tiles takes" in messages


def test_stats_tell_tokens_tiles_and_seconds(chat: Chat) -> None:
    _, messages = chat.say("/stats", f"/image {SIX}", NUMBER, "/stats")
    assert messages.startswith("there is no answer yet")
    for part in ("of images", "known", "grid 3 x 2, 7 tiles", "a second", "vision", "prefill", "decode"):
        assert part in messages


def test_verbose_shows_them_after_each_answer(
    demo_model: AyaVision, capsys: pytest.CaptureFixture[str]
) -> None:
    _, messages = Chat(demo_model, capsys, verbose=True, options={"max_tokens": 1}).say("Hi")
    assert "cut off after 1 token\n" in messages
    assert "answer   1 token\n" in messages


def test_what_did_not_fit_any_more_is_said(demo_model: AyaVision, capsys: pytest.CaptureFixture[str]) -> None:
    chat = Chat(demo_model, capsys, options={"overflow": "drop_oldest"})
    _, messages = chat.say(*["a " * 900] * 3)
    assert "1 old question did not fit any more: left out" in messages
    assert not chat.loop.failed


def test_a_chat_is_saved_and_opened(chat: Chat, tmp_path: Path) -> None:
    name = f"{tmp_path}/my trip.ayachat"
    chat.say("/system Be brief.", f"/image {SIX}", NUMBER, f"/save {name}", f"/save {name}")
    chat.conversation.clear()
    answers, messages = chat.say(f"/open {name}", "/system", "What shape is at the top right?")
    assert answers == "star\n"
    assert "1 question, 1 image" in messages
    assert f"last: {NUMBER} → 2675" in messages
    assert "instruction: Be brief." in messages


def test_only_files_of_chats_are_replaced(chat: Chat, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"precious")
    _, messages = chat.say(
        f"/save {tmp_path}/a.png", f"/save {tmp_path}/b", f"/save {tmp_path}/b", "/save", "/open"
    )
    assert (tmp_path / "a.png").read_bytes() == b"precious"
    assert (tmp_path / "b").exists()
    assert messages.count("error:") == 3
    assert "choose another name" in messages


def test_a_file_that_cannot_be_opened_leaves_the_chat_as_it_was(chat: Chat, tmp_path: Path) -> None:
    (tmp_path / "x.ayachat").write_bytes(b"no chat")
    answers, messages = chat.say(
        f"/image {SIX}", "Hi", f"/open {tmp_path}/x.ayachat", f"/open {tmp_path}", NUMBER
    )
    assert answers.splitlines()[-1] == "2675"
    assert messages.count("error:") == 2


def test_what_a_file_says_does_not_steer_the_terminal(
    demo_model: AyaVision, chat: Chat, tmp_path: Path
) -> None:
    other = demo_model.chat()
    other.ask("\x1b]0;title\x07 a", max_tokens=1)
    other.save(tmp_path / "x.ayachat")
    _, messages = chat.say(f"/open {tmp_path}/x.ayachat", f"/image {tmp_path}/\x1b[2J.png")
    assert "\x1b" not in messages


def test_an_unknown_command_goes_nowhere(chat: Chat) -> None:
    answers, messages = chat.say("/imgae x", "/home/nobody/a.png", "//bye", "/help", "/bye", "never read")
    assert len(answers.splitlines()) == 1
    assert "there is no command /imgae, but /image" in messages
    assert "neither a command nor an image file" in messages
    assert [turn.question for turn in chat.conversation.turns] == ["/bye"]


def test_the_second_of_two_interrupts_leaves(chat: Chat) -> None:
    stop = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        chat.say(stop, "", stop, "/help", stop, stop, "never read")
    assert len(chat.lines.prompts) == 6


def test_where_nobody_types_the_first_interrupt_leaves(chat: Chat) -> None:
    lines = Typed(KeyboardInterrupt(), "never read")
    lines.interactive = False
    with pytest.raises(KeyboardInterrupt):
        ChatLoop(None, chat.conversation, lines).run()  # type: ignore[arg-type]


class Interrupted(Conversation):
    """Somebody presses Ctrl-C while the first image is read."""

    pressed = False

    def stream(self, question: str, **settings: Any) -> Any:
        report = settings.pop("on_progress")

        def on_progress(step: str, done: int, of: int) -> None:
            report(step, done, of)
            if not self.pressed:
                self.pressed = True
                _thread.interrupt_main()
                time.sleep(0.5)  # a step that takes its time

        return super().stream(question, on_progress=on_progress, **settings)


def test_an_interrupt_while_an_image_is_read_forgets_the_question_and_keeps_the_image(chat: Chat) -> None:
    chat.conversation.__class__ = Interrupted
    answers, messages = chat.say(f"/image {SIX}", "What is this?", NUMBER)
    assert answers == "2675\n"
    assert "stopped, and the question forgotten" in messages
    assert chat.lines.prompts[1:] == ["[1 image] > ", "[1 image] > ", "> "]
    assert [turn.question for turn in chat.conversation.turns] == [NUMBER]


def test_only_images_can_be_attached(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.zeros((2, 3, 3), np.uint8)).save(path)
    assert attach(str(path)).name == f"{path} (3 x 2 pixels)"
    with pytest.raises(ImageError):
        attach(str(tmp_path))


def test_stats_of_an_answer_without_images_or_following_tokens(demo_model: AyaVision) -> None:
    assert "a second" not in stats_text(demo_model.ask("Hi", max_tokens=1))


def test_opening_can_replace_the_instruction(chat: Chat, tmp_path: Path) -> None:
    path = tmp_path / "x.ayachat"
    chat.say("/system Old.", "Hi", f"/save {path}")
    chat.loop.open(path, system="New.")
    assert chat.loop._conversation.system == "New."
    with pytest.raises(ChatFileError):
        chat.loop.open(tmp_path / "none.ayachat")


def test_tiles_of_the_command_line_hold_from_the_start(
    demo_model: AyaVision, capsys: pytest.CaptureFixture[str]
) -> None:
    chat = Chat(demo_model, capsys, attached=[attach(str(SIX))], tiles=TileChoice(max_tiles=1))
    assert "at most 1" in chat.say("/tiles", NUMBER)[1]
    assert chat.conversation.turns[0].images[0].cost.tiles == 1
