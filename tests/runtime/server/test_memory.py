"""What a server knows of images when its model was unloaded, or its process killed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from ayaedge import AyaVision, DecoderOptions, VisionOptions
from served import CELLS, QUESTION, Reply, asking, chat, data_url, get, served, until

FIRST = asking("What shape is at the top right?", data_url(CELLS))
SECOND = asking(QUESTION, data_url(CELLS))


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AYAEDGE_CACHE_DIR", str(tmp_path))


def load(bundle: Path) -> AyaVision:
    return AyaVision.load(bundle, decoder=DecoderOptions(threads=1), vision=VisionOptions(threads=1))


def known_share(reply: Reply) -> float:
    """Tokens that were known, of those that the image has."""
    assert reply.json()["choices"][0]["message"]["content"] == "2675"
    details = reply.json()["usage"]["prompt_tokens_details"]
    return float(details["cached_tokens"] / details["image_tokens"])


def test_a_model_that_has_slept_knows_its_images_from_the_disk(wide_bundle: Path) -> None:
    with served(partial(load, wide_bundle), sleep_after=0.2) as server:
        assert chat(server.url, FIRST).status == 200
        until(lambda: get(server.url, "/health").json()["status"] == "asleep")
        assert known_share(chat(server.url, SECOND)) >= 1


@pytest.mark.slow
def test_a_server_that_was_killed_knows_its_images_from_the_disk(wide_bundle: Path) -> None:
    command = [sys.executable, "-m", "ayaedge", "serve", "--port", "0", "-t", "1", "-m", str(wide_bundle)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=dict(os.environ)) as process:
        assert process.stderr
        found = re.search(r"http://\S+(?=/v1)", process.stderr.readline())
        assert found
        assert chat(found[0], FIRST).status == 200
        process.kill()
    with served(partial(load, wide_bundle)) as server:
        assert known_share(chat(server.url, SECOND)) >= 1
