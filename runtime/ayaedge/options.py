"""What a question may set beside its text and pictures: checked once, in one place, for all ways to ask."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict, get_args

from ayaedge.checks import check_options, make_plain, one_of, shown, whole_number
from ayaedge.decoder.sampling import MOST_LOGPROBS, SamplingOptions
from ayaedge.images.tile_budget import TileChoice
from ayaedge.images.tiling import TilePolicy

Overflow = Literal["error", "drop_oldest"]


class AnswerKeywords(TypedDict, total=False):
    """The keywords of every way to ask, and what they stand for in `AnswerOptions`."""

    max_tokens: int | None
    max_tiles: int | None
    tiles: TilePolicy
    budget: float | None
    temperature: float
    top_p: float
    top_k: int
    seed: int | None
    stop: str | Sequence[str]
    response_format: Any
    grammar: str | None
    choices: Sequence[str] | None
    top_logprobs: int | None
    overflow: Overflow


@dataclass(frozen=True)
class AnswerOptions:
    """What a question may set; None means no limit but the context's."""

    max_tokens: int | None = None
    """Most tokens of the answer."""
    tiles: TileChoice = field(default_factory=TileChoice)
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    stop: tuple[str, ...] = ()
    """The answer ends before the first of these."""
    grammar: str | None = None
    """GBNF that the answer follows."""
    response_format: Any = None
    """From which the grammar was made."""
    top_logprobs: int | None = None
    """Keep the log-probability of each token, and of so many of the likeliest at its place."""
    overflow: Overflow = "error"
    """What happens to a conversation that does not fit into the context."""

    def __post_init__(self) -> None:
        make_plain(self)
        check_options(
            whole_number("max_tokens", self.max_tokens, least=1, optional=True),
            whole_number("top_logprobs", self.top_logprobs, least=0, most=MOST_LOGPROBS, optional=True),
            one_of("overflow", self.overflow, get_args(Overflow)),
        )


def answer_options(
    *,
    max_tokens: int | None = None,
    max_tiles: int | None = None,
    tiles: TilePolicy = "faithful",
    budget: float | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int | None = None,
    stop: str | Sequence[str] = (),
    response_format: Any = None,
    grammar: str | None = None,
    choices: Sequence[str] | None = None,
    top_logprobs: int | None = None,
    overflow: Overflow = "error",
) -> AnswerOptions:
    """The options that these keywords describe; InvalidOptionError for a senseless value."""
    if response_format is not None or grammar is not None or choices is not None:
        from ayaedge.grammar.schema import grammar_text

        grammar = grammar_text(response_format=response_format, grammar=grammar, choices=choices)
    return AnswerOptions(
        max_tokens=max_tokens,
        tiles=TileChoice(tiles, max_tiles, budget),
        sampling=SamplingOptions(temperature, top_p, top_k, seed),
        stop=_stop_strings(stop),
        grammar=grammar,
        response_format=response_format,
        top_logprobs=top_logprobs,
        overflow=overflow,
    )


def _stop_strings(stop: str | Sequence[str]) -> tuple[str, ...]:
    strings = [stop] if isinstance(stop, str) else stop
    valid = isinstance(strings, Sequence) and not isinstance(strings, (bytes, bytearray))
    if stop is None:
        return ()
    if not valid or not all(isinstance(text, str) and text for text in strings):
        check_options(f"stop must be a string or a list of strings, none of them empty, not {shown(stop)}")
    return tuple(unicodedata.normalize("NFC", text) for text in strings)
