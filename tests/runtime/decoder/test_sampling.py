from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ayaedge import AyaEdgeError, AyaVision, DecoderOptions, InvalidOptionError, TruncatedError
from ayaedge.decoder.decoder import Decoder
from ayaedge.decoder.sampling import Sampler, SamplingOptions, token_logprob
from ayaedge.grammar.matcher import Matcher
from ayaedge.grammar.schema import grammar_text
from random_schema import random_schema

SIX = Path(__file__).parents[3] / "examples" / "pictures" / "six-cells.png"
QUESTION = "What number is at the bottom left?"


@pytest.fixture
def decoder(demo_model: AyaVision) -> Decoder:
    """Holds a few tokens; nothing else asks while a test runs."""
    decoder = demo_model._engine.decoder
    demo_model._engine.prefix.forget()
    decoder.clear()
    decoder.decode_tokens(decoder.vocabulary.tokenize("a picture with a red"))
    return decoder


@pytest.fixture
def grammar(demo_model: AyaVision) -> Callable[[str], Matcher]:
    forms = demo_model._engine._forms
    return lambda text: Matcher(str(grammar_text(grammar=text)), forms)


def test_temperature_zero_takes_the_likeliest(decoder: Decoder) -> None:
    with Sampler(SamplingOptions()) as sampler:
        assert sampler.sample(decoder) == int(decoder.logits().argmax())


def test_draws_follow_the_distribution(decoder: Decoder) -> None:
    logits = decoder.logits().astype(np.float64)
    probability = np.exp(logits - logits.max())
    probability /= probability.sum()
    with Sampler(SamplingOptions(temperature=1.0, seed=5)) as sampler:
        drawn = [sampler.sample(decoder) for _ in range(4000)]
    for token in np.argsort(-probability)[:5]:
        expected = probability[token] * 4000
        assert abs(drawn.count(int(token)) - expected) < 5 * math.sqrt(expected) + 1


def test_min_p_keeps_what_is_likely_enough_before_temperature(decoder: Decoder) -> None:
    logits = decoder.logits()
    drawn: dict[float, set[int]] = {}
    for share in (0.0, 0.05, 1.0):
        with Sampler(SamplingOptions(temperature=5.0, min_p=share, seed=5)) as sampler:
            drawn[share] = {sampler.sample(decoder) for _ in range(500)}
        kept = logits >= logits.max() + (math.log(share) if share else -np.inf) - 1e-4
        assert kept[list(drawn[share])].all()
    assert len(drawn[0.0]) > len(drawn[0.05]) > len(drawn[1.0]) == 1


def test_a_grammars_draws_are_the_distribution_under_it(
    decoder: Decoder, grammar: Callable[[str], Matcher]
) -> None:
    """Chosen first, tested then: a rejected draw is replaced by one among all that is allowed."""
    digits = [decoder.vocabulary.tokenize(str(d))[0] for d in range(10)]
    drawn = []
    for seed in range(600):
        rules = grammar("root ::= [0-9]")
        rules._begun = True
        with Sampler(SamplingOptions(temperature=1.0, seed=seed), rules) as sampler:
            drawn.append(sampler.sample(decoder))
    assert set(drawn) <= set(digits)
    logits = decoder.logits()[digits].astype(np.float64)
    probability = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    for digit, share in zip(digits, probability, strict=True):
        assert abs(drawn.count(digit) - 600 * share) < 5 * math.sqrt(600 * share) + 1


def test_under_a_grammar_the_likeliest_allowed_token_is_taken(
    decoder: Decoder, grammar: Callable[[str], Matcher]
) -> None:
    logits = decoder.logits()
    for text in ("root ::= [0-9]+", 'root ::= "{" [a-z]* "}"', "root ::= [あ-ん]+", 'root ::= "zebra"'):
        rules = grammar(text)
        rules._begun = True
        allowed = np.flatnonzero(rules.allowed())
        with Sampler(SamplingOptions(), rules) as sampler:
            assert sampler.sample(decoder) == allowed[logits[allowed].argmax()]


