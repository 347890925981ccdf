"""What models are asked and what they answer, as JSON and arrays, and back.

What comes from a model's process is checked here: `strictly` makes a WireError of whatever is not as it must be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ayaedge import errors
from ayaedge.answers import Answer, StopReason, Timings, Usage
from ayaedge.checks import build
from ayaedge.engine.dialogue import Dialogue
from ayaedge.errors import AyaEdgeError, BackendError, CancelledError, ContextLengthError, OutOfMemoryError
from ayaedge.images.encoded_image import EncodedImage
from ayaedge.images.load import load_image
from ayaedge.images.pages import Page
from ayaedge.images.sources import TakenPath
from ayaedge.images.tile_budget import ImageCost
from ayaedge.isolation.wire import Arrays, WireError
from ayaedge.text.prompt import Message as Turn
from ayaedge.text.text_stream import Piece, TokenLogprob

_Value = TypeVar("_Value")
_FIGURES = ("needed", "available", "image_tokens")
"""What a ContextLengthError says beside its message."""


@dataclass(frozen=True)
class Ending:
    """What is said of an answer when it has ended; its text has come in pieces."""

    usage: Usage
    timings: Timings
    stop_reason: StopReason
    ids: tuple[int, ...]
    stop_string: str | None = None

    @classmethod
    def of(cls, answer: Answer) -> Ending:
        """That of an answer."""
        return cls(answer.usage, answer.timings, answer.stop_reason, answer.ids, answer.stop_string)


def strictly(read: Callable[..., _Value], *values: Any) -> _Value:
    """What `read` makes of something that has come from the model's process; WireError if it can make nothing."""
    try:
        return read(*values)
    except WireError:
        raise
    except Exception as error:
        raise WireError(f"{read.__name__}: {error!r}") from error


def whole(kind: type[_Value], data: object) -> _Value:
    """A dataclass whose fields all have the right types; ValueError otherwise."""
    faults: list[str] = []
    found = build(kind, data, kind.__name__, faults)
    if faults:
        raise ValueError("; ".join(faults[:5]))
    return found


def dialogue_form(dialogue: Dialogue, arrays: Arrays) -> dict[str, Any]:
    """A dialogue whose images' pixels go to `arrays`; ImageError for one that is no image."""
    return {
        "messages": dialogue.messages,
        "images": [image_form(one, arrays) for one in dialogue.images],
        "goes_on": dialogue.goes_on,
    }


def dialogue_of(form: dict[str, Any], arrays: Arrays) -> Dialogue:
    """The dialogue that `dialogue_form` wrote."""
    turns = [
        Turn(**{**turn, "ids": None if turn["ids"] is None else tuple(turn["ids"])})
        for turn in form["messages"]
    ]
    images = [image_of(one, arrays) for one in form["images"]]
    return Dialogue(tuple(turns), tuple(images), form["goes_on"])


def image_form(image: Any, arrays: Arrays) -> dict[str, Any]:
    """An image that was taken (`images.load.take_image`); ImageError for what is none."""
    if isinstance(image, EncodedImage):
        form: dict[str, Any] = {"cost": image.cost, "encoder": image.encoder}
        form["tiles"] = _add(arrays, np.asarray(image.tiles, np.uint8))
        if image.embeddings is not None:
            form["embeddings"] = _add(arrays, np.asarray(image.embeddings, np.float32))
        return form
    if isinstance(image, Page):
        return {"page": image.number, "of": image_form(image.file, arrays)}
    if isinstance(image, TakenPath):
        return {"given": image.given, "path": image.path}
    if isinstance(image, str):
        return {"url": image}
    if isinstance(image, bytes):
        return {"file": _add(arrays, np.frombuffer(image, np.uint8))}
    return {"pixels": _add(arrays, load_image(image))}


