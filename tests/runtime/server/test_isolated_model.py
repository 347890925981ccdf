"""A server whose model runs in a process of its own: what ends that process does not end the server."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from ayaedge import AyaVision, DecoderOptions, VisionOptions
from served import CELLS, ENDLESS, QUESTION, Reply, asking, data_url, get, post, served, until

PATH = "/v1/chat/completions"

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")


def text_of(reply: Reply) -> str:
    return str(reply.json()["choices"][0]["message"]["content"])


def test_a_model_whose_process_ends_is_loaded_again() -> None:
    models: list[AyaVision] = []

    def load() -> AyaVision:
        decoder, vision = DecoderOptions(threads=1), VisionOptions(threads=1)
        models.append(AyaVision.load(decoder=decoder, vision=vision, isolated=True))
        return models[-1]

    def kill() -> None:
        os.kill(models[-1]._engine.process.pid, signal.SIGKILL)  # type: ignore[attr-defined]

    question = asking(QUESTION, {"url": data_url(CELLS)})
    with served(load) as server, ThreadPoolExecutor(1) as others:
        running = others.submit(post, server.url, PATH, asking("Hello", **ENDLESS))
        until(lambda: get(server.url, "/health").json()["status"] == "busy")
        kill()
        assert running.result().status >= 500
        assert models[0].is_lost
        assert text_of(post(server.url, PATH, question)) == "2675"
        assert len(models) == 2
        kill()  # while nobody asks
        until(lambda: models[1].is_lost)
        assert get(server.url, "/health").json()["status"] == "asleep"
        assert text_of(post(server.url, PATH, question)) == "2675"
        assert len(models) == 3
