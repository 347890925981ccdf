"""The sheet of the next question, as the model sees it."""

from PySide6 import QtCore, QtGui, QtWidgets

SHADE = QtGui.QColor(0, 0, 0, 130)


class Picture(QtWidgets.QGraphicsView):
    """A picture under its grid of tiles. Dragging the mouse over it gives `cut` a part, whose sides go from 0 to 1."""

    cut = QtCore.Signal(QtCore.QRectF)

    def __init__(self) -> None:
        super().__init__()
        self.setAcceptDrops(False)
        self.setScene(QtWidgets.QGraphicsScene(self))
        self.setRenderHint(QtGui.QPainter.RenderHint.SmoothPixmapTransform)
        self.setDragMode(self.DragMode.RubberBandDrag)
        self.rubberBandChanged.connect(self._drag)
        self.scene().addText("Drop pictures or PDFs here")
        self.tiles: list[QtWidgets.QGraphicsRectItem] = []

    def show_picture(self, image: QtGui.QImage, columns: int, rows: int) -> None:
        self.scene().clear()
        self.scene().addPixmap(QtGui.QPixmap(image))
        self.setSceneRect(image.rect())
        width, height = image.width() / columns, image.height() / rows
        pen = QtGui.QPen(self.palette().highlight(), 2)
        pen.setCosmetic(True)
        places = [(column * width, row * height) for row in range(rows) for column in range(columns)]
        self.tiles = [self.scene().addRect(x, y, width, height, pen) for x, y in places]
        self.resizeEvent()

    def darken_from(self, tile: int) -> None:
        """Darken the tiles that are not read yet, of which this is the first."""
        for number, item in enumerate(self.tiles):
            item.setBrush(SHADE if number >= tile else QtGui.QBrush())

    def resizeEvent(self, _event: QtGui.QResizeEvent | None = None) -> None:
        self.fitInView(self.sceneRect(), QtCore.Qt.AspectRatioMode.KeepAspectRatio)

    def _drag(self, band: QtCore.QRect) -> None:
        whole = self.sceneRect()
        if not band.isNull():
            self._part = self.mapToScene(band).boundingRect() & whole
        elif self.tiles and not self._part.isEmpty():  # the mouse was let go
            self.cut.emit(
                QtGui.QTransform.fromScale(1 / whole.width(), 1 / whole.height()).mapRect(self._part)
            )
