"""What a question may set beside its text and images: checked once, in one place, for all ways to ask."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from ayaedge.checks import check_options, make_plain, one_of, shown, whole_number
from ayaedge.decoder.sampling import MOST_LOGPROBS, SamplingKeywords, SamplingOptions
from ayaedge.images.tile_budget import TileChoice, TileKeywords

if TYPE_CHECKING:
    from typing_extensions import Unpack

Overflow = Literal["error", "drop_oldest"]


class AnswerKeywords(SamplingKeywords, TileKeywords, total=False):
    """The keywords of every way to ask, and what they stand for in `AnswerOptions`."""

    max_tokens: int | None
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
    """What the answer follows, in llguidance's notation: `grammar.schema.grammar_text` writes it."""
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

    def answer_room(self, most: int) -> int:
        """Tokens of the answer for which there should be memory before it begins: not more than `most`."""
        return most if self.max_tokens is None else min(self.max_tokens, most)


def answer_options(**keywords: Unpack[AnswerKeywords]) -> AnswerOptions:
    """The options that these keywords describe; InvalidOptionError for a value that is invalid."""
    given: dict[str, Any] = {**keywords}
    sampling = {name: given.pop(name) for name in SamplingKeywords.__annotations__ if name in given}
    tiles = TileChoice(
        given.pop("tiles", "faithful"), given.pop("max_tiles", None), given.pop("budget", None)
    )
    choices, form, grammar = given.pop("choices", None), given.get("response_format"), given.get("grammar")
    if form is not None or grammar is not None or choices is not None:
        from ayaedge.grammar.schema import grammar_text

        given["grammar"] = grammar_text(response_format=form, grammar=grammar, choices=choices)
    stop = _stop_strings(given.pop("stop", ()))
    return AnswerOptions(tiles=tiles, sampling=SamplingOptions(**sampling), stop=stop, **given)


def _stop_strings(stop: str | Sequence[str]) -> tuple[str, ...]:
    strings = [stop] if isinstance(stop, str) else stop
    valid = isinstance(strings, Sequence) and not isinstance(strings, (bytes, bytearray))
    if stop is None:
        return ()
    if not valid or not all(isinstance(text, str) and text for text in strings):
        check_options(f"stop must be a string or a list of strings, none of them empty, not {shown(stop)}")
    return tuple(unicodedata.normalize("NFC", text) for text in strings)
