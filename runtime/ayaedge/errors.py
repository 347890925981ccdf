"""Everything that ayaedge raises on purpose.

    AyaEdgeError
    ├── BundleError          also ValueError: a bundle is missing, damaged or does not fit together
    ├── CheckpointError      also ValueError: a checkpoint cannot be exported as it is
    ├── ExportError          also RuntimeError: an export could not be finished
    ├── InvalidOptionError   also ValueError: an option has a value that makes no sense
    ├── ImageError           also ValueError: an image cannot be read
    ├── PromptError          also ValueError: a conversation cannot be turned into a prompt
    │   └── ContextLengthError   the prompt has more tokens than the context holds
    ├── BackendError         also RuntimeError: llama.cpp or ONNX Runtime failed
    │   └── OutOfMemoryError     also MemoryError: there is not memory enough
    ├── CancelledError       a request was cancelled
    ├── ClosedError          also RuntimeError: a model was closed, or belongs to another process
    ├── BusyError            also RuntimeError: too many requests wait already
    ├── TruncatedError       also ValueError: an answer was cut off and cannot be parsed
    ├── BatchError           also RuntimeError: a batch was stopped, as too many of its rows failed
    ├── ChatFileError        also ValueError: a saved conversation cannot be read or written
    └── MissingExtraError    also ImportError: an optional part is not installed

Each also inherits the builtin that a caller would catch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ayaedge.answers import Answer


class AyaEdgeError(Exception):
    """Base of all errors that ayaedge raises on purpose; its message can be printed, whatever it quotes."""

    def __init__(self, message: str = ""):
        super().__init__(_readable(message))

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles are made of the message and attributes, as many classes are not called with a message."""
        reduced: Any = super().__reduce__()
        _, args, *state = reduced
        return _restored, (type(self), args), *state


def _restored(kind: type[AyaEdgeError], args: tuple[Any, ...]) -> AyaEdgeError:
    """An error as it was, without the `__init__` of ayaedge's own classes."""
    error = kind.__new__(kind, *args)
    super(AyaEdgeError, error).__init__(*args)
    return error


class BundleError(AyaEdgeError, ValueError):
    """A bundle is missing, damaged or does not fit together; the message lists every fault found."""


class CheckpointError(AyaEdgeError, ValueError):
    """A checkpoint cannot be exported as it is; the message lists every fault found."""


class ExportError(AyaEdgeError, RuntimeError):
    """An export could not be finished; nothing was left under the target's name."""


class InvalidOptionError(AyaEdgeError, ValueError):
    """An option has a value that makes no sense."""


class ImageError(AyaEdgeError, ValueError):
    """An image cannot be read."""


class PromptError(AyaEdgeError, ValueError):
    """A conversation cannot be turned into a prompt."""


class ContextLengthError(PromptError):
    """The prompt has more tokens than the context holds."""

    def __init__(self, *, needed: int, available: int, image_tokens: int):
        self.needed, self.available, self.image_tokens = needed, available, image_tokens
        advice = "shorten the question or the conversation, or raise context_size"
        if image_tokens:
            advice = (
                f"{image_tokens} of them come from images: lower max_tiles, send fewer images, or raise "
                "context_size"
            )
        super().__init__(f"the prompt has {needed} tokens and only {available} fit; {advice}")


class BackendError(AyaEdgeError, RuntimeError):
    """llama.cpp or ONNX Runtime failed; the message carries what the library said."""


class OutOfMemoryError(BackendError, MemoryError):
    """There is not memory enough; the message says for what."""


class CancelledError(AyaEdgeError):
    """A request was cancelled; `answer` is what there was of its answer, or None."""

    def __init__(self, answer: Answer | None = None):
        self.answer = answer
        super().__init__("the request was cancelled")


class ClosedError(AyaEdgeError, RuntimeError):
    """A model was closed, or was loaded by another process; load it again."""

    def __init__(self, message: str = "this model is closed"):
        super().__init__(message)


class BusyError(AyaEdgeError, RuntimeError):
    """Too many requests wait already; ask again later, or load the model with a larger `queue_size`."""


class TruncatedError(AyaEdgeError, ValueError):
    """An answer was cut off by the limit on tokens or cancelled, so what there is of it cannot be parsed."""


class BatchError(AyaEdgeError, RuntimeError):
    """A batch was stopped, as too many of its rows failed; what was answered is kept, and it can go on."""


class ChatFileError(AyaEdgeError, ValueError):
    """A saved conversation cannot be read or written; the message names the file and what is wrong."""


class MissingExtraError(AyaEdgeError, ImportError):
    """An optional part of ayaedge is not installed."""

    def __init__(self, purpose: str, extra: str):
        super().__init__(f'{purpose} needs an extra that is not installed: pip install "ayaedge[{extra}]"')


_MOST_FAULTS = 50
_LONGEST_LINE = 1500
_STEERING = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Controls but for tab and line feed, what else ends a line, what turns the direction of text, and half characters."""


def printable(text: str) -> str:
    """Text of anybody so that it shows what it holds and steers nothing: `\\x1b` stands for an escape character.

    Letters of every script stay as they are, and so do tabs and line feeds.
    """
    return _STEERING.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def list_faults(subject: str, faults: Sequence[str]) -> str:
    """One message for all faults of a subject, a line each."""
    if len(faults) == 1:
        return f"{subject}: {faults[0]}"
    lines = [f"  - {fault}" for fault in faults[:_MOST_FAULTS]]
    if len(faults) > _MOST_FAULTS:
        lines.append(f"  - and {len(faults) - _MOST_FAULTS} more")
    return f"{subject} has {len(faults)} faults:\n" + "\n".join(lines)


def _readable(message: str) -> str:
    """Printable, without the middle of endless lines and without endlessly many."""
    text = printable(message)
    lines, half = text.splitlines(), _LONGEST_LINE // 2
    if len(lines) <= _MOST_FAULTS + 2 and all(len(line) <= _LONGEST_LINE for line in lines):
        return text
    cut = [line if len(line) <= _LONGEST_LINE else f"{line[:half]} ... {line[-half:]}" for line in lines]
    return "\n".join(cut if len(cut) <= _MOST_FAULTS + 2 else [*cut[:_MOST_FAULTS], "..."])
