"""Uses examples/desktop_app.py as a person would, without a screen: `desktop_driver.py SCENARIO FOLDER [BUNDLE]`.

Prints, as JSON, how long the window's thread was blocked. Knows the names of the window's widgets, nothing of how
they work. FOLDER holds large.jpg, and gets window.png.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from PySide6 import QtCore, QtGui, QtWidgets
from PySide6.QtTest import QTest

from ayaedge import AyaVision

ROOT = Path(__file__).parents[1]
PICTURE = str(ROOT / "examples" / "pictures" / "six-cells.png")
NUMBER, SHAPE, ALL = (
    "What number is at the bottom left?",
    "What shape is at the bottom right?",
    "Describe the picture.",
)
TICK = 0.005
"""Seconds between two looks at the window."""
PATIENCE = 30.0
"""Seconds after which something that was to happen has not happened."""
CANCELLED = "the request was cancelled"

Steps = Generator[Callable[[], object], None, None]


class Hold:
    """Makes the model's thread wait at a stage, so that what is done to the window then is done at that stage."""

    def __init__(self) -> None:
        self._stage: str | None = None
        self._go = threading.Event()
        self.options: dict[str, Any] = {}
        """Of all questions from now on."""

    def at(self, stage: str) -> None:
        """Wait at the next "vision", "prefill" or "text"."""
        self._stage = stage
        self._go.clear()

    @property
    def reached(self) -> bool:
        """Whether the stage has come."""
        return self._stage is None

    def release(self) -> None:
        self._go.set()

    def submit(
        self, submit: Callable[..., Any], *arguments: Any, on_text: Any, on_progress: Any, **options: Any
    ) -> Any:
        """`AyaVision.submit`, with calls that wait."""

        def wait(stage: str) -> None:
            if stage == self._stage:
                self._stage = None
                self._go.wait(PATIENCE)

        def write(piece: str) -> None:
            on_text(piece)
            wait("text")

        def move(step: str, done: int, of: int) -> None:
            on_progress(step, done, of)
            wait(step)

        return submit(*arguments, on_text=write, on_progress=move, **options, **self.options)


class Meter:
    """How long events kept the thread, and how late it was for a clock that ticks."""

    def __init__(self) -> None:
        self.ignored: QtCore.QObject | None = None
        self._statistics = self._open()
        self.reset()

    def reset(self) -> None:
        self.blocked = self.busy = self.gap = 0.0
        self.slowest = ""
        self._last = time.perf_counter()

    @staticmethod
    def _open() -> int | None:
        path = "/proc/thread-self/schedstat"
        return os.open(path, os.O_RDONLY) if Path(path).exists() else None

    def _waited(self) -> float:
        """Seconds for which this thread could have run and the machine had no processor for it."""
        return 0.0 if self._statistics is None else int(os.pread(self._statistics, 64, 0).split()[1]) / 1e9

    def time(self, receiver: QtCore.QObject, event: QtCore.QEvent, handle: Callable[[], bool]) -> bool:
        """Handle an event; those inside it are measured too, each by itself."""
        if receiver is self.ignored:
            return handle()
        name = f"{event.type().name} for {type(receiver).__name__}"
        start, waited, busy = time.perf_counter(), self._waited(), time.thread_time()
        try:
            return handle()
        finally:
            self.busy = max(self.busy, time.thread_time() - busy)
            blocked = time.perf_counter() - start - (self._waited() - waited)
            if blocked > self.blocked:
                self.blocked, self.slowest = blocked, name

    def tick(self) -> None:
        """Note how long ago the last tick ended."""
        self.gap = max(self.gap, time.perf_counter() - self._last)

    def tock(self) -> None:
        self._last = time.perf_counter()

    def figures(self) -> dict[str, object]:
        """Milliseconds."""
        return {
            "blocked": round(1000 * self.blocked, 1),
            "by": self.slowest,
            "busy": round(1000 * self.busy, 1),
            "gap": round(1000 * self.gap, 1),
        }


class Application(QtWidgets.QApplication):
    """The application that the example makes: it measures, and a scenario uses its window."""

    scenario: Callable[[Any, Hold, Meter, Path], Steps]
    folder: Path
    report: dict[str, object]

    def __init__(self, arguments: list[str]) -> None:
        super().__init__(arguments)
        self._meter, self._hold = Meter(), Hold()
        self._clock = QtCore.QTimer(timerType=QtCore.Qt.TimerType.PreciseTimer)
        self._meter.ignored = self._clock
        self._clock.timeout.connect(self._step)
        self._condition: Callable[[], object] = lambda: True
        self._since = time.monotonic()

    def notify(self, receiver: QtCore.QObject, event: QtCore.QEvent) -> bool:
        """Every event of the window's thread passes here."""
        return self._meter.time(receiver, event, lambda: super(Application, self).notify(receiver, event))

    def exec(self) -> int:  # type: ignore[override]
        """Run the window, and its user."""
        (window,) = (widget for widget in self.topLevelWidgets() if type(widget).__name__ == "Window")
        real = AyaVision.submit
        AyaVision.submit = partialmethod(self._hold.submit_with, real)  # type: ignore[assignment,method-assign]
        self._steps = type(self).scenario(window, self._hold, self._meter, self.folder)
        self._meter.reset()
        self._clock.start(round(1000 * TICK))
        result = super().exec()
        self.report["until the end"] = self._meter.figures()
        return result

    def _step(self) -> None:
        self._meter.tick()
        try:
            if self._condition():
                self._condition, self._since = next(self._steps, bool), time.monotonic()
            elif time.monotonic() - self._since > PATIENCE:
                line = self._steps.gi_frame.f_lineno if self._steps.gi_frame else 0
                raise TimeoutError(f"nothing happened at line {line} of the driver")
        except BaseException:  # noqa: BLE001 - the example shows errors in its window
            traceback.print_exc()
            os._exit(3)
        self._meter.tock()


