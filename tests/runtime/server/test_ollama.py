"""Ollama's own client against the real server and the demonstration model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from ollama import AsyncClient, Client, ResponseError

from ayaedge import AyaVision
from served import CELLS, HEART, QUESTION, asking, data_url, post, served

CONVERSATION: list[dict[str, Any]] = [
    {"role": "system", "content": "Answer briefly."},
    {"role": "user", "content": QUESTION, "images": [CELLS]},
    {"role": "assistant", "content": "2675"},
    {"role": "user", "content": "And what is this?", "images": [HEART]},
]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served() as server:
        yield server.url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[Client]:
    with Client(host=url) as opened:
        yield opened


def test_a_conversation_gets_the_answer_of_the_python_api(client: Client, demo_model: AyaVision) -> None:
    theirs = [
        CONVERSATION[0],
        *asking(QUESTION, data_url(CELLS))["messages"],
        CONVERSATION[2],
        *asking("And what is this?", data_url(HEART))["messages"],
    ]
    expected = demo_model.create_chat_completion(theirs, max_tokens=20)
    found = client.chat(model="demo", messages=CONVERSATION, options={"num_predict": 20, "num_ctx": 4096})
    assert found.message.content == expected["choices"][0]["message"]["content"]
    assert found.prompt_eval_count == expected["usage"]["prompt_tokens"]
    assert found.eval_count == expected["usage"]["completion_tokens"]
    assert (found.total_duration or 0) >= (found.eval_duration or 0) > 0


def test_a_stream_is_the_same_answer(client: Client) -> None:
    messages = [{"role": "user", "content": QUESTION, "images": [CELLS]}]
    parts = list(client.chat(model="demo", messages=messages, stream=True))
    assert "".join(part.message.content or "" for part in parts) == "2675"
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert parts[-1].done_reason == "stop"


def test_one_question_is_generated_whole_and_as_a_stream(client: Client, url: str) -> None:
    asked: dict[str, Any] = {
        "model": "demo",
        "prompt": QUESTION,
        "images": [CELLS],
        "system": "Answer briefly.",
    }
    whole = client.generate(**asked, options={"stop": ["\n"], "num_predict": -1})
    assert whole.response == "2675"
    assert "".join(part.response or "" for part in client.generate(**asked, stream=True)) == "2675"
    lines = post(url, "/api/generate", {"prompt": "?", "options": {"num_predict": 5}}).body.splitlines()
    assert len(lines) > 2  # streams unless it is told not to
    assert [json.loads(line)["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    assert json.loads(lines[-1])["done_reason"] == "length"


def test_an_answer_follows_a_schema_or_is_json(client: Client) -> None:
    schema = {"type": "object", "properties": {"shape": {"enum": ["star", "heart"]}}, "required": ["shape"]}
    messages = [{"role": "user", "content": "What shape?", "images": [HEART]}]
    assert set(
        json.loads(client.chat(model="demo", messages=messages, format=schema).message.content or "")
    ) == {"shape"}
    free = client.chat(model="demo", messages=messages, format="json", options={"num_predict": 3})
    assert (free.message.content or "").startswith("{")


def test_an_asyncio_client_is_answered(url: str) -> None:
    async def ask() -> Any:
        async with AsyncClient(host=url) as client:
            return await client.generate(model="demo", prompt=QUESTION, images=[CELLS])

    assert asyncio.run(ask()).response == "2675"


def test_the_model_is_listed_and_shown(client: Client, url: str) -> None:
    (listed,) = client.list().models
    assert listed.model == "demo"
    assert listed.details is not None
    assert listed.details.family
    shown = client.show("demo")
    assert "vision" in (shown.capabilities or [])
    assert any(name.endswith("context_length") for name in shown.modelinfo or {})


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"think": True}, "think"), ({"format": 3}, "format"), ({"options": {"temperature": "hot"}}, "temperature"),
        ({"options": []}, "options"), ({"messages": [{"role": "user", "content": "?", "images": [3]}]}, "images"),
        ({"messages": [{"role": "user", "content": "?", "images": ["bm90IGFuIGltYWdl"]}]}, "image"),
        ({"tools": [{"type": "function"}]}, "tools"), ({"stream": "yes"}, "stream"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_refused(
    options: dict[str, Any], word: str, url: str, client: Client
) -> None:
    refused = post(
        url, "/api/chat", {"model": "demo", "messages": [{"role": "user", "content": "?"}], **options}
    )
    assert refused.status == 400
    assert word in refused.json()["error"]


def test_an_error_is_one_that_the_client_knows(client: Client) -> None:
    with pytest.raises(ResponseError, match="prompt is empty") as caught:
        client.generate(model="demo", prompt="")
    assert caught.value.status_code == 400
