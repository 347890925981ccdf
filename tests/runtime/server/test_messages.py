"""Anthropic's own client against the real server and the demonstration model."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ayaedge import AyaVision
from served import CELLS, HEART, QUESTION, asking, data_url, post, served

if TYPE_CHECKING:  # loading it takes two seconds, in each process that only collects
    from anthropic import Anthropic

SYSTEM: Any = [{"type": "text", "text": "Answer briefly.", "cache_control": {"type": "ephemeral"}}]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served(api_key="right") as server:
        yield server.url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[Anthropic]:
    from anthropic import Anthropic

    with Anthropic(base_url=url, api_key="right", max_retries=0) as opened:
        yield opened


def image(path: Path) -> dict[str, Any]:
    data = base64.b64encode(path.read_bytes()).decode()
    return {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}


def about(question: str, *images: Path) -> Any:
    return [{"role": "user", "content": [*map(image, images), {"type": "text", "text": question}]}]


def test_a_question_gets_the_answer_of_the_python_api(client: Anthropic, demo_model: AyaVision) -> None:
    messages = [
        *about(QUESTION, CELLS),
        {"role": "assistant", "content": "2675"},
        *about("And top right?", HEART),
    ]
    theirs = [
        {"role": "system", "content": "Answer briefly."},
        *asking(QUESTION, data_url(CELLS))["messages"],
        {"role": "assistant", "content": "2675"},
        *asking("And top right?", data_url(HEART))["messages"],
    ]
    expected = demo_model.create_chat_completion(theirs, max_tokens=30)
    found = client.messages.create(model="any", max_tokens=30, system=SYSTEM, messages=messages)
    assert found.content[0].text == expected["choices"][0]["message"]["content"]  # type: ignore[union-attr]
    usage, theirs_usage = found.usage, expected["usage"]
    assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == theirs_usage["prompt_tokens"]
    assert usage.output_tokens == theirs_usage["completion_tokens"]
    counted = client.messages.count_tokens(model="any", system=SYSTEM, messages=messages)
    assert counted.input_tokens == theirs_usage["prompt_tokens"]


def test_a_stream_is_the_same_answer(client: Anthropic) -> None:
    with client.messages.stream(model="any", max_tokens=20, messages=about(QUESTION, CELLS)) as stream:
        assert "".join(stream.text_stream) == "2675"
        final = stream.get_final_message()
    assert (final.stop_reason, final.role, final.model) == ("end_turn", "assistant", "any")
    assert final.usage.output_tokens > 0
    short = client.messages.create(model="any", max_tokens=1, messages=about(QUESTION, CELLS))
    assert short.stop_reason == "max_tokens"
    stopped = client.messages.create(
        model="any", max_tokens=9, stop_sequences=["7"], messages=about(QUESTION, CELLS)
    )
    assert stopped.content[0].text == "26"  # type: ignore[union-attr]
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "7")
    assert (final.stop_sequence, short.stop_sequence) == (None, None)


def test_an_asyncio_client_is_answered(url: str) -> None:
    from anthropic import AsyncAnthropic

    async def ask() -> Any:
        async with AsyncAnthropic(base_url=url, api_key="right", max_retries=0) as client:
            return await client.messages.create(model="any", max_tokens=9, messages=about(QUESTION, CELLS))

    assert asyncio.run(ask()).content[0].text == "2675"


def test_an_answer_follows_a_schema(client: Anthropic) -> None:
    schema = {"type": "object", "properties": {"shape": {"enum": ["star", "heart"]}}, "required": ["shape"]}
    form = {"format": {"type": "json_schema", "schema": schema}}
    found = client.messages.create(
        model="any", max_tokens=40, messages=about("What shape?", HEART), extra_body={"output_config": form}
    )
    assert set(json.loads(found.content[0].text)) == {"shape"}  # type: ignore[union-attr]


def shown(block: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [block]}]}


@pytest.mark.parametrize(
    ("options", "place"),
    [
        ({"stop_sequences": ["a", 3]}, "stop_sequences[1]"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages[0].role"),
        (shown({"type": "image", "source": 3}), "messages[0].content[0].source"),
        (shown({"type": "image", "source": {"type": "url", "url": "http://a/b"}}), "messages[0].content[0].image_url"),
        ({"system": [{"type": "image"}]}, "system[0]"),
        ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, "thinking"),
        ({"tools": [{"name": "a", "input_schema": {}}]}, "tools"),
        ({"output_config": {"format": {"type": "lark"}}}, "output_config.format"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_refused_in_anthropics_form(
    options: dict[str, Any], place: str, client: Anthropic
) -> None:
    from anthropic import BadRequestError

    with pytest.raises(BadRequestError) as caught:
        client.messages.create(**{"model": "any", "max_tokens": 5, "messages": about("?"), **options})
    assert caught.value.body == {
        "type": "error", "error": {"type": "invalid_request_error", "message": caught.value.body["error"]["message"]},  # type: ignore[index, call-overload]
    }  # fmt: skip
    assert caught.value.body["error"]["message"].startswith(place)  # type: ignore[index, call-overload]


def test_a_wrong_key_is_said_as_anthropics_clients_know_it(url: str) -> None:
    from anthropic import Anthropic, AuthenticationError

    with (
        Anthropic(base_url=url, api_key="wrong", max_retries=0) as client,
        pytest.raises(AuthenticationError),
    ):
        client.messages.create(model="any", max_tokens=5, messages=about("?"))
    body = {"messages": about("?")}
    assert post(url, "/v1/messages/count_tokens", body).json()["error"]["type"] == "authentication_error"
