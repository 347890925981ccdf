"""Uses examples/desktop_app.py as a person would: `desktop_driver.py SCENARIO FOLDER [BUNDLE]`; not a test itself.

Prints, as JSON, how long the window's thread was blocked. Knows the names of the window's parts, nothing of how they
work. FOLDER holds large.jpg, and gets window.png.
"""

from __future__ import annotations

import itertools
import json
import os
import runpy
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator
from functools import partialmethod
from pathlib import Path
from typing import Any

from PySide6 import QtCore, QtGui, QtWidgets
from PySide6.QtTest import QTest

from ayaedge import AyaVision

ROOT = Path(__file__).parents[1]
IMAGE = str(ROOT / "examples" / "pictures" / "six-cells.png")
NUMBER, SHAPE = "What number is at the bottom left?", "What shape is at the bottom right?"
DESCRIBE = "Describe the picture."
CANCELLED = "the request was cancelled"
LONG = {"temperature": 50.0, "seed": 1}
"""Options of an answer that has no end."""
TICK = 5
"""Milliseconds between two looks at the window."""
PATIENCE = 30.0
"""Seconds after which something that was to happen has not happened."""

Steps = Generator[Callable[[], object], None, None]
"""What a person does; each condition is waited for."""


class Hold:
    """Makes the model's thread wait at a stage, so that what is done to the window then is done at that stage."""

    def __init__(self) -> None:
        self._stage: str | None = None
        self._go = threading.Event()
        self.options: dict[str, Any] = {}
        """Of all questions from now on."""

    def at(self, stage: str) -> None:
        """Wait at the next "vision", "prefill" or "text", once."""
        self._stage = stage
        self._go.clear()

    def reached(self) -> bool:
        return self._stage is None

    def release(self) -> None:
        self._go.set()

    def wait(self, stage: str) -> None:
        """On the model's thread."""
        if stage == self._stage:
            self._stage = None
            self._go.wait(PATIENCE)

    def submit_to(
        self,
        model: AyaVision,
        submit: Callable[..., Any],
        question: str,
        *,
        on_text: Any,
        on_progress: Any,
        **options: Any,
    ) -> Any:
        """`AyaVision.submit`, with callbacks that wait."""

        def write(piece: str) -> None:
            on_text(piece)
            self.wait("text")

        def move(step: str, done: int, of: int) -> None:
            on_progress(step, done, of)
            self.wait(step)

        return submit(model, question, on_text=write, on_progress=move, **options, **self.options)


class Meter:
    """How long single events kept this thread, and how late it came to a clock that ticks."""

    def __init__(self) -> None:
        path = "/proc/thread-self/schedstat"
        self._statistics = os.open(path, os.O_RDONLY) if Path(path).exists() else None
        self.reset()

    def reset(self) -> None:
        self._blocked = self._busy = self._gap = 0.0
        self._slowest = ""
        self._last = time.perf_counter()

    def time(self, name: str, handle: Callable[[], bool]) -> bool:
        """Handle an event; those inside it are timed too, each by itself."""
        start, waited, busy = time.perf_counter(), self._waited(), time.thread_time()
        try:
            return handle()
        finally:
            self._busy = max(self._busy, time.thread_time() - busy)
            blocked = time.perf_counter() - start - (self._waited() - waited)
            if blocked > self._blocked:
                self._blocked, self._slowest = blocked, name

    def tick(self) -> None:
        self._gap = max(self._gap, time.perf_counter() - self._last)

    def tock(self) -> None:
        """The time since `tick` was the driver's own."""
        self._last = time.perf_counter()

    def figures(self) -> dict[str, object]:
        """Milliseconds: the longest event without (`blocked`) and by processor time alone; the longest gap."""
        return {
            "blocked": round(1000 * self._blocked, 1),
            "by": self._slowest,
            "busy": round(1000 * self._busy, 1),
            "gap": round(1000 * self._gap, 1),
        }

    def _waited(self) -> float:
        """Seconds for which this thread could have run and the machine had no processor for it."""
        return 0.0 if self._statistics is None else int(os.pread(self._statistics, 64, 0).split()[1]) / 1e9


