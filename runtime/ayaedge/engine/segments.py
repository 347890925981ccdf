"""A prompt in segments, each with a key of everything up to its end."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ayaedge.text.prompt import Prompt

_LEAST_TOKENS = 32
"""Prefixes below this are decoded faster than found."""


@dataclass(frozen=True)
class Segment:
    """A stretch of a prompt."""

    start: int
    stop: int
    """Exclusive."""
    image: int | None
    """Which image of the prompt it is; None for text."""
    key: str
    """SHA-256 of the model and of everything up to `stop`."""
    keepable: bool
    """Whether the state at its end is kept: behind images and the preamble, where it is worth it."""
    answer: tuple[int, ...] = ()
    """The ids of an answer; empty for everything else."""


def split_prompt(
    prompt: Prompt, images: Sequence[bytes], *, model: bytes, preamble: Sequence[int] = ()
) -> list[Segment]:
    """The segments of a prompt whose images have these identities.

    `model` identifies the decoder and everything that decides about its states; `preamble` are the token ids with
    which prompts begin, if they do.
    """
    spans = [(span, number, False) for number, span in enumerate(prompt.images)]
    spans += [(span, -1, True) for span in prompt.answers]
    spans.sort(key=lambda entry: entry[0].start)
    ends: list[tuple[int, int | None, bool]] = []
    first = spans[0][0].start if spans else len(prompt.ids)
    if 0 < len(preamble) < first and prompt.ids[: len(preamble)] == tuple(preamble):
        ends.append((len(preamble), None, False))
    for span, number, written in spans:
        ends += [(span.start, None, False), (span.stop, None if written else number, written)]
    ends.append((len(prompt.ids), None, False))
    segments: list[Segment] = []
    start, key = 0, hashlib.sha256(model).hexdigest()
    for stop, image, written in ends:
        if stop == start:
            continue
        ids = prompt.ids[start:stop]
        key = extend_key(key, ids, b"" if image is None else images[image])
        keepable = stop >= _LEAST_TOKENS and (image is not None or stop == len(preamble))
        segments.append(Segment(start, stop, image, key, keepable, ids if written else ()))
        start = stop
    return segments


def extend_key(key: str, ids: Sequence[int], image: bytes = b"") -> str:
    """The key of a segment behind the one with this key."""
    chain = hashlib.sha256(f"{key} {len(ids)} {len(image)}\n".encode())
    chain.update(np.asarray(ids, "<i4").tobytes())
    chain.update(image)
    return chain.hexdigest()
