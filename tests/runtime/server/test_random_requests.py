"""Whatever a request holds, the server answers or refuses, and goes on: Schemathesis, and bodies that are damaged."""

from __future__ import annotations

import copy
import json
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from hypothesis import HealthCheck, Phase, given, settings

from ayaedge.server.app import SURFACES
from ayaedge.server.openapi import BODIES, document
from ayaedge.server.options import Limits
from served import HEART, PATIENCE, asking, data_url, get, served

FAILED = 500
EXAMPLES = [3, pytest.param(300, marks=pytest.mark.slow)]
"""Of requests that fit the document, and as many of requests that do not."""


ANY = (
    None,
    True,
    -1,
    0,
    2**63,
    1e300,
    "",
    "x",
    "\0",
    "data:image/png;base64,AAAA",
    [],
    [None],
    {},
    {"type": "text"},
)
QUESTION: dict[str, Any] = {
    **asking("?", {"url": data_url(HEART)}), "prompt": "?", "input": "?", "system": "?", "stream": True, "stop": ["a"],
    "temperature": 1, "seed": 3, "options": {"num_predict": 3}, "format": "json", "text": {"format": {"type": "text"}},
    "response_format": {"type": "json_object"}, "stream_options": {"include_usage": True},
}  # fmt: skip


def damaged(chance: random.Random, value: Any) -> Any:
    """The same JSON with something else at a random place."""
    if not isinstance(value, (dict, list)) or not value or chance.random() < 0.1:
        return chance.choice(ANY)
    place = chance.choice(list(value) if isinstance(value, dict) else range(len(value)))
    changed = copy.copy(value)
    if chance.random() < 0.1:
        del changed[place]
    else:
        changed[place] = damaged(chance, value[place])
    return changed


@pytest.mark.parametrize("count", [30, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("path", SURFACES)
def test_damaged_bodies_are_answered_or_refused(path: str, count: int, url: str) -> None:
    chance, statuses = random.Random(0), Counter[int]()
    with requests.Session() as session:
        for _ in range(count):
            data = json.dumps(damaged(chance, QUESTION)).encode()
            if chance.random() < 0.1:
                cut = chance.randrange(len(data))
                data = data[:cut] + chance.randbytes(3) + data[cut + 3 :]
            statuses[session.post(url + path, data=data, timeout=PATIENCE).status_code] += 1
    assert set(statuses) <= {200, 400, 413}
    assert statuses[400] > 0


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served(limits=Limits(tokens=1, images=2)) as server:
        yield server.url


@pytest.mark.parametrize("examples", EXAMPLES)
@pytest.mark.parametrize("path", BODIES)
def test_no_request_makes_the_server_fail(path: str, examples: int, url: str) -> None:
    import schemathesis
    from schemathesis import GenerationMode

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
            def ask(case: Any) -> None:
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
