"""The page of a program that has no model yet."""

from PySide6 import QtCore, QtWidgets

from ayaedge import known_bundles

HELP = """<h2>Which model shall answer?</h2>
<p>A model is a folder, called bundle. Nothing is downloaded, and nothing that you ask leaves this computer.
To make one, get <i>CohereLabs/aya-vision-8b</i> from Hugging Face (17 GB, not for commercial use), and run</p>
<pre>pip install "ayaedge[export]"
ayaedge export aya-vision-8b</pre>
<p>Bundles that lie in <i>ayaedge/bundles</i> of your directory for data are listed here. The demonstration model
is there already, and knows coloured shapes and numbers only.</p>"""


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
        self.bundles.addItems(list(known_bundles()))
        self.demo.clicked.connect(lambda: self.chosen.emit(""))
