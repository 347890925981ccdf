"""Run Aya Vision, a vision-language model for 23 languages, on an ordinary computer, offline.

```python
from ayaedge import AyaVision

with AyaVision.load("bundle") as model:
    print(model.ask("What is written here?", images=["sign.jpg"]))
```
"""

import logging as _logging
import typing as _typing
from importlib import import_module as _import_module

from ayaedge import ort as _ort  # noqa: F401 - keeps ONNX Runtime from speaking, whoever loads it after us

if _typing.TYPE_CHECKING:
    from ayaedge.answers import Answer, StopReason, Timings, Usage
    from ayaedge.batch.items import BatchItem
    from ayaedge.batch.journal import BatchRow
    from ayaedge.bundle import Bundle, known_bundles, read_bundle
    from ayaedge.cache.options import NO_CACHE, CacheOptions
    from ayaedge.conversation import Conversation, Images, Turn
    from ayaedge.decoder.options import Acceleration, CacheType, DecoderOptions
    from ayaedge.engine.interface import OnProgress
    from ayaedge.engine.streams import AnswerHandle, AnswerStream, AsyncAnswerStream
    from ayaedge.errors import (
        AyaEdgeError,
        BackendError,
        BatchError,
        BundleError,
        BusyError,
        CancelledError,
        ChatFileError,
        CheckpointError,
        ClosedError,
        ContextLengthError,
        ExportError,
        ImageError,
        InvalidOptionError,
        MissingExtraError,
        OutOfMemoryError,
        PromptError,
        TruncatedError,
    )
    from ayaedge.hardware.children import freeze_support
    from ayaedge.hardware.devices import Device
    from ayaedge.hardware.speeds import Speeds
    from ayaedge.images.encoded_image import AnyImage, EncodedImage
    from ayaedge.images.load import ImageInput, count_pages, load_image
    from ayaedge.images.pages import Page
    from ayaedge.images.sources import BinaryFile
    from ayaedge.images.tile_budget import ImageCost
    from ayaedge.images.tiling import TilePolicy
    from ayaedge.manifest import (
        DecoderInfo,
        EmbeddingTable,
        FileInfo,
        Formats,
        ImagePrompt,
        Manifest,
        Merge,
        MergedModel,
        Source,
        TextToken,
        Tiling,
        Tokens,
    )
    from ayaedge.model import AyaVision
    from ayaedge.options import AnswerKeywords, Overflow
    from ayaedge.planning.tile_options import TileOption
    from ayaedge.text.text_stream import Piece, TokenLogprob
    from ayaedge.vision.session import VisionOptions

_logging.getLogger(__name__).addHandler(_logging.NullHandler())  # silent unless the application listens

__version__ = "0.2.0"  # pyproject.toml reads it here: a frozen program has no metadata of its parts

__all__ = [
    "NO_CACHE",
    "Acceleration",
    "Answer",
    "AnswerHandle",
    "AnswerKeywords",
    "AnswerStream",
    "AnyImage",
    "AsyncAnswerStream",
    "AyaEdgeError",
    "AyaVision",
    "BackendError",
    "BatchError",
    "BatchItem",
    "BatchRow",
    "BinaryFile",
    "Bundle",
    "BundleError",
    "BusyError",
    "CacheOptions",
    "CacheType",
    "CancelledError",
    "ChatFileError",
    "CheckpointError",
    "ClosedError",
    "ContextLengthError",
    "Conversation",
    "DecoderInfo",
    "DecoderOptions",
    "Device",
    "EmbeddingTable",
    "EncodedImage",
    "ExportError",
    "FileInfo",
    "Formats",
    "ImageCost",
    "ImageError",
    "ImageInput",
    "ImagePrompt",
    "Images",
    "InvalidOptionError",
    "Manifest",
    "Merge",
    "MergedModel",
    "MissingExtraError",
    "OnProgress",
    "OutOfMemoryError",
    "Overflow",
    "Page",
    "Piece",
    "PromptError",
    "Source",
    "Speeds",
    "StopReason",
    "TextToken",
    "TileOption",
    "TilePolicy",
    "Tiling",
    "Timings",
    "TokenLogprob",
    "Tokens",
    "TruncatedError",
    "Turn",
    "Usage",
    "VisionOptions",
    "count_pages",
    "freeze_support",
    "known_bundles",
    "load_image",
    "read_bundle",
]

_HOMES = (
    "ayaedge.errors",
    "ayaedge.answers",
    "ayaedge.bundle",
    "ayaedge.batch.items",
    "ayaedge.batch.journal",
    "ayaedge.cache.options",
    "ayaedge.decoder.options",
    "ayaedge.engine.interface",
    "ayaedge.engine.streams",
    "ayaedge.hardware.children",
    "ayaedge.hardware.devices",
    "ayaedge.hardware.speeds",
    "ayaedge.images.encoded_image",
    "ayaedge.images.load",
    "ayaedge.images.tile_budget",
    "ayaedge.images.tiling",
    "ayaedge.manifest",
    "ayaedge.options",
    "ayaedge.planning.tile_options",
    "ayaedge.text.text_stream",
    "ayaedge.vision.session",
    "ayaedge.conversation",
    "ayaedge.model",
)
"""Where the names of `__all__` are; looked into in this order."""

if not _typing.TYPE_CHECKING:

    def __getattr__(name):
        """Load a name with its first use: `import ayaedge` alone does not wait for numpy, Pillow and all of us."""
        if name in __all__:
            for home in map(_import_module, _HOMES):
                if hasattr(home, name):
                    return globals().setdefault(name, getattr(home, name))
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__():
        """Name what there is, loaded or not."""
        return sorted({*globals(), *__all__})
