"""A window to ask about images, which never waits for the model: python examples/desktop_app.py [BUNDLE]"""

import sys
from concurrent.futures import Future, ThreadPoolExecutor

from PySide6 import QtCore, QtGui, QtWidgets

from ayaedge import AnswerHandle, AyaVision


class Window(QtWidgets.QWidget):
    shown, moved = QtCore.Signal(QtGui.QImage), QtCore.Signal(str, int, int)  # emitted on other threads,
    wrote, ended = QtCore.Signal(str), QtCore.Signal(object)  # received on the window's, in the same order

    def __init__(self, bundle: str | None = None) -> None:
        super().__init__(acceptDrops=True, enabled=False)
        self.image, self.question = QtWidgets.QLabel("Drop an image"), QtWidgets.QComboBox(editable=True)
        self.bar, self.answer = QtWidgets.QProgressBar(), QtWidgets.QPlainTextEdit(readOnly=True)
        self.open, self.stop = QtWidgets.QPushButton("Open…"), QtWidgets.QPushButton("Stop")
        layout = QtWidgets.QFormLayout(self)
        for row in [self.image], [self.open, self.question], [self.stop, self.bar], [self.answer]:
            layout.addRow(*row)
        self.open.clicked.connect(lambda: self.show_image(QtWidgets.QFileDialog.getOpenFileName()[0]))
        self.question.textActivated.connect(self.ask)  # typed, or chosen again from the list
        self.stop.clicked.connect(lambda: self.work.cancel())
        self.shown.connect(lambda image: self.image.setPixmap(QtGui.QPixmap(image)))
        self.moved.connect(lambda _step, done, of: self.bar.setValue(100 * done // of))
        self.moved.connect(self.answer.clear)
        self.wrote.connect(QtGui.QTextCursor(self.answer.document()).insertText)
        self.ended.connect(lambda work: self.setEnabled(work.result() is not None))  # or raises its error
        sys.excepthook = lambda _kind, error, _trace: self.answer.appendPlainText(str(error))
        self.loading = ThreadPoolExecutor().submit(AyaVision.load, bundle)
        self.loading.add_done_callback(self.ended.emit)
        self.work: Future[AyaVision] | AnswerHandle = self.loading

    def dragEnterEvent(self, event: QtGui.QDragEnterEvent) -> None:  # noqa: N802
        event.setAccepted(event.mimeData().hasUrls())

    def dropEvent(self, event: QtGui.QDropEvent) -> None:  # noqa: N802
        self.show_image(event.mimeData().urls()[0].toLocalFile())

    def show_image(self, path: str) -> None:
        self.setWindowFilePath(path)
        ThreadPoolExecutor().submit(lambda: self.shown.emit(QtGui.QImage(path).scaledToHeight(360)))

    def ask(self, question: str) -> None:
        self.work.cancel()  # a new question takes the place of the last
        self.work = self.loading.result().submit(
            question, images=self.windowFilePath() or (), on_text=self.wrote.emit, on_progress=self.moved.emit
        )
        self.work.add_done_callback(self.ended.emit)


if __name__ == "__main__":
    app = QtWidgets.QApplication(sys.argv)
    window = Window(*sys.argv[1:2])
    window.show()
    app.exec()
    window.loading.result().close()  # ends what is still being answered
