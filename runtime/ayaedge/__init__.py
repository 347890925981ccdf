"""Run Aya Vision, a vision-language model for 23 languages, on an ordinary computer, offline.

from ayaedge import AyaVision

with AyaVision.load("bundle") as model:
    print(model.ask("What is written here?", images=["sign.jpg"]))
"""

import logging as _logging

from ayaedge.bundle import Bundle, Manifest, read_bundle
from ayaedge.decoder import DecoderOptions
from ayaedge.errors import (
    AyaEdgeError,
    BackendError,
    BundleError,
    CheckpointError,
    ContextLengthError,
    ExportError,
    ImageError,
    InvalidOptionError,
    MissingExtraError,
    PromptError,
)
from ayaedge.model import Answer, AnswerStream, AyaVision, Timings, Usage
from ayaedge.states import NO_CACHE, CacheOptions
from ayaedge.vision import VisionOptions

_logging.getLogger(__name__).addHandler(_logging.NullHandler())  # silent unless the application listens

__all__ = [
    "NO_CACHE",
    "Answer",
    "AnswerStream",
    "AyaEdgeError",
    "AyaVision",
    "BackendError",
    "Bundle",
    "BundleError",
    "CacheOptions",
    "CheckpointError",
    "ContextLengthError",
    "DecoderOptions",
    "ExportError",
    "ImageError",
    "InvalidOptionError",
    "Manifest",
    "MissingExtraError",
    "PromptError",
    "Timings",
    "Usage",
    "VisionOptions",
    "read_bundle",
]
