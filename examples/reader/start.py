"""The page of a program that has no model yet."""

from pathlib import Path

from PySide6 import QtCore, QtGui, QtWidgets

from ayaedge import known_bundles

HELP = Path(__file__).with_name("first_page.html").read_text("utf-8")


class Start(QtWidgets.QWidget):
    """Says where bundles come from, and lets a person choose one: its name or path, or "" for the demonstration."""

    chosen = QtCore.Signal(str)

    def __init__(self) -> None:
        super().__init__()
        self.bundles, self.note = QtWidgets.QListWidget(), QtWidgets.QLabel(wordWrap=True)
        self.folder = QtWidgets.QPushButton("Choose a folder…")
        self.demo = QtWidgets.QPushButton("Try the demonstration model")
        layout = QtWidgets.QVBoxLayout(self)
        for part in QtWidgets.QLabel(HELP, wordWrap=True), self.bundles, self.folder, self.demo, self.note:
            layout.addWidget(part)
        dialog = QtWidgets.QFileDialog(self, fileMode=QtWidgets.QFileDialog.FileMode.Directory)
        dialog.fileSelected.connect(self.chosen)
        self.folder.clicked.connect(dialog.open)
        self.bundles.itemActivated.connect(lambda item: self.chosen.emit(item.text()))
        self.demo.clicked.connect(lambda: self.chosen.emit(""))

    def showEvent(self, _event: QtGui.QShowEvent) -> None:
        """List the bundles anew: one may have come since the page was last seen."""
        self.bundles.clear()
        self.bundles.addItems(list(known_bundles()))
