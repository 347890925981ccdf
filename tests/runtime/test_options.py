"""Options of an answer are declared once, and every way to ask has them."""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest

from ayaedge import AnswerKeywords, AyaVision, InvalidOptionError
from ayaedge.cli.options import SamplingFlags, TileFlags
from ayaedge.decoder.sampling import SamplingKeywords, SamplingOptions
from ayaedge.images.tile_budget import TileKeywords
from ayaedge.openai.options import parse_options
from ayaedge.options import AnswerOptions, answer_options
from command_line import commands

SAMPLING: dict[str, Any] = {"temperature": 0.5, "top_k": 3, "top_p": 0.5, "min_p": 0.25, "seed": 1}


def flags(name: str) -> set[str]:
    return {parameter.name for parameter in commands()[name].params}


def test_keywords_and_flags_of_sampling_are_the_fields_of_its_options() -> None:
    declared = get_type_hints(SamplingOptions)
    assert get_type_hints(SamplingKeywords) == get_type_hints(SamplingFlags) == declared
    assert SamplingFlags().keywords() == {one.name: one.default for one in fields(SamplingOptions)}
    for hint in get_type_hints(SamplingFlags, include_extras=True).values():
        assert get_origin(hint) is Annotated
        assert get_args(hint)[1].help
    assert set(SAMPLING) == set(declared)
    assert set(get_type_hints(TileKeywords)) == {one.name for one in fields(TileFlags)}


@pytest.mark.parametrize("command", ["ask", "chat"])
def test_every_option_of_sampling_and_tiles_is_a_flag(command: str) -> None:
    assert {*get_type_hints(SamplingKeywords), *get_type_hints(TileKeywords)} <= flags(command)


def test_every_option_of_sampling_reaches_the_sampler_from_everywhere() -> None:
    expected = SamplingOptions(**SAMPLING)
    assert answer_options(**SAMPLING).sampling == expected
    assert answer_options(**parse_options(SAMPLING).options).sampling == expected
    assert answer_options(**SamplingFlags(**SAMPLING).keywords()).sampling == expected


def test_without_keywords_every_option_has_its_default(demo_model: AyaVision) -> None:
    assert answer_options() == AnswerOptions()
    names = get_type_hints(AnswerKeywords)
    assert {"stop", "response_format", "grammar", "choices", "top_logprobs", "overflow", "max_tokens"} < set(
        names
    )
    with pytest.raises(TypeError, match="min_q"):
        demo_model.ask("x", min_q=1)  # type: ignore[call-arg]
    with pytest.raises(InvalidOptionError, match=r"min_p must be from 0 to 1, not 1\.5"):
        demo_model.create_chat_completion([{"role": "user", "content": "x"}], min_p=1.5)
