"""Everything that ayaedge raises on purpose.

    AyaEdgeError
    ├── BundleError          also ValueError: a bundle is missing, damaged or does not fit together
    ├── CheckpointError      also ValueError: a checkpoint cannot be exported as it is
    ├── ExportError          also RuntimeError: an export could not be finished
    ├── InvalidOptionError   also ValueError: an option has a value that makes no sense
    ├── ImageError           also ValueError: a picture cannot be read
    ├── PromptError          also ValueError: a conversation cannot be turned into a prompt
    │   └── ContextLengthError   the prompt has more tokens than the context holds
    ├── BackendError         also RuntimeError: llama.cpp or ONNX Runtime failed
    └── MissingExtraError    also ImportError: an optional part is not installed

Each also inherits the builtin that a caller would catch.
"""

from __future__ import annotations

from collections.abc import Sequence


class AyaEdgeError(Exception):
    """Base of all errors that ayaedge raises on purpose."""


class BundleError(AyaEdgeError, ValueError):
    """A bundle is missing, damaged or does not fit together; the message lists every fault found."""


class CheckpointError(AyaEdgeError, ValueError):
    """A checkpoint cannot be exported as it is; the message lists every fault found."""


class ExportError(AyaEdgeError, RuntimeError):
    """An export could not be finished; nothing was left under the target's name."""


class InvalidOptionError(AyaEdgeError, ValueError):
    """An option has a value that makes no sense."""


class ImageError(AyaEdgeError, ValueError):
    """A picture cannot be read."""


class PromptError(AyaEdgeError, ValueError):
    """A conversation cannot be turned into a prompt."""


class ContextLengthError(PromptError):
    """The prompt has more tokens than the context holds."""

    def __init__(self, *, needed: int, available: int, image_tokens: int):
        self.needed, self.available, self.image_tokens = needed, available, image_tokens
        advice = "shorten the question or the conversation, or raise the context size (-c/--ctx-size)"
        if image_tokens:
            advice = (
                f"{image_tokens} of them come from pictures: lower --max-tiles, send fewer pictures, "
                "or raise the context size (-c/--ctx-size)"
            )
        super().__init__(f"the prompt has {needed} tokens and only {available} fit; {advice}")


class BackendError(AyaEdgeError, RuntimeError):
    """llama.cpp or ONNX Runtime failed; the message carries what the library said."""


class MissingExtraError(AyaEdgeError, ImportError):
    """An optional part of ayaedge is not installed."""

    def __init__(self, purpose: str, extra: str):
        super().__init__(f'{purpose} needs an extra that is not installed: pip install "ayaedge[{extra}]"')


_MOST_FAULTS = 50


def list_faults(subject: str, faults: Sequence[str]) -> str:
    """One message for all faults of a subject, a line each."""
    if len(faults) == 1:
        return f"{subject}: {faults[0]}"
    lines = [f"  - {fault}" for fault in faults[:_MOST_FAULTS]]
    if len(faults) > _MOST_FAULTS:
        lines.append(f"  - and {len(faults) - _MOST_FAULTS} more")
    return f"{subject} has {len(faults)} faults:\n" + "\n".join(lines)


def whole_number(
    name: str, value: object, *, least: int, most: int | None = None, optional: bool = False
) -> str | None:
    """What is wrong with an option that must be a whole number in a range, or None."""
    if optional and value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool) and least <= value <= (most or value):
        return None
    limits = f"of {least} or more" if most is None else f"from {least} to {most}"
    return f"{name} must be a whole number {limits}, not {value!r}"


def check_options(*faults: str | None) -> None:
    """Raise InvalidOptionError for what is wrong with options, all at once."""
    found = [fault for fault in faults if fault]
    if found:
        raise InvalidOptionError("; ".join(found))
