"""Whatever is in a checkpoint's files, it is refused with a sentence or its export can be planned, within a second.

The ordinary run takes some hundred checkpoints, always the same; `pytest -m slow` ten thousand others.
"""

from __future__ import annotations

import copy
import json
import math
import random
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ayaedge import AyaEdgeError
from ayaedge_export.checkpoint.checkpoint import open_checkpoint
from ayaedge_export.plan import plan_export

USUAL, MANY = 300, 10_000
SECONDS = 10.0
"""Of the processor, for one checkpoint, which takes a few hundredths of a second on an idle machine."""
MOST_MEMORY = 400_000_000
LONGEST_LINE, MOST_LINES = 2000, 60
TOKENS = 300
"""Of the vocabulary; the rest is cut off, so that a checkpoint opens in milliseconds."""
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def nested(depth: int) -> Any:
    """Lists within each other."""
    inner: Any = []
    for _ in range(depth):
        inner = [inner]
    return inner


POOL: list[Any] = [
    None, True, False, 0, 1, -1, 2, 1.5, 1e308, math.nan, math.inf, 2**24, 2**31, 2**63, -(2**63), 10**19, 10**30,
    10**400, "", "x", "\0", "\ud800", "x" * 10_000, "../../etc/passwd", [], {}, [[]], [None], {"a": None}, ["x"] * 1000,
    nested(50), nested(100), [2**63] * 9, [0, 2**64 - 1], {"content": []}, {"type": "BPE"}, "F32", "BF16", "I8",
]  # fmt: skip


PUT_IN = [b'"', b"{", b"[", b"]", b",", b":", b"9" * 500, b"\0", b"\xff", b"\\ud800"]


