"""Run Aya Vision, a vision-language model for 23 languages, on an ordinary computer, offline.

from ayaedge import AyaVision

with AyaVision.load("bundle") as model:
    print(model.ask("What is written here?", images=["sign.jpg"]))
"""

import logging as _logging

from ayaedge.answers import Answer, Timings, Usage
from ayaedge.bundle import Bundle, read_bundle
from ayaedge.cache.options import NO_CACHE, CacheOptions
from ayaedge.conversation import Conversation, Turn
from ayaedge.decoder.options import DecoderOptions
from ayaedge.engine.streams import AnswerHandle, AnswerStream, AsyncAnswerStream
from ayaedge.errors import (
    AyaEdgeError,
    BackendError,
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
from ayaedge.hardware.probes import freeze_support
from ayaedge.images.encoded_image import EncodedImage
from ayaedge.manifest import Manifest
from ayaedge.model import AyaVision
from ayaedge.text.text_stream import Piece, TokenLogprob
from ayaedge.vision.session import VisionOptions

_logging.getLogger(__name__).addHandler(_logging.NullHandler())  # silent unless the application listens

__version__ = "0.1.0"  # pyproject.toml reads it here: a frozen program has no metadata of its parts

__all__ = [
    "NO_CACHE",
    "Answer",
    "AnswerHandle",
    "AnswerStream",
    "AsyncAnswerStream",
    "AyaEdgeError",
    "AyaVision",
    "BackendError",
    "Bundle",
    "BundleError",
    "BusyError",
    "CacheOptions",
    "CancelledError",
    "ChatFileError",
    "CheckpointError",
    "ClosedError",
    "ContextLengthError",
    "Conversation",
    "DecoderOptions",
    "EncodedImage",
    "ExportError",
    "ImageError",
    "InvalidOptionError",
    "Manifest",
    "MissingExtraError",
    "OutOfMemoryError",
    "Piece",
    "PromptError",
    "Timings",
    "TokenLogprob",
    "TruncatedError",
    "Turn",
    "Usage",
    "VisionOptions",
    "freeze_support",
    "read_bundle",
]
