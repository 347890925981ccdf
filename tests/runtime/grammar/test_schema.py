from __future__ import annotations

import enum
import json
import random
import unicodedata
import uuid
from collections.abc import Iterator
from datetime import date, datetime
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ayaedge import InvalidOptionError
from ayaedge.decoder.vocabulary import Vocabulary
from ayaedge.grammar.schema import grammar_text, parse_answer
from grammar_machine import Machine, demo_machine, of_schema

OBJECT = {"type": "json_object"}


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with demo_machine() as found:
        yield found


@settings(deadline=None, max_examples=100)
@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1), min_size=1
    )
)
def test_any_choices_can_be_given_and_nothing_else(machine: Machine, choices: list[str]) -> None:
    grammar = grammar_text(choices=choices)
    assert grammar is not None
    expected = {unicodedata.normalize("NFC", choice) for choice in choices}
    assert all(machine.accepts(grammar, choice) for choice in expected)
    assert not machine.accepts(grammar, max(expected, key=len) + "x")
    assert machine.accepts(grammar, choices[0][:-1]) == (choices[0][:-1] in expected)
    assert machine.walk(grammar, random.Random(0), 5) in expected


def test_choices_are_composed_and_may_begin_with_one_another(machine: Machine) -> None:
    grammar = grammar_text(choices=["yes", "yes, but", "e\u0301", "हाँ", "yes"])
    assert grammar is not None
    assert all(machine.accepts(grammar, text) for text in ("yes", "yes, but", "é", "हाँ"))
    assert not any(machine.accepts(grammar, text) for text in ("", "ye", "yes,", "e\u0301", "no"))


@pytest.mark.parametrize(
    "choices",
    ["yes", [], [""], ["a", 1], ["a\0"], ["\ud800"], b"ab", {"a": 1}, 5, ["x"] * 20_000,
     ["x" * 200_000]],
)  # fmt: skip
def test_choices_that_make_no_sense_are_refused(choices: Any) -> None:
    with pytest.raises(InvalidOptionError, match=r"^choices"):
        grammar_text(choices=choices)


def test_only_one_form_can_be_asked_for() -> None:
    with pytest.raises(InvalidOptionError, match="only one of response_format and choices"):
        grammar_text(response_format=OBJECT, choices=["a"])
    assert grammar_text() is None
    assert grammar_text(response_format={"type": "text"}) is None


@pytest.mark.parametrize(
    "form",
    [1, "json", [], {}, {"type": "xml"}, {"type": []}, {"type": "json_schema"},
     {"type": "json_schema", "json_schema": 1}, {"type": "json_object", "schema": {}},
     {"type": "json_schema", "json_schema": {"name": "x"}}, int, object()],
)  # fmt: skip
def test_a_response_format_that_makes_no_sense_is_refused(form: Any) -> None:
    with pytest.raises(InvalidOptionError, match="response_format"):
        grammar_text(response_format=form)


def test_a_json_object_is_any_object(machine: Machine) -> None:
    grammar = grammar_text(response_format=OBJECT)
    assert grammar is not None
    for text in ("{}", '{"a": [1, {"b": null}], "ह": "x"}', '{"a": true}'):
        assert machine.accepts(grammar, text)
        assert parse_answer(text, OBJECT) == json.loads(text)
    for text in ("[]", "1", '{"a"}', '{"a": 1, }', "{   }", "{ }", '{\n  "a": true\n}'):
        assert not machine.accepts(grammar, text)
    for seed in range(10):
        assert isinstance(json.loads(machine.walk(grammar, random.Random(seed), 10 * seed)), dict)


def test_the_schema_may_stand_as_openai_writes_it() -> None:
    schema = {"type": "null"}
    wrapped = {
        "type": "json_schema",
        "json_schema": {"name": "n", "description": "d", "strict": True, "schema": schema},
    }
    assert grammar_text(response_format=wrapped) == of_schema(schema)


def test_an_answer_that_is_cut_off_or_too_deep_is_a_value_error() -> None:
    for text in ("", '{"a":', "[" * 100_000):
        with pytest.raises(ValueError, match=r"line 1|too deep"):
            parse_answer(text, OBJECT)


def test_a_pydantic_model_gives_grammar_and_value(machine: Machine) -> None:
    pydantic = pytest.importorskip("pydantic")

    class Colour(enum.Enum):
        RED = "red"
        BLUE = "blue"

    class Cat(pydantic.BaseModel):  # type: ignore[name-defined, misc]
        kind: Literal["cat"]
        lives: Annotated[int, pydantic.Field(ge=0, le=9)] = 9

    class Dog(pydantic.BaseModel):  # type: ignore[name-defined, misc]
        kind: Literal["dog"]
        friends: list[Dog | None] = pydantic.Field(default_factory=list)

    class Everything(pydantic.BaseModel):  # type: ignore[name-defined, misc]
        """What models ask for."""

        pet: Cat | Dog = pydantic.Field(discriminator="kind")
        name: Annotated[str, pydantic.Field(min_length=1, max_length=20, description="whose")]
        colour: Colour
        share: Annotated[float, pydantic.Field(gt=0, lt=1)]
        day: date
        moment: datetime
        number: uuid.UUID
        pair: tuple[int, bool]
        counts: dict[str, int]
        code: Annotated[str, pydantic.Field(pattern=r"^[A-Z]{3}-\d{2}$")]
        note: str | None = None
        page: pydantic.HttpUrl | None = None
        anything: Any = None

    grammar = grammar_text(response_format=Everything)
    assert grammar is not None
    wanted = Everything(
        pet=Dog(kind="dog", friends=[None, Dog(kind="dog")]), name="हिं", colour=Colour.RED, share=0.5,
        day=date(2024, 2, 29), moment=datetime.fromisoformat("2024-02-29T12:00:00+00:00"), number=uuid.UUID(int=7),
        pair=(1, True), counts={"a": 1}, code="ABC-12",
    )  # fmt: skip
    text = json.dumps(wanted.model_dump(mode="json"), ensure_ascii=False)
    assert machine.accepts(grammar, text), text
    assert parse_answer(text, Everything) == wanted
    with pytest.raises(ValueError, match="name"):
        parse_answer("{}", Everything)
    narrow = grammar_text(response_format=Cat)
    assert narrow is not None
    for seed in range(20):
        assert isinstance(parse_answer(machine.walk(narrow, random.Random(seed), 20), Cat), Cat)


def test_a_set_is_refused_with_its_place_and_what_to_use_instead(machine: Machine) -> None:
    pydantic = pytest.importorskip("pydantic")

    class WithSet(pydantic.BaseModel):  # type: ignore[name-defined, misc]
        tags: set[str]

    class WithList(pydantic.BaseModel):  # type: ignore[name-defined, misc]
        tags: Annotated[list[str], pydantic.Field(max_length=3)]

    expected = r"#/properties/tags/uniqueItems: .* use a list instead of a set, with maxItems"
    with pytest.raises(InvalidOptionError, match=expected):
        grammar_text(response_format=WithSet)
    grammar = grammar_text(response_format=WithList)
    assert grammar is not None
    assert machine.accepts(grammar, '{"tags": ["a", "a"]}')


def test_a_model_without_a_schema_is_refused() -> None:
    pydantic = pytest.importorskip("pydantic")

    class Odd(pydantic.BaseModel):  # type: ignore[name-defined, misc]
        model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)
        thing: Vocabulary

    with pytest.raises(InvalidOptionError, match="Odd has no JSON schema"):
        grammar_text(response_format=Odd)