class Application(QtWidgets.QApplication):
    """The application that the example makes: it times each event, and uses the window while it runs."""

    scenario: Callable[[Any, Hold, Meter, Path], Steps]
    folder: Path
    report: dict[str, object]

    def __init__(self, arguments: list[str]) -> None:
        super().__init__(arguments)
        self._meter, self._hold = Meter(), Hold()
        self._clock = QtCore.QTimer(timerType=QtCore.Qt.TimerType.PreciseTimer)
        self._clock.timeout.connect(self._step)
        self._condition: Callable[[], object] = lambda: True
        self._since = time.monotonic()

    def notify(self, receiver: QtCore.QObject, event: QtCore.QEvent) -> bool:
        """Every event of the window's thread passes here, the driver's clock included."""

        def handle() -> bool:
            return super(Application, self).notify(receiver, event)

        if receiver is self._clock:
            return handle()
        return self._meter.time(f"{event.type().name} for {type(receiver).__name__}", handle)

    def exec(self) -> int:  # type: ignore[override]
        """Run the window, and who uses it."""
        (window,) = (widget for widget in self.topLevelWidgets() if type(widget).__name__ == "Window")
        self._steps = type(self).scenario(window, self._hold, self._meter, self.folder)
        self._meter.reset()
        self._clock.start(TICK)
        result = super().exec()
        self.report["at work"] = self._meter.figures()
        return result

    def _step(self) -> None:
        self._meter.tick()
        try:
            if self._condition():
                self._condition, self._since = next(self._steps, bool), time.monotonic()
            elif time.monotonic() - self._since > PATIENCE:
                self._steps.throw(TimeoutError("this did not happen"))
        except BaseException:  # noqa: BLE001 - the example would show it in its window
            traceback.print_exc()
            os._exit(3)
        self._meter.tock()


def everything(window: Any, hold: Hold, meter: Meter, folder: Path) -> Steps:
    """Open, ask, see the answer come, stop at every stage, drop, ask again, and close while an answer comes."""
    AyaVision.submit = partialmethod(_held, hold, AyaVision.submit)  # type: ignore[method-assign,assignment]
    assert not window.isEnabled(), "the model was loaded before the window was there"
    yield window.isEnabled
    Application.report["while loading"] = meter.figures()
    meter.reset()

    yield from _read_an_answer(window)
    window.grab().save(str(folder / "window.png"))
    drop(window, str(folder / "large.jpg"))
    yield from _stop_at_every_stage(window, hold)
    yield from _stop_before_it_begins(window, hold)
    drop(window, IMAGE)
    choose_recent(window, NUMBER)
    yield lambda: finished(window, "2675")
    yield from _begin_a_long_answer(window, hold)
    type_question(window, SHAPE)  # takes its place
    yield lambda: finished(window, "triangle")
    yield from _begin_a_long_answer(window, hold)
    window.close()


def close_while_loading(window: Any, _hold: Hold, _meter: Meter, _folder: Path) -> Steps:
    assert not window.loading.done()
    window.close()
    yield bool


def close_a_window_without_a_model(window: Any, _hold: Hold, _meter: Meter, _folder: Path) -> Steps:
    yield lambda: "there is no bundle at" in window.answer.toPlainText()
    assert not window.isEnabled()
    window.close()


def _read_an_answer(window: Any) -> Steps:
    QtWidgets.QFileDialog.getOpenFileName = lambda *_: (IMAGE, "")  # type: ignore[method-assign]
    click(window.open)
    yield lambda: not window.image.pixmap().isNull()
    shown: list[str] = []
    window.answer.textChanged.connect(lambda: shown.append(window.answer.toPlainText()))
    type_question(window, DESCRIBE)
    yield lambda: finished(window, "circle: red, 4098, star: green, 2675, heart: yellow, triangle: black")
    grown = [text for text in shown if text]
    assert len(grown) > 5
    assert all(longer.startswith(text) for text, longer in itertools.pairwise(grown))
    type_question(window, NUMBER)
    yield lambda: finished(window, "2675")


