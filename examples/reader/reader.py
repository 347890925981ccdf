"""Ask about pictures and documents, and keep the conversation: python examples/reader/reader.py [BUNDLE]"""

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from html import escape
from typing import Any

from PySide6 import QtCore, QtGui, QtWidgets

from ayaedge import AnswerHandle, AyaVision, Conversation, ImageInput, Speeds, TileOption, freeze_support
from picture import Picture
from sheets import looks_of, part_of, sheets_of
from start import Start

CHAT = ".ayachat"
Dialog = QtWidgets.QFileDialog


class Reader(QtWidgets.QMainWindow):
    news = QtCore.Signal(object)  # emitted on other threads: what to call on the window's, in the same order
    model: AyaVision | None = None
    chat: Conversation
    work: AnswerHandle | None = None
    speeds: Speeds | None = None
    attached = False  # whether the next question shows the sheet to the model
    asked: ImageInput | None = None  # the sheet that the question shows which is answered now

    def __init__(self) -> None:
        super().__init__()
        self.setAcceptDrops(True)
        self.settings, self.threads = QtCore.QSettings(), ThreadPoolExecutor()
        self.sheets: list[ImageInput] = []
        self.read: list[ImageInput] = []  # sheets that the conversation holds
        self.options: list[TileOption] = []
        self.start, self.picture, self.pages = Start(), Picture(), QtWidgets.QStackedWidget()
        self.talk = QtWidgets.QTextEdit(readOnly=True)
        self.number, self.budget = QtWidgets.QSpinBox(), QtWidgets.QSlider(QtCore.Qt.Orientation.Horizontal)
        self.cost, self.bar = QtWidgets.QLabel(), QtWidgets.QProgressBar()
        self.question, self.stop = QtWidgets.QLineEdit(placeholderText="Ask…"), QtWidgets.QPushButton("Stop")
        self.question.setAcceptDrops(False)  # the window takes files
        grid = QtWidgets.QGridLayout(desk := QtWidgets.QWidget())
        left = self.picture, self.number, self.budget, self.cost
        for place, part in enumerate((*left, self.talk, self.question, self.bar, self.stop)):
            grid.addWidget(part, place % 4, place // 4)
        self.pages.addWidget(self.start)
        self.pages.addWidget(desk)
        self.setCentralWidget(self.pages)
        self.news.connect(lambda call: call())
        self.start.chosen.connect(self.load)
        self.picture.cut.connect(self.cut)
        self.number.valueChanged.connect(self.turn)
        self.budget.valueChanged.connect(lambda: self.show_sheet(again=True))
        self.question.returnPressed.connect(self.ask)
        self.stop.clicked.connect(lambda: self.work.cancel() if self.work else None)

    def fill_menus(self) -> None:
        opening = Dialog(self, fileMode=Dialog.FileMode.ExistingFiles)
        saving = Dialog(self, acceptMode=Dialog.AcceptMode.AcceptSave, defaultSuffix=CHAT)
        opening.filesSelected.connect(self.open)
        saving.fileSelected.connect(self.save)
        menu, self.recent = self.menuBar().addMenu("Reader"), self.menuBar().addMenu("Recent")
        menu.addAction("Open…", "Ctrl+O", opening.open)
        menu.addAction("Picture of the screen", "Ctrl+P", self.hide_and_look)
        menu.addAction("New conversation", "Ctrl+N", self.begin)
        menu.addAction("Save conversation…", "Ctrl+S", saving.open)
        menu.addAction("Copy answer", "Ctrl+Shift+C", self.copy)
        menu.addAction("Another model", "Ctrl+M", self.leave)
        self.recent.triggered.connect(lambda action: self.open([action.text()]))
        self.remember()

    def run(self, work: Callable[[], Any], then: Callable[[Any], object]) -> None:
        """Do what takes time on another thread, then go on here."""

        def do() -> None:
            try:
                self.news.emit(partial(then, work()))
            except Exception as error:  # noqa: BLE001 - whatever it is, a person reads it
                self.news.emit(partial(self.tell, str(error)))

        self.threads.submit(do)

    def tell(self, fault: str) -> None:
        self.start.setEnabled(True)
        self.start.note.setText(fault)
        self.say(fault, "i")

    def say(self, text: str, tag: str = "span") -> None:
        for line in text.split("\n"):  # paragraphs, each of which runs in the direction of its own letters
            self.talk.append(f"<{tag}>{escape(line)}</{tag}>")

    def load(self, bundle: str) -> None:
        self.start.setEnabled(False)
        self.start.note.setText("Loading…")
        self.run(lambda: AyaVision.load(bundle or None), partial(self.take_model, bundle))

    def take_model(self, bundle: str, model: AyaVision) -> None:
        self.model, self.speeds = model, None
        self.settings.setValue("bundle", bundle)
        self.budget.setRange(1, model.bundle.manifest.tiling.max_tiles)
        self.budget.setValue(self.budget.maximum())
        self.take_chat(model.chat())
        self.pages.setCurrentIndex(1)
        if not self.menuBar().actions():
            self.fill_menus()
        self.run(model.measure, self.take_speeds)

    def take_speeds(self, speeds: Speeds) -> None:
        self.speeds = speeds
        self.turn()

    def leave(self) -> None:
        if self.model:
            self.threads.submit(self.model.close)
        self.model = None
        self.start.setEnabled(True)
        self.pages.setCurrentIndex(0)

    def dragEnterEvent(self, event: QtGui.QDragEnterEvent) -> None:
        event.setAccepted(bool(self.model) and event.mimeData().hasUrls())

    def dropEvent(self, event: QtGui.QDropEvent) -> None:
        self.open([url.toLocalFile() for url in event.mimeData().urls()])

    def open(self, paths: list[str]) -> None:
        self.remember(*paths)
        for path in paths:
            if self.model and path.endswith(CHAT):
                self.run(partial(self.model.open_chat, path), self.take_chat)
        self.run(partial(sheets_of, [path for path in paths if not path.endswith(CHAT)]), self.take_sheets)

    def remember(self, *paths: str) -> None:
        """List files first among the recent ones."""
        known: Any = self.settings.value("recent", [], list)
        recent = list(dict.fromkeys([*paths, *known]))[:9]
        self.settings.setValue("recent", recent)
        self.recent.clear()
        for path in recent:
            self.recent.addAction(path)

    def save(self, path: str) -> None:
        self.run(partial(self.chat.save, path), lambda _: self.remember(path))

    def copy(self) -> None:
        QtGui.QGuiApplication.clipboard().setText("".join(turn.answer for turn in self.chat.turns[-1:]))

    def begin(self) -> None:
        if self.model:
            self.take_chat(self.model.chat())

    def take_chat(self, chat: Conversation) -> None:
        self.chat, self.read = chat, []
        self.talk.clear()
        for turn in chat.turns:
            self.say(turn.question, "b")
            self.say(turn.answer)
        self.turn()
        if images := [image for turn in chat.turns for image in turn.images]:
            self.run(lambda: [image.to_image() for image in images], partial(self.take_sheets, read=True))

    def take_sheets(self, sheets: list[ImageInput], read: bool = False) -> None:
        if sheets:
            self.sheets = sheets
            self.read += sheets if read else []
            self.number.setRange(1, len(sheets))
            self.number.setSuffix(f" of {len(sheets)}")
            self.number.setValue(1)
            self.turn()

    def cut(self, part: QtCore.QRectF) -> None:
        self.run(partial(part_of, self.sheet(), part), self.take_sheets)

    def hide_and_look(self) -> None:
        def look() -> None:
            buffer = QtCore.QBuffer()
            buffer.open(QtCore.QBuffer.OpenModeFlag.WriteOnly)
            self.screen().grabWindow(0).save(buffer, "PNG")
            self.show()
            self.take_sheets([buffer.data().data()])

        self.hide()
        QtCore.QTimer.singleShot(300, look)  # when the window has gone

    def sheet(self) -> ImageInput:
        return self.sheets[self.number.value() - 1]

    def turn(self) -> None:
        if self.sheets and self.model:
            look = partial(looks_of, self.model, self.sheet(), self.speeds)
            self.run(look, partial(self.take_looks, self.sheet()))

    def take_looks(self, sheet: ImageInput, looks: tuple[QtGui.QImage, list[TileOption]]) -> None:
        if sheet is self.sheet():  # nobody has turned the page meanwhile
            self.image, self.options = looks
            self.show_sheet()

    def show_sheet(self, again: bool = False) -> None:
        """Show the sheet in as many tiles as the budget allows, and to the model too unless it has read it."""
        if self.options:
            option = [one for one in self.options if one.max_tiles <= self.budget.value()][-1]
            (cost,), seconds = option.images, "" if option.seconds is None else f", {option.seconds:.1f} s"
            price = f"{cost.columns} × {cost.rows} tiles, {option.prompt_tokens} tokens{seconds}"
            self.attached = again or not any(one is self.sheet() for one in self.read)
            self.cost.setText(price if self.attached else "the model has read this sheet")
            self.picture.show_picture(self.image, cost.columns, cost.rows)

    def ask(self) -> None:
        text = self.question.text().strip()
        if self.model and text and self.work is None:
            self.turns = len(self.chat.turns)
            self.asked = self.sheet() if self.attached else None
            self.question.clear()
            self.say(text, "b")
            self.say("")
            self.work = self.chat.submit(
                text, images=() if self.asked is None else self.asked,
                max_tiles=self.budget.value(), overflow="drop_oldest",
                on_text=lambda piece: self.news.emit(partial(self.write, piece)),
                on_progress=lambda *steps: self.news.emit(partial(self.move_on, *steps)),
            )  # fmt: skip
            self.work.add_done_callback(lambda work: self.news.emit(partial(self.finish, work)))

    def write(self, piece: str) -> None:
        end = QtGui.QTextCursor(self.talk.document())  # not the person's, whose selection stays
        end.movePosition(end.MoveOperation.End)
        end.insertText(piece, QtGui.QTextCharFormat())
        self.talk.verticalScrollBar().setValue(self.talk.verticalScrollBar().maximum())

    def move_on(self, step: str, done: int, of: int) -> None:
        self.bar.setFormat("tile %v of %m" if step == "vision" else "%v of %m tokens")
        self.bar.setRange(0, of)
        self.bar.setValue(done)
        self.picture.darken_from(done if step == "vision" else of)

    def finish(self, work: AnswerHandle) -> None:
        self.work = None
        self.bar.reset()
        self.picture.darken_from(1000)
        if len(self.chat.turns) > self.turns and self.asked is not None:
            self.read.append(self.asked)
            self.show_sheet()
        if error := work.exception():
            self.say(str(error), "i")


if __name__ == "__main__":
    freeze_support()
    app = QtWidgets.QApplication(sys.argv)
    app.setOrganizationName("ayaedge")
    app.setApplicationName("reader")
    window = Reader()
    window.resize(1000, 640)
    window.show()
    bundle = sys.argv[1] if len(sys.argv) > 1 else window.settings.value("bundle")
    if bundle is not None:
        window.load(bundle)
    app.exec()
    window.leave()
    window.threads.shutdown()