def spoilt(chance: random.Random, value: Any) -> Any:
    """JSON in which something was replaced, left out, doubled or exchanged."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        name = chance.choice(list(value))
        kept = {key: inner for key, inner in value.items() if key != name or chance.random() < 0.9}
        if name in kept:
            kept[name] = spoilt(chance, kept[name])
        if chance.random() < 0.2:
            kept[chance.choice([*kept, "x", "é", "x" * 5000])] = chance.choice([*POOL, *kept.values()])
        return kept
    if isinstance(value, list) and value and chance.random() < 0.9:
        place = chance.randrange(len(value))
        return [*value[:place], spoilt(chance, value[place]), *value[place + chance.randrange(2) :]]
    if isinstance(value, str) and value and chance.random() < 0.5:
        place = chance.randrange(len(value))
        return value[:place] + chance.choice(["", "\0", "<", "é", " ", "\n", "x" * 300]) + value[place + 1 :]
    if isinstance(value, int) and chance.random() < 0.5:
        return chance.choice([value + 1, value - 1, -value, value * 2**32, str(value)[:400]])
    return chance.choice(POOL)


def changed(chance: random.Random, data: bytes) -> bytes:
    """Bytes of which some were turned, left out, put in, or cut off."""
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(data) + 1)
        before, after = data[:place], data[place:]
        data = chance.choice([
            before + bytes([chance.randrange(256)]) + after[1:],
            before + after[chance.randint(1, 9) :],
            before + chance.choice(PUT_IN) + after,
            before,
            before + after[:40] * 3 + after,
            b'{"a":' * chance.choice([10, 100_000]) + data,
        ])  # fmt: skip
    return data


def small_checkpoint(tiny: Path, target: Path) -> Path:
    """The trained checkpoint with few tokens and weights of zeros, which take no room."""
    shutil.copytree(tiny, target, ignore=shutil.ignore_patterns("*.safetensors", "README.md"))
    tokenizer = json.loads((target / "tokenizer.json").read_text("utf-8"))
    vocab = tokenizer["model"]["vocab"]
    added = len(vocab)

    def renumbered(index: int) -> int:
        return index if index < TOKENS else index - added + TOKENS

    kept = {token: index for token, index in vocab.items() if index < TOKENS}
    tokenizer["model"]["vocab"] = kept
    tokenizer["model"]["merges"] = [
        pair for pair in tokenizer["model"]["merges"] if {*pair, "".join(pair)} <= set(kept)
    ]
    for token in tokenizer["added_tokens"]:
        token["id"] = renumbered(token["id"])
    settings = json.loads((target / "tokenizer_config.json").read_text("utf-8"))
    settings["added_tokens_decoder"] = {
        str(renumbered(int(index))): token for index, token in settings["added_tokens_decoder"].items()
    }
    config = json.loads((target / "config.json").read_text("utf-8"))
    config["image_token_index"] = renumbered(config["image_token_index"])
    config["text_config"]["eos_token_id"] = renumbered(config["text_config"]["eos_token_id"])
    generation = json.loads((target / "generation_config.json").read_text("utf-8"))
    generation["eos_token_id"] = renumbered(generation["eos_token_id"])
    for name, value in (
        ("tokenizer.json", tokenizer), ("tokenizer_config.json", settings), ("config.json", config),
        ("generation_config.json", generation),
    ):  # fmt: skip
        (target / name).write_text(json.dumps(value), "utf-8")
    with (tiny / WEIGHTS).open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    write_weights(target / WEIGHTS, json.dumps(header).encode(), header)
    return target


def write_weights(path: Path, header: bytes, sound: dict[str, Any], length: int | None = None) -> None:
    """A header, and as many zeros behind it as `sound` says."""
    size = max(info["data_offsets"][1] for name, info in sound.items() if name != "__metadata__")
    with path.open("wb") as stream:
        stream.write((len(header) if length is None else length).to_bytes(8, "little"))
        stream.write(header)
        stream.truncate(8 + len(header) + size)


class Spoiler:
    """Spoils one file of a checkpoint after the other, and puts it back."""

    def __init__(self, checkpoint: Path, chance: random.Random):
        self.checkpoint, self._chance = checkpoint, chance
        self._texts = {path.name: path.read_bytes() for path in checkpoint.iterdir() if path.name != WEIGHTS}
        with (checkpoint / WEIGHTS).open("rb") as stream:
            self._header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))

    def spoil(self) -> Callable[[], object]:
        """Spoil one of them; returns what undoes it."""
        chance = self._chance
        name = chance.choice([*self._texts, "config.json", "tokenizer.json", WEIGHTS, WEIGHTS, INDEX])
        if name == WEIGHTS:
            return self._spoil_weights()
        if name == INDEX:
            return self._spoil_index()
        path, data = self.checkpoint / name, self._texts[name]
        structural = name.endswith(".json") and chance.random() < 0.7
        path.write_bytes(self._spoilt(json.loads(data)) if structural else changed(chance, data))
        return lambda: path.write_bytes(data)

    def _spoilt(self, value: Any) -> bytes:
        for _ in range(self._chance.randint(1, 4)):
            value = spoilt(self._chance, value)
        return json.dumps(value).encode()

    def _spoil_weights(self) -> Callable[[], object]:
        chance, path = self._chance, self.checkpoint / WEIGHTS
        whole = json.dumps(self._header).encode()
        header = (
            self._spoilt(copy.deepcopy(self._header)) if chance.random() < 0.6 else changed(chance, whole)
        )
        length = chance.choice(
            [None, None, None, None, 0, 1, len(header) - 1, len(header) + 1, 2**63, 2**64 - 1]
        )
        write_weights(path, header, self._header, length)
        return lambda: write_weights(path, whole, self._header)

    def _spoil_index(self) -> Callable[[], object]:
        """In place of the single file a shard and an index that is not quite right."""
        names = [name for name in self._header if name != "__metadata__"]
        index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-1.safetensors")}
        (self.checkpoint / WEIGHTS).rename(self.checkpoint / "model-1.safetensors")
        (self.checkpoint / INDEX).write_bytes(self._spoilt(index))

        def undo() -> None:
            (self.checkpoint / "model-1.safetensors").rename(self.checkpoint / WEIGHTS)
            (self.checkpoint / INDEX).unlink()

        return undo


def judge(checkpoint: Path) -> bool:
    """Whether an export can be planned; an error that is not ours, or is not clear, fails the test."""
    try:
        plan = plan_export(open_checkpoint(checkpoint), vision="fp32")
        assert plan.disk_bytes > 0
        assert plan.header_bytes > 0
        return True
    except AyaEdgeError as error:
        lines = str(error).splitlines()
        assert lines
        assert len(lines) <= MOST_LINES
        assert max(map(len, lines)) <= LONGEST_LINE
        str(error).encode()
        return False


def peak_memory() -> int:
    """Bytes that this process has taken at most; 0 where that is told in other units, or not at all."""
    if sys.platform != "linux":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def fuzz(tiny: Path, directory: Path, count: int, seed: int) -> int:
    """Judge so many spoilt checkpoints; returns how many could be planned."""
    checkpoint = small_checkpoint(tiny, directory / "c")
    assert judge(checkpoint)
    spoiler, sound = Spoiler(checkpoint, random.Random(seed)), 0
    before = peak_memory()
    for number in range(count):
        undo = spoiler.spoil()
        started = time.process_time()
        try:
            sound += judge(checkpoint)
        except BaseException as error:
            raise AssertionError(f"example {number} of seed {seed}") from error
        assert time.process_time() - started < SECONDS, f"example {number} of seed {seed}"
        undo()
    assert judge(checkpoint)
    assert peak_memory() - before < MOST_MEMORY
    return sound


def test_a_spoilt_checkpoint_is_refused_or_planned(tiny: Path, tmp_path: Path) -> None:
    sound = fuzz(tiny, tmp_path, USUAL, seed=0)
    assert USUAL // 20 < sound < USUAL * 3 // 4  # both happen


@pytest.mark.slow
def test_ten_thousand_spoilt_checkpoints_are_refused_or_planned(tiny: Path, tmp_path: Path) -> None:
    fuzz(tiny, tmp_path, MANY, seed=random.randrange(2**32))
