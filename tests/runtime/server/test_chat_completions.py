"""OpenAI's own client against the real server and the demonstration model."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, Literal

import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError, OpenAI
from pydantic import BaseModel

from ayaedge import AyaVision
from served import CELLS, HEART, QUESTION, asking, chat, data_url, get, served

ASSISTANT: dict[str, Any] = {"role": "assistant", "content": "2675", "refusal": None, "annotations": []}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "an image as an object": asking(QUESTION, {"url": data_url(CELLS), "detail": "high"})["messages"],
    "an image as a string": asking("右下の形は何ですか？", data_url(CELLS))["messages"],
    "two images": asking("What shape is in the second picture?", data_url(CELLS), data_url(HEART))[
        "messages"
    ],
    "system and developer": [
        {"role": "system", "content": "Answer briefly."},
        {"role": "developer", "content": "Answer in one word."},
        *asking("What shape is at the top right?", {"url": data_url(CELLS)})["messages"],
    ],
    "several turns": [
        *asking(QUESTION, {"url": data_url(CELLS)})["messages"],
        ASSISTANT,
        {"role": "user", "content": "What shape is at the top right?", "name": "ada"},
    ],
}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served() as server:
        yield server.url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as opened:
        yield opened


def ask(client: OpenAI, messages: Any, **options: Any) -> Any:
    return client.chat.completions.create(model="any", messages=messages, **options)


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_conversation_is_answered_with_the_tokens_of_the_python_api(
    name: str, client: OpenAI, demo_model: AyaVision
) -> None:
    messages = CONVERSATIONS[name]
    expected = demo_model.create_chat_completion(messages, logprobs=True, max_tokens=20)["choices"][0]
    found = ask(client, messages, logprobs=True, max_completion_tokens=20).choices[0]
    assert found.message.content == expected["message"]["content"]
    assert found.finish_reason == expected["finish_reason"]
    tokens = [one["token"] for one in expected["logprobs"]["content"]]
    assert [one.token for one in found.logprobs.content] == tokens


def test_a_stream_is_the_same_answer_and_ends_with_its_usage(client: OpenAI) -> None:
    messages = CONVERSATIONS["an image as an object"]
    whole = ask(client, messages)
    chunks = list(ask(client, messages, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert text == whole.choices[0].message.content == "2675"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens > 0
    assert chunks[-1].tiles == whole.tiles == [7]
    assert chunks[-1].timings["prefill"] >= 0
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_asyncio_clients_are_answered_side_by_side(url: str) -> None:
    async def all_of() -> list[str | None]:
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            answers = [ask(client, CONVERSATIONS["an image as an object"]) for _ in range(3)]  # type: ignore[arg-type]
            stream = await ask(client, CONVERSATIONS["an image as a string"], stream=True)  # type: ignore[arg-type]
            texts = [chunk.choices[0].delta.content or "" async for chunk in stream]
            return [
                *(one.choices[0].message.content for one in await asyncio.gather(*answers)),
                "".join(texts),
            ]

    assert asyncio.run(all_of()) == ["2675"] * 3 + ["三角"]


class Cell(BaseModel):
    shape: Literal["star", "heart", "circle"]
    colour: Literal["red", "green"]


def test_an_answer_is_parsed_into_a_pydantic_model(client: OpenAI) -> None:
    found = client.chat.completions.parse(
        model="any", messages=CONVERSATIONS["an image as an object"], response_format=Cell, max_tokens=60
    )  # type: ignore[arg-type]
    assert isinstance(found.choices[0].message.parsed, Cell)
    free = ask(
        client, CONVERSATIONS["an image as an object"], response_format={"type": "json_object"}, max_tokens=4
    )
    assert free.choices[0].message.content.startswith("{")


def test_options_change_the_answer_as_in_the_python_api(client: OpenAI, demo_model: AyaVision) -> None:
    messages = [{"role": "user", "content": "Describe the picture."}]
    drawn: dict[str, Any] = {"temperature": 1.5, "top_p": 0.9, "seed": 3, "max_tokens": 12, "stop": ["\n"]}
    own: dict[str, Any] = {"top_k": 20, "min_p": 0.01}
    expected = demo_model.create_chat_completion(messages, **drawn, **own)["choices"][0]
    found = ask(client, messages, **drawn, extra_body=own).choices[0]
    assert found.message.content == expected["message"]["content"]
    few = ask(
        client, CONVERSATIONS["an image as an object"], extra_body={"tiles": "faithful", "max_tiles": 1}
    )
    assert few.tiles == [1]
    short = ask(client, CONVERSATIONS["an image as an object"], stop="7", logprobs=True, top_logprobs=2)
    assert short.choices[0].message.content == "26"
    assert len(short.choices[0].logprobs.content[0].top_logprobs) == 2


@pytest.mark.parametrize(
    ("options", "place"),
    [
        ({"n": 2}, "n"),
        ({"temperature": "hot"}, "temperature"),
        ({"stop": ["a", 3]}, "stop[1]"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"messages": 3}, "messages"),
        ({"messages": [{"role": "nobody", "content": ""}]}, "messages[0].role"),
        ({"messages": asking(3)["messages"]}, "messages[0].content[0].text"),  # type: ignore[arg-type]
        ({"messages": asking("?", {"url": 3})["messages"]}, "messages[0].content[0].image_url.url"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
)
def test_what_is_not_understood_is_refused_with_the_place_of_it(
    options: dict[str, Any], place: str, client: OpenAI
) -> None:
    with pytest.raises(BadRequestError) as caught:
        client.chat.completions.create(**{"model": "any", "messages": asking()["messages"], **options})
    assert caught.value.type == "invalid_request_error"
    assert caught.value.param == place


def test_fields_that_nobody_knows_change_nothing(client: OpenAI, url: str) -> None:
    message = {**asking()["messages"][0], "id": "m1", "metadata": {"a": 1}}
    message["content"] = [{**part, "annotation": 3} for part in message["content"]]
    plain = ask(client, asking()["messages"], max_tokens=5)
    body = {"messages": [message], "max_tokens": 5, "keep_alive": "5m", "stream_options": {"x": 1}}
    assert chat(url, body).json()["choices"][0]["message"]["content"] == plain.choices[0].message.content


def test_a_prompt_that_does_not_fit_is_refused_by_its_name(client: OpenAI) -> None:
    with pytest.raises(BadRequestError) as caught:
        ask(client, asking("seven " * 20_000)["messages"])
    assert caught.value.code == "context_length_exceeded"


def test_the_model_and_the_documents_are_there(client: OpenAI, url: str) -> None:
    (model,) = client.models.list().data
    assert client.models.retrieve(model.id).id == model.id == "demo"
    with pytest.raises(NotFoundError):
        client.models.retrieve("another")
    paths = get(url, "/openapi.json").json()["paths"]
    assert {"/v1/chat/completions", "/v1/models", "/health", "/metrics"} <= set(paths)
    assert get(url, "/v1/nothing").json()["error"]["type"] == "not_found_error"
    assert get(url, "/v1/chat/completions").status == 405


def test_figures_say_how_many_tokens_there_were_and_nothing_of_the_text(client: OpenAI, url: str) -> None:
    def prompt_tokens() -> float:
        lines = get(url, "/metrics").body.decode().splitlines()
        (line,) = (one for one in lines if one.startswith('ayaedge_tokens_total{kind="prompt"}'))
        return float(line.split()[-1])

    ask(client, asking()["messages"], max_tokens=2)
    before = prompt_tokens()
    answer = ask(client, asking()["messages"], max_tokens=2)
    assert prompt_tokens() == before + answer.usage.prompt_tokens
    assert QUESTION not in get(url, "/metrics").body.decode()
