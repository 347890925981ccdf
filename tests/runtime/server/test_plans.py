"""What a question about images would cost, and how far its reading is, from the real server."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from ayaedge import AyaVision
from ayaedge.hardware.speeds import Speeds
from ayaedge.images.tile_budget import TileChoice
from ayaedge.planning.tile_options import chosen, prompt_tokens_by_tiles, tile_options
from ayaedge.server import endpoint
from ayaedge.server.progress import Following, Progress
from served import CELLS, HEART, QUESTION, asking, chat, connect, data_url, get, load_demo, post, send, served

SLOW = Speeds(tile=6.0, prompt_token=0.03, prompt_growth=0.0, answer_token=0.2, answer_growth=0.0)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served() as server:
        yield server.url


def plan(url: str, *images: Any, **options: Any) -> Any:
    return post(url, "/v1/plan", asking(QUESTION, *images, **options)).json()


def events(body: bytes) -> list[Any]:
    """What a stream says, without its end."""
    lines = body.decode().splitlines()
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


def test_a_plan_shows_every_grid_an_image_may_have_and_what_it_costs(url: str, demo_model: AyaVision) -> None:
    found = plan(url, data_url(CELLS), measure=True)
    assert [(one["images"][0]["columns"], one["images"][0]["rows"]) for one in found["options"]] == [
        (1, 1), (2, 1), (2, 2), (3, 2),
    ]  # fmt: skip
    for option in found["options"]:
        messages = asking("a", data_url(CELLS))["messages"]
        counted = demo_model.count_tokens(messages, max_tiles=option["max_tiles"])
        assert option["prompt_tokens"] == counted + 64
    seconds = [one["seconds"] for one in found["options"]]
    assert seconds == sorted(seconds)
    assert seconds[0] > 0
    assert found["chosen"] == found["options"][-1]
    answer = chat(url, asking(QUESTION, data_url(CELLS), max_tiles=found["options"][1]["max_tiles"])).json()
    assert answer["tiles"] == [3]


def test_a_plan_is_for_all_images_and_for_the_tiles_that_are_asked_for(url: str) -> None:
    both = plan(url, data_url(CELLS), data_url(HEART))["chosen"]
    assert [one["tiles"] for one in both["images"]] == [7, 10]
    assert plan(url, data_url(CELLS), max_tiles=2)["chosen"]["max_tiles"] == 2
    assert plan(url, data_url(CELLS), tiles="auto", budget=1e-9)["chosen"]["max_tiles"] == 1
    assert plan(url)["options"][0]["images"] == []
    assert plan(url, data_url(CELLS), measure="yes")["error"]["param"] == "measure"
    assert plan(url, "data:image/png;base64,AAAA")["error"]["code"] == "invalid_image"


def test_a_plan_shows_what_a_browser_cannot_and_knows_pages_of_documents(url: str) -> None:
    pytest.importorskip("pypdfium2", reason="documents need the extra pdf")
    pages = [Image.open(picture).convert("RGB") for picture in (HEART, CELLS)]
    file = io.BytesIO()
    pages[0].save(file, "PDF", save_all=True, append_images=pages[1:])
    document = "data:application/pdf;base64," + base64.b64encode(file.getvalue()).decode()
    found = plan(url, f"{document}#page=2", data_url(CELLS), preview=True)
    assert [one["pages"] for one in found["previews"]] == [2, None]
    assert [one["tiles"] for one in found["chosen"]["images"]] == [7, 7]
    for one in found["previews"]:
        kind, _, data = one["url"].partition(",")
        shown = Image.open(io.BytesIO(base64.b64decode(data)))
        assert kind == "data:image/jpeg;base64"
        assert shown.width > shown.height
    assert "pages" in plan(url, document)["error"]["message"]


def test_within_a_budget_there_are_as_many_tiles_as_it_allows(demo_model: AyaVision) -> None:
    manifest = demo_model.bundle.manifest
    counts = prompt_tokens_by_tiles(demo_model.count_tokens, manifest.tiling)

    def tiles(budget: float) -> int:
        choice = TileChoice("auto", None, budget)
        options = tile_options([(1200, 800)], choice, manifest, counts, SLOW)
        found = chosen(options, choice)
        assert found is options[0] or (found.seconds or 0) <= budget
        return found.images[0].tiles

    assert [tiles(budget) for budget in (1.0, 30.0, 60.0, 600.0)] == [1, 3, 7, 7]


def test_a_stream_tells_each_tile_and_batch_only_to_those_who_ask(url: str) -> None:
    asked = asking(QUESTION, data_url(CELLS), stream=True, stream_options={"include_usage": True})
    first = events(chat(url, {**asked, "progress": True, "max_tiles": 9, "tiles": "native"}).body)
    told = [one["progress"] for one in first if "progress" in one]
    assert [(one["done"], one["of"]) for one in told if one["step"] == "vision"] == [
        (tile, 7) for tile in range(1, 8)
    ]
    last = [one for one in told if one["step"] == "prefill"][-1]
    assert last["done"] == last["of"] > 100
    assert last["seconds_left"] == 0
    assert first.index(next(one for one in first if one["choices"])) > max(
        place for place, one in enumerate(first) if "progress" in one
    )
    assert not [one for one in events(chat(url, asked).body) if "progress" in one]
    assert chat(url, {**asked, "progress": 1}).json()["error"]["param"] == "progress"


def test_what_is_left_is_told_by_what_was_measured_and_then_by_what_it_takes() -> None:
    import asyncio

    async def told() -> list[Progress]:
        seen = Following(SLOW, tokens_per_tile=100)
        for step, done, of, now in (
            ("vision", 1, 4, 10.0), ("vision", 2, 4, 20.0), ("prefill", 0, 500, 41.0), ("prefill", 250, 500, 46.0),
        ):  # fmt: skip
            seen._hear(step, done, of, now)  # type: ignore[arg-type]
        return seen.take()

    after = SLOW.prefill(0, 4 * 100 + 64)
    lefts = [one.seconds_left for one in asyncio.run(told())]
    assert lefts == [round(3 * 6.0 + after, 2), round(2 * 10.0 + after, 2), 15.0, 5.0]


def test_whoever_waits_for_the_model_to_be_loaded_gets_signs_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    monkeypatch.setattr(endpoint, "HEARTBEAT", 0.02)
    may_load, loads = threading.Event(), 0

    def load() -> AyaVision:
        nonlocal loads
        loads += 1
        assert loads == 1 or may_load.wait(60)
        return load_demo()

    with served(load, sleep_after=0.05) as server:
        while get(server.url, "/health").json()["status"] != "asleep":
            pass
        with connect(server.url) as connection:
            send(connection, server.url, "/v1/chat/completions", asking("?", stream=True, max_tokens=2))
            data = b""
            while b": loading\n\n" not in data:
                data += connection.recv(4096)
            may_load.set()
            while b"[DONE]" not in data:
                data += connection.recv(4096)
        assert b'"finish_reason"' in data


def test_anthropics_client_passes_over_signs_of_life(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "HEARTBEAT", 1e-6)
    from anthropic import Anthropic

    with Anthropic(base_url=url, api_key="none", max_retries=0) as client:
        with client.messages.stream(
            model="any", max_tokens=12, messages=[{"role": "user", "content": QUESTION}]
        ) as stream:
            text = "".join(stream.text_stream)
        assert text == stream.get_final_text() != ""
    body = {"max_tokens": 12, "stream": True, "messages": [{"role": "user", "content": QUESTION}]}
    assert b"event: ping\n" in post(url, "/v1/messages", body).body
