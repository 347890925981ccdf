"""What a caller gets: answers, their pieces as they come, and handles on those that are not finished."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ayaedge.checks import earlier_name
from ayaedge.errors import TruncatedError
from ayaedge.images.tile_budget import ImageCost
from ayaedge.text.text_stream import TokenLogprob

StopReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class Usage:
    """What a question and its answer amounted to."""

    prompt_tokens: int
    image_tokens: int
    """Those of the prompt that belong to images."""
    cached_tokens: int
    """Those of the prompt that were known and not computed again."""
    completion_tokens: int
    tiles: tuple[int, ...]
    """Tiles of each image, the thumbnail included."""
    images: tuple[ImageCost, ...]
    """Size, grid, tiles and tokens of each image."""
    dropped_turns: int = 0
    """Oldest questions, with their answers, that were left out so that the rest fits (`overflow="drop_oldest"`)."""

    pictures = earlier_name("pictures", "images")


@dataclass(frozen=True)
class Timings:
    """Wall-clock seconds, and what made the prefill faster."""

    vision: float
    """Reading and encoding the images."""
    prefill: float
    """Recalling what is known of the prompt, and computing the rest."""
    first_token: float
    """From the beginning of the work to the first token."""
    decode: float
    """All tokens after the first."""
    predicted: float | None
    """What `first_token` was expected to be; None where this machine was not measured with this bundle."""
    queued: float = 0.0
    """Waiting for other requests, before the work began."""
    acceleration: str = "off"
    """The kernel of ours that the prefill's products were left to (`DecoderOptions.acceleration`), or `off`."""
    acceleration_gain: float = 1.0
    """How many times as fast as llama.cpp's own these products were when the kernel was tried on this machine."""


@dataclass(frozen=True)
class Answer:
    """A finished answer; `str()` gives its text."""

    text: str
    usage: Usage
    timings: Timings
    stop_reason: StopReason
    """`stop`: the model ended its turn, or a stop string came; `length`: the limit on tokens or the context's end
    came first; `cancelled`: this is what had come until then."""
    ids: tuple[int, ...] = field(repr=False)
    """Every token that was generated, the hidden ones and the stop token included."""
    logprobs: tuple[TokenLogprob, ...] = field(default=(), repr=False)
    """One for each visible token, if `top_logprobs` asked for them."""
    response_format: Any = field(default=None, repr=False)
    """The form that was asked for."""
    stop_string: str | None = None
    """The string of `stop` that ended the answer, as it was given; None if something else did."""

    def __str__(self) -> str:
        return self.text

    def parse(self) -> Any:
        """The answer as what its JSON says, or as an instance of the pydantic model that was asked for.

        Raises TruncatedError if it was cut off, and ValueError if it is not JSON, because no form was asked for.
        """
        from ayaedge.grammar.schema import parse_answer

        if self.stop_reason != "stop":
            raise TruncatedError(
                f"the answer is incomplete ({self.stop_reason}, {len(self.ids)} tokens): allow more with max_tokens"
            )
        return parse_answer(self.text, self.response_format)

    def to_dict(self) -> dict[str, object]:
        """For JSON: everything but ids and log-probabilities."""
        parts = {name: getattr(self, name) for name in ("text", "stop_reason")}
        return {**parts, "usage": asdict(self.usage), "timings": asdict(self.timings)}