def image_of(form: dict[str, Any], arrays: Arrays) -> Any:
    """The image that `image_form` wrote."""
    if "cost" in form:
        place = form.get("embeddings")
        found = None if place is None else arrays[place]
        cost = whole(ImageCost, form["cost"])
        return EncodedImage(cost, arrays[form["tiles"]], bytes.fromhex(form["encoder"]), found)
    if "page" in form:
        return Page(image_of(form["of"], arrays), form["page"])
    if "path" in form:
        return TakenPath(form["given"], Path(form["path"]))
    if "url" in form:
        return str(form["url"])
    return arrays[form["file"]].tobytes() if "file" in form else arrays[form["pixels"]]


def tiles_of(cost: Any, tiles: NDArray[Any], side: int, encoder: bytes) -> EncodedImage:
    """An image in tiles of this side that the model has cut."""
    found = whole(ImageCost, cost)
    if tiles.dtype != np.uint8 or tiles.shape != (found.tiles, side, side, 3) or not found.tiles:
        raise WireError(f"tiles of shape {tiles.shape}")
    return EncodedImage(found, tiles, encoder)


def piece_form(piece: Piece) -> list[Any]:
    """A piece of text with its tokens; short, because there is one for each token."""
    return [str(piece), piece.ids, [_logprob_form(one) for one in piece.logprobs]]


def piece_of(form: Any) -> Piece:
    """The piece that `piece_form` wrote."""
    text, ids, logprobs = form
    if type(text) is not str or not all(type(one) is int for one in ids):
        raise WireError("a piece that is no text")
    return Piece(text, ids, [_logprob_of(one) for one in logprobs])


def progress_of(form: Any) -> tuple[Any, int, int]:
    """A step, how much of it is done, and of how much."""
    step, done, of = form
    if step not in ("vision", "prefill") or type(done) is not int or type(of) is not int:
        raise WireError("progress that is none")
    return step, done, of


def ids_of(form: Any) -> tuple[int, ...] | None:
    """Token ids, or None."""
    if form is not None and not all(type(one) is int for one in form):
        raise WireError("ids that are none")
    return None if form is None else tuple(form)


def number_of(form: Any) -> int:
    """A whole number."""
    if type(form) is not int:
        raise WireError("a number that is none")
    return form


def error_form(error: BaseException) -> dict[str, Any]:
    """An error as its class's name, its message and its figures; what ayaedge does not raise is a BackendError."""
    if isinstance(error, AyaEdgeError):
        kind, message = type(error), str(error)
    elif isinstance(error, MemoryError):
        kind, message = OutOfMemoryError, "there is not memory enough"
    else:
        kind, message = BackendError, f"the model's process failed: {type(error).__name__}: {error}"
    figures = {name: getattr(error, name) for name in _FIGURES if hasattr(error, name)}
    return {"kind": kind.__name__, "message": message, **figures}


def error_of(form: Any) -> AyaEdgeError:
    """The error that `error_form` wrote."""
    kind = getattr(errors, str(form["kind"]), None)
    if not isinstance(kind, type) or not issubclass(kind, AyaEdgeError):
        kind = BackendError
    error = kind.__new__(kind)
    AyaEdgeError.__init__(error, str(form["message"]))  # many classes are not called with a message
    if isinstance(error, CancelledError):
        error.answer = None
    if isinstance(error, ContextLengthError):
        error.needed, error.available, error.image_tokens = (number_of(form[name]) for name in _FIGURES)
    return error


def _add(arrays: Arrays, array: NDArray[Any]) -> int:
    arrays.append(array)
    return len(arrays) - 1


def _logprob_form(one: TokenLogprob) -> list[Any]:
    return [one.id, one.data.hex(), one.logprob, [_logprob_form(top) for top in one.top]]


def _logprob_of(form: Any, *, top: bool = True) -> TokenLogprob:
    number, data, logprob, others = form
    if type(number) is not int or type(logprob) is not float or (others and not top):
        raise WireError("a probability that is none")
    likeliest: Sequence[Any] = [_logprob_of(one, top=False) for one in others]
    return TokenLogprob(number, bytes.fromhex(data), logprob, tuple(likeliest))
