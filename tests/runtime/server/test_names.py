"""Errors call fields what the client called them, on every surface."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ayaedge import AyaEdgeError
from ayaedge.options import answer_options
from ayaedge.server.app import SURFACES
from ayaedge.server.openapi import document
from ayaedge.server.options import Limits
from ayaedge.server.refusals import RequestRefusedError, refusal_of
from served import asking

WRONG: tuple[Any, ...] = (3.5, "x", [], {"a": 1}, {"type": "a"}, -7, True, [3])
ANYTHING = {"model": "m", "prompt": "?", "input": "?", **asking("?")}


def fields_of(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every field of a body, as a path, and a body that is right but for it; the values to try stand for None."""
    schema = document()["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    right = {name: ANYTHING[name] for name in schema["properties"] if name in ANYTHING}
    for name, inner in schema["properties"].items():
        yield name, right
        for option in inner.get("properties", ()):
            yield f"{name}.{option}", right


def refusal(path: str, body: dict[str, Any]) -> RequestRefusedError | None:
    surface = SURFACES[path]()
    try:
        answer_options(**surface.asked(body, ()).within(Limits(tokens=3)).options)
    except AyaEdgeError as error:
        return refusal_of(error).named(surface.names(body))
    return None


@pytest.mark.parametrize("path", SURFACES)
def test_a_wrong_value_is_refused_by_the_path_that_its_client_knows(path: str) -> None:
    refused: set[str] = set()
    for field, right in fields_of(path):
        name, _, inner = field.partition(".")
        for value in WRONG:
            found = refusal(path, {**right, name: {inner: value} if inner else value})
            if found is not None:
                assert found.status == 400
                assert str(found).startswith(field), (field, value)
                refused.add(field)
    assert refused == {field for field, _ in fields_of(path)}


def test_openais_errors_have_the_path_as_a_field_of_its_own() -> None:
    for path, field in (
        ("/v1/chat/completions", "max_completion_tokens"),
        ("/v1/responses", "max_output_tokens"),
    ):
        body = {"messages": ANYTHING["messages"], "input": "?", field: -7}
        found = refusal(path, body)
        assert found is not None
        assert SURFACES[path]().fault(found, body)["error"]["param"] == field
