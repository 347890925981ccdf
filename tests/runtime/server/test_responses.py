"""OpenAI's own client for responses against the real server and the demonstration model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from openai import BadRequestError, OpenAI
from pydantic import BaseModel

from ayaedge import AyaVision
from served import CELLS, HEART, QUESTION, asking, data_url, served


@pytest.fixture(scope="module")
def client() -> Iterator[OpenAI]:
    with served() as server, OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as opened:
        yield opened


def about(question: str, image: Path) -> Any:
    parts = [{"type": "input_image", "image_url": data_url(image), "detail": "auto"}]
    return {"role": "user", "content": [*parts, {"type": "input_text", "text": question}]}


def test_a_conversation_gets_the_answer_of_the_python_api(client: OpenAI, demo_model: AyaVision) -> None:
    first = client.responses.create(model="any", input=[about(QUESTION, CELLS)])
    assert (first.output_text, first.status) == ("2675", "completed")
    history = [about(QUESTION, CELLS), first.output[0].model_dump(), about("What is this?", HEART)]
    theirs = [
        {"role": "system", "content": "Answer briefly."},
        *asking(QUESTION, data_url(CELLS))["messages"],
        {"role": "assistant", "content": "2675"},
        *asking("What is this?", data_url(HEART))["messages"],
    ]
    expected = demo_model.create_chat_completion(theirs, max_tokens=20)
    found = client.responses.create(
        model="any", instructions="Answer briefly.", input=history, max_output_tokens=20
    )
    assert found.output_text == expected["choices"][0]["message"]["content"]
    assert found.usage is not None
    assert found.usage.input_tokens == expected["usage"]["prompt_tokens"]
    assert found.usage.output_tokens == expected["usage"]["completion_tokens"]


def test_a_stream_is_the_same_answer(client: OpenAI) -> None:
    with client.responses.stream(model="any", input=[about(QUESTION, CELLS)]) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert "".join(one.delta for one in events if one.type == "response.output_text.delta") == "2675"
    assert final.output_text == "2675"
    assert [one.sequence_number for one in events] == list(range(len(events)))
    short = client.responses.create(model="any", input="Describe the picture.", max_output_tokens=1)
    assert short.status == "incomplete"


class Cell(BaseModel):
    shape: Literal["star", "heart"]


def test_an_answer_is_parsed_into_a_pydantic_model(client: OpenAI) -> None:
    found = client.responses.parse(model="any", input=[about("What shape?", HEART)], text_format=Cell)
    assert isinstance(found.output_parsed, Cell)


@pytest.mark.parametrize(
    ("options", "place"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"input": []}, "input"),
        ({"input": [{"type": "function_call_output", "call_id": "a", "output": "b"}]}, "input[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input[0].content[0].file_data"),
        ({"input": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "input[0].content[0].type"),
        ({"instructions": 3}, "instructions"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"text": {"format": 3}}, "text.format"),
    ],
)
def test_what_is_not_understood_is_refused_with_the_place_of_it(
    options: dict[str, Any], place: str, client: OpenAI
) -> None:
    with pytest.raises(BadRequestError) as caught:
        client.responses.create(**{"model": "any", "input": "?", **options})
    assert caught.value.param == place