def everything(window: Any, hold: Hold, meter: Meter, folder: Path) -> Steps:
    """Open, ask, see the answer come, stop at every stage, drop, choose a recent question, close while it answers."""
    assert not window.isEnabled(), "the model was loaded before the window was there"
    yield window.isEnabled
    Application.report["while loading"] = meter.figures()
    meter.reset()
    shown: list[str] = []
    window.answer.textChanged.connect(lambda: shown.append(window.answer.toPlainText()))

    QtWidgets.QFileDialog.getOpenFileName = lambda *_: (PICTURE, "")  # type: ignore[assignment,method-assign]
    QTest.mouseClick(window.open, QtCore.Qt.MouseButton.LeftButton)
    yield lambda: not window.picture.pixmap().isNull()
    type_question(window, ALL)
    yield window.work.done
    yield lambda: shown and shown[-1].endswith("black")
    grown = [text for text in shown if text]
    assert len(grown) > 5 and all(b.startswith(a) for a, b in zip(grown, grown[1:])), grown
    type_question(window, NUMBER)
    yield lambda: window.work.done() and window.answer.toPlainText() == "2675"
    window.grab().save(str(folder / "window.png"))

    drop(window, str(folder / "large.jpg"))
    for number, stage in enumerate(("vision", "prefill", "text")):
        hold.at(stage)
        type_question(window, f"{ALL} {number}")
        yield lambda: hold.reached
        assert not window.work.done()
        QTest.mouseClick(window.stop, QtCore.Qt.MouseButton.LeftButton)
        hold.release()
        yield lambda: window.work.done() and CANCELLED in window.answer.toPlainText()
        assert bool(window.answer.toPlainText().split(CANCELLED)[0]) == (stage == "text")

    hold.at("text")
    other = window.loading.result().submit(
        NUMBER, images=[PICTURE], on_text=bool, on_progress=lambda *_: None
    )
    yield lambda: hold.reached
    type_question(window, SHAPE)
    QTest.mouseClick(window.stop, QtCore.Qt.MouseButton.LeftButton)
    assert window.work.done() and not other.done()  # it had not begun
    hold.release()
    yield other.done
    assert other.result().text == "2675"

    drop(window, PICTURE)
    choose_recent(window, NUMBER)
    yield lambda: window.work.done() and window.answer.toPlainText() == "2675"

    hold.options = {"temperature": 50.0, "seed": 1}
    type_question(window, ALL)
    yield lambda: len(window.answer.toPlainText()) > 50
    hold.options = {}
    type_question(window, SHAPE)  # takes the place of the long answer
    yield lambda: window.work.done() and window.answer.toPlainText() == "triangle"

    hold.options = {"temperature": 50.0, "seed": 1}
    type_question(window, ALL)
    yield lambda: len(window.answer.toPlainText()) > 50
    assert not window.work.done()
    window.close()


def close_while_loading(window: Any, _hold: Hold, _meter: Meter, _folder: Path) -> Steps:
    assert not window.loading.done()
    window.close()
    yield bool


def missing_bundle(window: Any, _hold: Hold, _meter: Meter, _folder: Path) -> Steps:
    yield lambda: "no bundle at" in window.answer.toPlainText()
    assert not window.isEnabled()
    window.close()


def type_question(window: Any, question: str) -> None:
    window.question.lineEdit().clear()
    QTest.keyClicks(window.question, question)
    QTest.keyClick(window.question, QtCore.Qt.Key.Key_Return)


def choose_recent(window: Any, question: str) -> None:
    window.question.showPopup()
    view, row = window.question.view(), window.question.findText(question)
    place = view.visualRect(view.model().index(row, 0)).center()
    QTest.mouseClick(
        view.viewport(), QtCore.Qt.MouseButton.LeftButton, QtCore.Qt.KeyboardModifier.NoModifier, place
    )


def drop(window: Any, path: str) -> None:
    files = QtCore.QMimeData()
    files.setUrls([QtCore.QUrl.fromLocalFile(path)])
    how = (
        QtCore.Qt.DropAction.CopyAction,
        files,
        QtCore.Qt.MouseButton.LeftButton,
        QtCore.Qt.KeyboardModifier.NoModifier,
    )
    enter = QtGui.QDragEnterEvent(QtCore.QPoint(50, 50), *how)
    QtWidgets.QApplication.sendEvent(window, enter)
    assert enter.isAccepted()
    QtWidgets.QApplication.sendEvent(window, QtGui.QDropEvent(QtCore.QPointF(50, 50), *how))


def main() -> None:
    name, folder, *bundle = sys.argv[1:]
    Application.scenario = staticmethod(globals()[name])  # type: ignore[assignment]
    Application.folder, Application.report = Path(folder), {}
    QtWidgets.QApplication = Application  # type: ignore[misc]
    program = str(ROOT / "examples" / "desktop_app.py")
    sys.argv = [program, *bundle]
    try:
        runpy.run_path(program, run_name="__main__")
    finally:
        sys.excepthook = sys.__excepthook__  # the example shows errors in its window
    print(json.dumps(Application.report))


if __name__ == "__main__":
    main()
