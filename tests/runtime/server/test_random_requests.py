"""Schemathesis against the OpenAPI document: whatever a request holds, the server answers or refuses, and goes on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode

from ayaedge.server.openapi import BODIES, document
from ayaedge.server.options import Limits
from served import PATIENCE, get, served

FAILED = 500
EXAMPLES = [3, pytest.param(5000, marks=pytest.mark.slow)]
"""Of requests that fit the document, and as many of requests that do not."""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served(limits=Limits(tokens=1, images=2)) as server:
        yield server.url


@pytest.mark.parametrize("examples", EXAMPLES)
@pytest.mark.parametrize("path", BODIES)
def test_no_request_makes_the_server_fail(path: str, examples: int, url: str) -> None:
    operation = schemathesis.openapi.from_dict(document())[path]["POST"]
    statuses: set[int] = set()
    how = settings(
        max_examples=examples, deadline=None, database=None, derandomize=examples < FAILED, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    with requests.Session() as session:
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):

            @how
            @given(operation.as_strategy(generation_mode=mode))
            def ask(case: schemathesis.Case) -> None:
                reply = case.call(base_url=url, session=session, timeout=PATIENCE)
                statuses.add(reply.status_code)
                assert reply.status_code < FAILED, reply.text

            ask()
    assert statuses <= {200, 400, 404, 413}
    assert 400 in statuses or path == "/api/show"  # which looks at nothing
    assert get(url, "/health").json()["requests"] == 0


def test_every_reading_path_of_the_document_is_there(url: str) -> None:
    paths = document()["paths"]
    for path, operations in paths.items():
        if "get" in operations:
            assert get(url, path.replace("{name}", "demo")).status == 200, path
    assert len(paths) > len(BODIES)
