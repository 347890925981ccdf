"""Grammars and schemas that have exponentially many readings: answered, and cancelled, in bounded time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from ayaedge import AyaEdgeError, AyaVision, CancelledError

AT_ONCE = 10.0
WHOLE = 60.0
"""Seconds of 20 tokens on a busy machine; they take 0.1 on an idle one, and being cancelled takes less."""
LONG: dict[str, Any] = {"temperature": 50.0, "seed": 1}
"""Nonsense up to the end of the context."""
Branch = Callable[[int, dict[str, Any]], dict[str, Any]]


def doubling_gbnf(levels: int, form: str, last: str) -> str:
    """Rules each of which names the next several times."""
    rules = [form.format(here=f"a{n:02}", next=f"a{n + 1:02}") for n in range(levels)]
    return "\n".join(["root ::= a00", *rules, f"a{levels:02} ::= {last}", ""])


def referring_schema(branch: Branch) -> dict[str, Any]:
    """Eight levels of references, with four branches each."""
    levels: dict[str, Any] = {
        f"level{n}": {"anyOf": [branch(k, {"$ref": f"#/$defs/level{n + 1}"}) for k in range(4)]}
        for n in range(8)
    }
    schema = {"$defs": levels | {"level8": {"type": "string"}}, "$ref": "#/$defs/level0"}
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


FORMS: dict[str, dict[str, Any]] = {
    "857 characters of GBNF": {
        "grammar": doubling_gbnf(31, '{here} ::= {next} | {next} "x" {next}', '[a-z]+ " "')
    },
    "GBNF with many readings of a letter": {
        "grammar": doubling_gbnf(22, '{here} ::= {next} | "x" {next} | {next} "x"', '[a-w ]* "y"')
    },
    "objects that differ in a name": {
        "response_format": referring_schema(
            lambda k, inner: {"type": "object", "properties": {f"k{k}": inner, "z": {"type": "string"}},
                              "required": [f"k{k}"], "additionalProperties": False})
    },
    "arrays that differ in their length": {
        "response_format": referring_schema(
            lambda k, inner: {"type": "array", "items": inner, "minItems": k + 1, "maxItems": k + 2})
    },
}  # fmt: skip


def test_the_grammar_is_as_long_as_the_one_that_took_for_ever() -> None:
    assert 800 < len(FORMS["857 characters of GBNF"]["grammar"]) < 900


@pytest.mark.parametrize("form", FORMS)
def test_a_form_with_exponentially_many_readings_is_answered(demo_model: AyaVision, form: str) -> None:
    started = time.process_time()
    assert demo_model.ask("x", max_tokens=20, **LONG, **FORMS[form]).text
    assert time.process_time() - started < WHOLE


@pytest.mark.parametrize("form", FORMS)
def test_an_answer_of_such_a_form_is_cancelled_at_once(demo_model: AyaVision, form: str) -> None:
    stream = demo_model.stream("x", **LONG, **FORMS[form])
    next(stream)
    started = time.perf_counter()
    stream.close()
    assert time.perf_counter() - started < AT_ONCE
    with pytest.raises(CancelledError):
        _ = stream.answer
    assert demo_model.ask("x", max_tokens=2).usage.completion_tokens


@pytest.mark.parametrize("form", FORMS)
def test_such_a_form_is_cancelled_while_it_is_compiled(demo_model: AyaVision, form: str) -> None:
    handle = demo_model.submit("x", **LONG, **FORMS[form])
    while not handle._request._started:
        time.sleep(0)
    started = time.perf_counter()
    handle.cancel()
    with pytest.raises(CancelledError):
        handle.result(60)
    assert time.perf_counter() - started < AT_ONCE


def test_a_form_that_is_too_hard_is_refused_in_bounded_time(demo_model: AyaVision) -> None:
    grammar = doubling_gbnf(22, '{here} ::= {next} {next} | {next} | {next} "x"', "[a-z ]*")
    started = time.process_time()
    with pytest.raises(AyaEdgeError, match=r"cannot be followed|too ambiguous"):
        demo_model.ask("x", grammar=grammar, max_tokens=20)
    assert time.process_time() - started < WHOLE