def _stop_at_every_stage(window: Any, hold: Hold) -> Steps:
    for stage in "vision", "prefill", "text":
        hold.at(stage)
        type_question(window, f"{DESCRIBE} {stage}?")
        yield hold.reached
        assert not window.work.done()
        click(window.stop)
        hold.release()
        yield lambda: window.work.done() and CANCELLED in window.answer.toPlainText()
        came = window.answer.toPlainText().removesuffix(CANCELLED)
        assert bool(came) == (stage == "text")
        assert window.isEnabled()


def _stop_before_it_begins(window: Any, hold: Hold) -> Steps:
    hold.at("text")
    model = window.loading.result()
    other = model.submit(NUMBER, images=IMAGE, on_text=bool, on_progress=lambda *_: None)
    yield hold.reached
    type_question(window, SHAPE)
    click(window.stop)
    assert window.work.done()
    assert not other.done()
    hold.release()
    yield other.done
    assert other.result().text == "2675"


def _begin_a_long_answer(window: Any, hold: Hold) -> Steps:
    hold.options = LONG
    type_question(window, DESCRIBE)
    hold.options = {}
    yield lambda: len(window.answer.toPlainText()) > 50
    assert not window.work.done()


def _held(model: AyaVision, hold: Hold, submit: Callable[..., Any], question: str, **options: Any) -> Any:
    return hold.submit_to(model, submit, question, **options)


def finished(window: Any, answer: str) -> bool:
    return bool(window.work.done() and window.answer.toPlainText() == answer)


def click(button: QtWidgets.QWidget) -> None:
    QTest.mouseClick(button, QtCore.Qt.MouseButton.LeftButton)


def type_question(window: Any, question: str) -> None:
    window.question.lineEdit().clear()
    QTest.keyClicks(window.question, question)
    QTest.keyClick(window.question, QtCore.Qt.Key.Key_Return)


def choose_recent(window: Any, question: str) -> None:
    window.question.showPopup()
    view, row = window.question.view(), window.question.findText(question)
    assert row >= 0
    place = view.visualRect(view.model().index(row, 0)).center()
    keys = QtCore.Qt.KeyboardModifier.NoModifier
    QTest.mouseClick(view.viewport(), QtCore.Qt.MouseButton.LeftButton, keys, place)


def drop(window: Any, path: str) -> None:
    files = QtCore.QMimeData()
    files.setUrls([QtCore.QUrl.fromLocalFile(path)])
    action, button = QtCore.Qt.DropAction.CopyAction, QtCore.Qt.MouseButton.LeftButton
    keys = QtCore.Qt.KeyboardModifier.NoModifier
    enter = QtGui.QDragEnterEvent(QtCore.QPoint(50, 50), action, files, button, keys)
    QtWidgets.QApplication.sendEvent(window, enter)
    assert enter.isAccepted()
    dropped = QtGui.QDropEvent(QtCore.QPointF(50, 50), action, files, button, keys)
    QtWidgets.QApplication.sendEvent(window, dropped)


def main() -> None:
    name, folder, *bundle = sys.argv[1:]
    scenarios = (everything, close_while_loading, close_a_window_without_a_model)
    (chosen,) = (one for one in scenarios if one.__name__ == name)
    Application.scenario = staticmethod(chosen)
    Application.folder, Application.report = Path(folder), {}
    QtWidgets.QApplication = Application  # type: ignore[assignment,misc]
    program = str(ROOT / "examples" / "desktop_app.py")
    sys.argv = [program, *bundle]
    runpy.run_path(program, run_name="__main__")
    sys.stdout.write(json.dumps(Application.report))


if __name__ == "__main__":
    main()
