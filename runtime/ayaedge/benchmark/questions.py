"""What a benchmark asks, whatever the files that it came in are like."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """One row of a data set."""

    key: str
    """Unique in its data set: `deu_Latn/17`."""
    language: str
    """As the data set calls it."""
    task: str
    """As the data set calls it; where it does not say, whether there is one picture, or several, or none."""
    text: str
    images: tuple[bytes, ...] = ()
    """The files of its pictures, in their order."""
    reference: str | None = None
    """An answer that is known to be good."""
    options: tuple[str, ...] = ()
    """What there is to choose from."""
    right: int | None = None
    """Which of the options is right."""
