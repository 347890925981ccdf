"""Uses examples/reader as a person would: `reader_driver.py FOLDER`; not a test itself.

FOLDER holds scan.pdf of two pages, and gets a screenshot of each state. Prints, as JSON, what was seen and how long
the window's thread was blocked.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from desktop_driver import Meter
from PySide6 import QtCore, QtGui, QtWidgets
from PySide6.QtTest import QTest

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "examples" / "reader")]
IMAGES = ROOT / "examples" / "pictures"
PATIENCE = 30.0
"""Seconds after which something that was to happen has not happened."""


class Application(QtWidgets.QApplication):
    """Times each event."""

    def __init__(self, meter: Meter) -> None:
        super().__init__([])
        self._meter = meter

    def notify(self, receiver: QtCore.QObject, event: QtCore.QEvent) -> bool:
        def handle() -> bool:
            return super(Application, self).notify(receiver, event)

        return self._meter.time(f"{event.type().name} for {type(receiver).__name__}", handle)


class Person:
    """Does with the window what people do, and looks at it."""

    def __init__(self, folder: Path) -> None:
        from reader import Reader

        settings = QtCore.QSettings.Format.IniFormat
        QtCore.QSettings.setDefaultFormat(settings)
        QtCore.QSettings.setPath(settings, QtCore.QSettings.Scope.UserScope, str(folder / "settings"))
        self.meter = Meter()
        self.app = Application(self.meter)
        self.app.setOrganizationName("ayaedge")
        self.app.setApplicationName("reader")
        put_bundle(folder, "aya-vision-8b")
        self.folder, self.window = folder, Reader()
        self.seen: dict[str, Any] = {}
        self.window.resize(1000, 640)
        self.window.show()

    def wait(self, what: str, condition: Callable[[], object]) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            self.app.processEvents(QtCore.QEventLoop.ProcessEventsFlag.AllEvents, 20)
            if time.monotonic() > end:
                self.window.grab().save(str(self.folder / "late.png"))
                raise TimeoutError(f"{what} did not happen: {self.window.talk.toPlainText()}")

    def look(self, name: str) -> None:
        self.app.processEvents()
        self.window.grab().save(str(self.folder / f"{name}.png"))

    def bundles(self) -> list[str]:
        """Names on the first page."""
        assert self.window.start.isVisible()
        names = self.window.start.bundles
        return [names.item(row).text() for row in range(names.count())]

    def note_blocked(self, doing: str) -> None:
        """Note how long the window's thread was blocked since the last time."""
        self.seen.setdefault("blocked", {})[doing] = self.meter.figures()
        self.meter.reset()

    def ask(self, question: str) -> str:
        self.window.question.setText(question)  # letters that no keyboard here has
        turns = len(self.window.chat.turns)
        QTest.keyClick(self.window.question, QtCore.Qt.Key.Key_Return)
        assert self.window.work is not None
        self.wait(question, lambda: self.window.work is None)
        assert len(self.window.chat.turns) == turns + 1, self.window.talk.toPlainText()
        return str(self.window.chat.turns[-1].answer)

    def drop(self, *paths: Path) -> None:
        files = QtCore.QMimeData()
        files.setUrls([QtCore.QUrl.fromLocalFile(str(path)) for path in paths])
        action, button = QtCore.Qt.DropAction.CopyAction, QtCore.Qt.MouseButton.LeftButton
        keys = QtCore.Qt.KeyboardModifier.NoModifier
        enter = QtGui.QDragEnterEvent(QtCore.QPoint(50, 50), action, files, button, keys)
        QtWidgets.QApplication.sendEvent(self.window, enter)
        assert enter.isAccepted()
        dropped = QtGui.QDropEvent(QtCore.QPointF(50, 50), action, files, button, keys)
        QtWidgets.QApplication.sendEvent(self.window, dropped)

    def press(self, key: QtCore.Qt.Key, *more: QtCore.Qt.KeyboardModifier) -> None:
        self.window.activateWindow()  # as a window manager does when a dialog has gone
        self.wait("an active window", self.window.isActiveWindow)
        modifiers = QtCore.Qt.KeyboardModifier.ControlModifier
        for one in more:
            modifiers |= one
        QTest.keyClick(self.window, key, modifiers)

    def choose(self, name: str) -> None:
        """In the menu."""
        (action,) = (one for one in self.window.findChildren(QtGui.QAction) if one.text() == name)
        action.trigger()

    def choose_file(self, path: Path) -> None:
        """In the dialog that is open."""
        dialogs = [one for one in self.window.findChildren(QtWidgets.QFileDialog) if one.isVisible()]
        assert len(dialogs) == 1
        (line,) = dialogs[0].findChildren(QtWidgets.QLineEdit)
        line.setText(str(path))
        QTest.keyClick(line, QtCore.Qt.Key.Key_Return)

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Over the picture, from 0 to 1."""
        view = self.window.picture
        rect = view.sceneRect()
        places = [view.mapFromScene(rect.width() * x, rect.height() * y) for x, y in (start, end)]
        left = QtCore.Qt.MouseButton.LeftButton
        QTest.mousePress(view.viewport(), left, QtCore.Qt.KeyboardModifier.NoModifier, places[0])
        keys = QtCore.Qt.KeyboardModifier.NoModifier
        for place in places:
            move = QtGui.QMouseEvent(
                QtCore.QEvent.Type.MouseMove, place, view.viewport().mapToGlobal(place),
                QtCore.Qt.MouseButton.NoButton, left, keys,
            )  # fmt: skip
            QtWidgets.QApplication.sendEvent(view.viewport(), move)
        QTest.mouseRelease(view.viewport(), left, keys, places[1])


def put_bundle(folder: Path, name: str) -> None:
    """Where bundles of this user are, as far as a list of names goes."""
    bundle = folder / "share" / "ayaedge" / "bundles" / name
    bundle.mkdir(parents=True)
    (bundle / "manifest.json").write_text("{}")


def use(person: Person) -> None:
    window, folder, seen = person.window, person.folder, person.seen
    # 1. There is no model yet.
    seen["names"] = [person.bundles()]
    person.look("start")
    window.start.chosen.emit("nothing")
    person.wait("a note", lambda: "no bundle at nothing" in window.start.note.text())
    person.look("no-model")
    person.meter.reset()
    QTest.mouseClick(window.start.demo, QtCore.Qt.MouseButton.LeftButton)
    person.wait("a model", lambda: window.model is not None and window.speeds is not None)
    person.note_blocked("loading a model")
    # 2. A picture, what it costs, and fewer tiles.
    person.drop(IMAGES / "six-cells.png")
    person.wait("a picture", lambda: window.attached)
    seen["cost"] = [window.cost.text()]
    person.look("before")
    QTest.keyClick(window.budget, QtCore.Qt.Key.Key_Home)
    seen["cost"].append(window.cost.text())
    QTest.keyClick(window.budget, QtCore.Qt.Key.Key_End)
    tiles: list[str] = []
    window.bar.valueChanged.connect(lambda _: tiles.append(window.bar.text()))
    seen["answers"] = [person.ask("What number is at the bottom left?")]
    seen["tiles"] = tiles
    seen["attached"] = window.attached
    for question in ("ما الرقم الموجود في أسفل اليسار؟", "כמה צורות יש?", "右下の形は何ですか？"):
        seen["answers"].append(person.ask(question))
    block, seen["directions"] = window.talk.document().firstBlock(), []
    while block.isValid():
        seen["directions"].append([block.text(), block.textDirection().name])
        block = block.next()
    person.look("answers")
    person.note_blocked("asking")
    # 3. Copy, save, begin anew, open again.
    person.app.clipboard().clear()
    person.press(QtCore.Qt.Key.Key_C, QtCore.Qt.KeyboardModifier.ShiftModifier)
    seen["copied"] = person.app.clipboard().text()
    person.press(QtCore.Qt.Key.Key_S)
    person.choose_file(folder / "cells")
    person.wait(
        "a file", lambda: str(folder / "cells.ayachat") in [one.text() for one in window.recent.actions()]
    )
    person.press(QtCore.Qt.Key.Key_N)
    assert not window.talk.toPlainText()
    person.wait("the picture for the new conversation", lambda: window.attached)
    person.note_blocked("copying and saving")
    window.recent.actions()[0].trigger()
    person.wait("a conversation", lambda: window.chat.turns and "右下" in window.talk.toPlainText())
    person.wait("its picture", lambda: not isinstance(window.sheets[0], str) and not window.attached)
    seen["reopened"] = person.ask("What shape is at the top right?")
    seen["shown_again"] = len(window.chat.turns[-1].images)
    person.note_blocked("opening a conversation")
    # 4. A document, page by page, and a part of a page.
    person.press(QtCore.Qt.Key.Key_O)
    person.choose_file(folder / "scan.pdf")
    person.wait("pages", lambda: window.number.maximum() == 2 and window.attached)
    before = window.image
    QTest.keyClick(window.number, QtCore.Qt.Key.Key_Up)
    person.wait("the second page", lambda: window.image is not before)
    person.note_blocked("opening a document")
    seen["page"] = person.ask("What number is at the bottom left?")
    person.look("page")
    before = window.image
    person.drag((0.0, 0.5), (1 / 3, 1.0))
    person.wait("a part", lambda: window.image is not before)
    seen["part"] = person.ask("What number is in the picture?")
    # 5. Stop, and a picture that is none.
    window.question.setText("Describe the picture.")
    QTest.keyClick(window.question, QtCore.Qt.Key.Key_Return)
    QTest.mouseClick(window.stop, QtCore.Qt.MouseButton.LeftButton)
    person.wait("an end", lambda: window.work is None)
    seen["stopped"] = window.talk.toPlainText().splitlines()[-1]
    person.drop(ROOT / "nowhere.png")
    person.wait("a fault", lambda: "there is no image at" in window.talk.toPlainText())
    # 6. The screen.
    before = window.image
    person.press(QtCore.Qt.Key.Key_P)
    person.wait("the screen", lambda: window.image is not before)
    seen["screen"] = [window.image.width(), window.image.height()]
    person.look("screen")
    person.note_blocked("the rest")
    seen["recent"] = [Path(one.text()).name for one in window.recent.actions()]
    # 7. The first page again, which lists what has come meanwhile.
    put_bundle(folder, "aya-vision-32b")
    person.choose("Another model")
    seen["names"].append(person.bundles())
    person.note_blocked("another model")


def main() -> None:
    person = Person(Path(sys.argv[1]))
    try:
        use(person)
    except BaseException:  # noqa: BLE001 - threads of the window would go on
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(3)
    person.window.leave()
    person.window.threads.shutdown()
    sys.stdout.write(json.dumps(person.seen))


if __name__ == "__main__":
    main()
