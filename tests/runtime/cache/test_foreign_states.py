"""Whatever lies under the name of a state: only what this user wrote under that name is given to llama.cpp."""

from __future__ import annotations

import logging
import os
import resource
import threading
from pathlib import Path

import numpy as np
import pytest

from ayaedge import AyaVision, CacheOptions, DecoderOptions, VisionOptions
from ayaedge.cache.options import NO_CACHE
from ayaedge.cache.stores import _HEAD, _MAGIC, DiskStates

STATE = np.arange(5000, dtype=np.uint32).view(np.uint8)
IMAGE = Path(__file__).parents[3] / "examples" / "pictures" / "six-cells.png"


@pytest.fixture
def store(tmp_path: Path) -> DiskStates:
    store = DiskStates(tmp_path / "kept", 1 << 40)
    store.save("aa", STATE)
    return store


def fresh(store: DiskStates) -> DiskStates:
    return DiskStates(store.directory, 1 << 40)


def test_a_state_of_somebody_else_is_not_used(
    store: DiskStates, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = DiskStates(tmp_path / "his", 1 << 40)
    other.save("aa", STATE)
    (store.directory / "aa.state").write_bytes((other.directory / "aa.state").read_bytes())
    assert store.load("aa") is None
    assert "was not written by this user, under this name" in caplog.text
    assert not store.holds("aa")


def test_a_state_under_another_name_is_not_used(store: DiskStates) -> None:
    (store.directory / "bb.state").write_bytes((store.directory / "aa.state").read_bytes())
    assert store.load("bb") is None
    loaded = fresh(store).load("aa")
    assert loaded is not None
    assert np.array_equal(loaded, STATE)


@pytest.mark.skipif(os.name == "nt", reason="POSIX files")
@pytest.mark.parametrize("kind", ["sparse", "with its head", "pipe", "device", "directory"])
def test_no_state_that_is_none_fills_memory_or_makes_a_model_wait(
    store: DiskStates, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = store.directory / "aa.state"
    head = path.read_bytes()[: _HEAD.size]
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "directory":
        path.mkdir()
    else:
        path.write_bytes(head if kind == "with its head" else b"")
        os.truncate(path, 12_000_000_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found: list[object] = []
    with caplog.at_level(logging.WARNING):
        thread = threading.Thread(target=lambda: found.append(fresh(store).load("aa")), daemon=True)
        thread.start()
        thread.join(20)
    assert found == [None]
    assert len(caplog.records) == 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_a_head_that_claims_another_size_is_refused_before_anything_is_read(store: DiskStates) -> None:
    path = store.directory / "aa.state"
    content = path.read_bytes()
    _, _, digest, made = _HEAD.unpack(content[: _HEAD.size])
    path.write_bytes(_HEAD.pack(_MAGIC, 1 << 62, digest, made) + content[_HEAD.size :])
    assert store.load("aa") is None


def test_an_answer_does_not_depend_on_what_lies_in_the_cache(tmp_path: Path, wide_bundle: Path) -> None:
    """Not on whether there is one, nor on what of it is damaged, exchanged or somebody else's."""

    second = np.random.default_rng(0).integers(0, 256, (50, 50, 3), np.uint8)

    def answers(cache: CacheOptions) -> list[object]:
        threads = (
            DecoderOptions(threads=1),
            VisionOptions(threads=1),
        )  # which wait for nobody on a busy machine
        with AyaVision.load(wide_bundle, cache=cache, decoder=threads[0], vision=threads[1]) as model:
            answer = model.ask("What is at the top?", images=[IMAGE, second], max_tokens=4, top_logprobs=2)
            return [answer.ids, answer.text, answer.logprobs]

    options, root = CacheOptions(directory=tmp_path), tmp_path / "ayaedge"
    expected = answers(NO_CACHE)
    assert answers(options) == expected
    states = sorted(root.glob("*.state"))
    whole = {path: path.read_bytes() for path in states}
    assert len(states) > 1
    assert answers(options) == expected
    for kind in ("damaged", "exchanged", "of another user"):
        for path, content in whole.items():
            path.write_bytes(content)
        if kind == "damaged":
            for path, content in whole.items():
                path.write_bytes(content[:-100] + bytes(100))
        elif kind == "exchanged":
            for path, content in zip(states, reversed(list(whole.values())), strict=True):
                path.write_bytes(content)
        else:
            (root / "secret").write_bytes(os.urandom(32))
        assert answers(options) == expected, kind