class NothingAllowed:
    """A grammar that demands what no token spells."""

    def take(self, token: int) -> bool:
        return False

    def allowed(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        return np.zeros(2048, bool)

    def forced(self) -> list[int]:
        return []


def test_a_grammar_that_no_token_can_follow_is_an_error(decoder: Decoder) -> None:
    with (
        Sampler(SamplingOptions(), NothingAllowed()) as sampler,
        pytest.raises(AyaEdgeError, match="cannot spell"),
    ):
        sampler.sample(decoder)


INVOICE = {
    "type": "object",
    "properties": {"invoice number": {"enum": ["abcdef", "xyz"]}, "total amount": {"const": 12345}},
    "required": ["invoice number", "total amount"],
}


def test_tokens_that_must_come_are_decoded_in_one_step(
    demo_model: AyaVision, monkeypatch: pytest.MonkeyPatch
) -> None:
    form, steps = {"type": "json_schema", "json_schema": {"name": "x", "schema": INVOICE}}, []
    decode = Decoder._decode

    def counted(self: Decoder, count: int, **rest: Any) -> None:
        steps.append(count)
        decode(self, count, **rest)

    demo_model.ask(QUESTION, max_tokens=1)  # the prompt is known from here on
    monkeypatch.setattr(Decoder, "_decode", counted)
    answer = demo_model.ask(QUESTION, response_format=form)
    assert answer.stop_reason == "stop"
    assert len(steps) < 0.7 * len(answer.ids)
    steps.clear()
    alone = demo_model.ask(QUESTION, response_format=form, top_logprobs=1)
    assert len(steps) >= len(alone.ids) - 1  # each has its logits
    assert b"".join(entry.data for entry in alone.logprobs).decode() == alone.text
    assert set(answer.parse()) == set(alone.parse()) == {"invoice number", "total amount"}


@pytest.mark.parametrize("most", range(1, 25))
def test_an_answer_that_ends_among_demanded_tokens_is_the_beginning_of_the_whole(
    demo_model: AyaVision, most: int
) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": INVOICE}}
    whole = demo_model.ask(QUESTION, response_format=form)
    part = demo_model.ask(QUESTION, response_format=form, max_tokens=most)
    assert part.ids == whole.ids[:most]
    assert demo_model.ask(QUESTION, max_tokens=8).ids == demo_model.ask(QUESTION, max_tokens=8).ids


@pytest.mark.parametrize(
    "text", ["", "root ::= (", "other ::= [a]", "root ::= missing", "::=", "root ::= [z-a]{3,1}"]
)
def test_a_faulty_grammar_is_refused(demo_model: AyaVision, text: str) -> None:
    with pytest.raises(InvalidOptionError):
        demo_model.ask("x", grammar=text, max_tokens=3)
    assert demo_model.ask("x", max_tokens=1).ids


def test_choices_in_any_script(demo_model: AyaVision) -> None:
    for choices in (
        ["yes", "no"],
        ["はい", "いいえ"],
        ["نعم", "لا"],
        ["a", "ab", "abc"],
        ["👍🏽", "👎"],
        ['"', "\\n"],
    ):
        answer = demo_model.ask(QUESTION, choices=choices)
        assert answer.text in choices
        assert answer.stop_reason == "stop"


def test_a_truncated_object_says_so(demo_model: AyaVision) -> None:
    answer = demo_model.ask(QUESTION, response_format={"type": "json_object"}, max_tokens=2)
    assert answer.stop_reason == "length"
    with pytest.raises(TruncatedError, match="max_tokens"):
        answer.parse()


def test_a_schema_gives_an_object(demo_model: AyaVision) -> None:
    schema = {
        "type": "object",
        "properties": {
            "number": {"type": "integer", "minimum": 0, "maximum": 9999},
            "colour": {"enum": ["red", "blue"]},
        },
        "required": ["number", "colour"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "cell", "schema": schema}}
    found = demo_model.ask(QUESTION, response_format=form).parse()
    assert set(found) == {"number", "colour"}
    assert 0 <= found["number"] <= 9999


def test_a_pydantic_model_gives_its_instance(demo_model: AyaVision) -> None:
    pydantic = pytest.importorskip("pydantic")
    cell: Any = pydantic.create_model("Cell", number=(int, pydantic.Field(ge=0, le=99)), seen=(bool, ...))
    found = demo_model.ask(QUESTION, response_format=cell).parse()
    assert isinstance(found, cell)
    assert 0 <= found.number <= 99


def test_log_probabilities_are_those_of_the_logits(decoder: Decoder) -> None:
    logits = decoder.logits()
    entry = token_logprob(logits, 300, 4, decoder.vocabulary.piece)
    values = logits.astype(np.float64)
    expected = values - np.log(np.exp(values - values.max()).sum()) - values.max()
    assert entry.logprob == pytest.approx(expected[300])
    assert [other.id for other in entry.top] == list(np.argsort(-values, kind="stable")[:4])
    assert [other.logprob for other in entry.top] == pytest.approx(sorted(expected)[::-1][:4])
    assert entry.data == decoder.vocabulary.piece(300)
    assert token_logprob(logits, 300, 0, decoder.vocabulary.piece).top == ()


def test_each_visible_token_has_its_log_probability(demo_model: AyaVision) -> None:
    answer = demo_model.ask(QUESTION, top_logprobs=2)
    assert b"".join(entry.data for entry in answer.logprobs).decode() == answer.text
    assert all(entry.id == entry.top[0].id for entry in answer.logprobs)  # greedy takes the likeliest
    assert all(entry.logprob <= 0 for entry in answer.logprobs)
    assert demo_model.ask(QUESTION).logprobs == ()


def test_log_probabilities_do_not_depend_on_the_temperature(demo_model: AyaVision) -> None:
    plain = demo_model.ask(QUESTION, top_logprobs=1, max_tokens=3)
    drawn = demo_model.ask(QUESTION, top_logprobs=1, max_tokens=3, temperature=1e-3, seed=1)
    assert drawn.ids == plain.ids
    assert drawn.logprobs == plain.logprobs


@pytest.mark.parametrize("stop", ["at", ["xyz", "at"], "c"])
def test_a_stop_string_ends_an_answer_and_is_not_shown(demo_model: AyaVision, stop: Any) -> None:
    whole = demo_model.ask(
        "Say something", max_tokens=40, temperature=9.0, seed=8, grammar="root ::= [a-z ]+"
    )
    assert "a" in whole.text
    first = whole.text[4:6]
    answer = demo_model.ask(
        "Say something", max_tokens=40, temperature=9.0, seed=8, grammar="root ::= [a-z ]+", stop=[first]
    )
    assert answer.text == whole.text[: whole.text.index(first)]
    assert answer.stop_reason == "stop"


@pytest.mark.parametrize("stop", ["", [""], ["a", ""], [5], 5, b"x", {"a": 1}])
def test_senseless_stop_strings_are_refused(demo_model: AyaVision, stop: Any) -> None:
    with pytest.raises(InvalidOptionError, match="stop"):
        demo_model.ask("x", stop=stop)


@pytest.mark.parametrize(
    "options",
    [
        {"top_logprobs": 21}, {"top_logprobs": -1}, {"overflow": "x"}, {"choices": []}, {"choices": "yes"},
        {"grammar": 5}, {"response_format": {"type": "xml"}}, {"choices": ["a"], "grammar": "root ::= [a]"},
        {"temperature": True}, {"temperature": 10**400}, {"seed": 2**32 - 1}, {"top_p": 10**400},
    ],
)  # fmt: skip
def test_senseless_forms_are_refused_before_any_work(demo_model: AyaVision, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidOptionError):
        demo_model.stream("x", **options)


def test_a_tiny_temperature_is_none(demo_model: AyaVision) -> None:
    expected = demo_model.ask(QUESTION, images=[SIX]).ids
    for temperature in (1e-45, 1e-38, 1e-30, 1e-7):
        assert demo_model.ask(QUESTION, images=[SIX], temperature=temperature, seed=1).ids == expected


def test_forms_and_log_probabilities_also_where_all_logits_are_kept() -> None:
    with AyaVision.load(decoder=DecoderOptions(all_logits=True, batch_size=64)) as model:
        assert model.ask(QUESTION, choices=["yes", "no"]).text in ("yes", "no")
        assert model.ask(QUESTION, top_logprobs=1, max_tokens=3).logprobs


SCHEMAS = 300


def test_every_answer_under_a_random_schema_is_valid(demo_model: AyaVision) -> None:
    """The small model knows no JSON at all, so each token is up to the grammar."""
    jsonschema = pytest.importorskip("jsonschema")
    chance, finished, refused, cut = random.Random(11), 0, 0, 0
    while finished + cut < SCHEMAS:
        schema = random_schema(chance, bounded=True)
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        options: dict[str, Any] = {"temperature": chance.choice([0.0, 1.0]), "seed": chance.randrange(1000)}
        images = [SIX] if chance.random() < 0.3 else []
        try:
            answer = demo_model.ask(QUESTION, images=images, response_format=form, max_tokens=60, **options)
        except InvalidOptionError as error:  # a keyword that cannot be honoured is said
            assert "schema" in str(error)
            refused += 1
            continue
        if answer.stop_reason == "length":  # reported, and not taken for an answer
            cut += 1
            with pytest.raises(TruncatedError):
                answer.parse()
            continue
        jsonschema.Draft202012Validator(schema).validate(answer.parse())
        finished += 1
    assert finished > SCHEMAS // 2
    assert refused < SCHEMAS
