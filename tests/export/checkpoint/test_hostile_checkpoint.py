"""A checkpoint from anybody: it opens, or is refused with a sentence, in bounded time and memory."""

from __future__ import annotations

import json
import os
import shutil
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from ayaedge import CheckpointError
from ayaedge_export.checkpoint.checkpoint import check_finite, open_checkpoint
from ayaedge_export.checkpoint.config import parse_config
from ayaedge_export.checkpoint.tensors import TensorIndex
from ayaedge_export.checkpoint.tokenizer import parse_tokenizer
from ayaedge_export.exporter import export_checkpoint

DIGITS = 10**400
SECONDS = 5.0
"""Of the processor, at most; each of these takes a fraction of one, and once took minutes, or for ever."""


@pytest.fixture
def checkpoint(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "c"))


def refusal(directory: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(directory)
    return str(caught.value)


def edit(path: Path, change: Callable[[Any], object]) -> None:
    data = json.loads(path.read_text("utf-8"))
    change(data)
    path.write_text(json.dumps(data), "utf-8")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "chat_template.jinja",
        "model.safetensors",
        "model.safetensors.index.json",
        "adapter_config.json",
    ],
)
def test_a_pipe_in_place_of_a_file_is_named_and_not_waited_for(checkpoint: Path, name: str) -> None:
    path = checkpoint / name
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    if name.endswith("index.json"):
        (checkpoint / "model.safetensors").unlink()
    message = refusal(checkpoint)
    assert name in message
    assert "it is not a regular file" in message or "has no config.json" in message or "adapter" in message


@pytest.mark.parametrize(
    "file", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
)
def test_a_number_of_400_digits_is_refused(checkpoint: Path, file: str) -> None:
    edit(checkpoint / file, lambda data: data.update(eos_token_id=DIGITS, logit_scale=DIGITS))
    assert f"{file} is damaged: it holds a whole number of 401 digits" in refusal(checkpoint)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_model_card_that_is_a_pipe_states_no_licence(checkpoint: Path) -> None:
    (checkpoint / "README.md").unlink(missing_ok=True)
    os.mkfifo(checkpoint / "README.md")
    assert open_checkpoint(checkpoint).license == "not stated by the checkpoint"


def test_transformers_length_without_a_limit_is_none(checkpoint: Path) -> None:
    edit(checkpoint / "tokenizer_config.json", lambda data: data.update(model_max_length=int(1e30)))
    open_checkpoint(checkpoint)


def write_header(path: Path, header: bytes, *, length: int | None = None, data: int = 64) -> None:
    claimed = len(header) if length is None else length
    path.write_bytes(claimed.to_bytes(8, "little") + header + bytes(data))


def tensor(**values: Any) -> bytes:
    return json.dumps({"a": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64], **values}}).encode()


HEADERS: dict[str, tuple[bytes, int | None]] = {
    "no header": (b"", None),
    "a length of 2 ** 63": (tensor(), 2**63),
    "a length of 2 ** 64 - 1": (tensor(), 2**64 - 1),
    "a length beyond the file": (tensor(), 10_000),
    "no object": (b"[1]", None),
    "no tensor's object": (b'{"a": 1}', None),
    "an offset of 400 digits": (tensor(data_offsets=[0, DIGITS]), None),
    "an offset outside": (tensor(data_offsets=[64, 128]), None),
    "an offset of 2 ** 64 - 1": (tensor(data_offsets=[0, 2**64 - 1]), None),
    "an end before the beginning": (tensor(data_offsets=[64, 0]), None),
    "a negative offset": (tensor(data_offsets=[-64, 0]), None),
    "an offset that is true": (tensor(shape=[], data_offsets=[True, True]), None),
    "an axis of 2 ** 63": (tensor(shape=[2**63, 0], data_offsets=[0, 0]), None),
    "a shape whose product wraps around": (tensor(shape=[2**32, 2**32]), None),
    "a hundred thousand axes": (tensor(shape=[1] * 100_000), None),
    "a shape that is a text": (tensor(shape="16"), None),
    "a dtype that is a list": (tensor(dtype=[]), None),
    "a dtype of a megabyte": (tensor(dtype="F" * 1_000_000), None),
    "a name twice": (tensor()[:-1] + b", " + tensor()[1:], None),
    "two tensors in one place": (json.dumps({n: json.loads(tensor())["a"] for n in "ab"}).encode(), None),
    "a gap": (tensor(shape=[15], data_offsets=[4, 64]), None),
    "data that is no tensor's": (tensor(shape=[15], data_offsets=[0, 60]), None),
    "nesting": (b'{"a":' * 200_000, None),
    "half of a surrogate pair": (tensor().replace(b'"a"', b'"\\ud800"'), None),
    "no Unicode": (tensor().replace(b'"a"', b'"\xff"'), None),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_lies_is_refused_at_once(tmp_path: Path, name: str) -> None:
    header, length = HEADERS[name]
    write_header(tmp_path / "model.safetensors", header, length=length)
    started = time.process_time()
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors is truncated or not a safetensors file \("
    ) as caught:
        TensorIndex(tmp_path)
    assert time.process_time() - started < SECONDS
    assert len(str(caught.value)) < 1000


def test_an_unknown_format_of_numbers_is_named(tmp_path: Path) -> None:
    write_header(tmp_path / "model.safetensors", tensor(dtype="F7", data_offsets=[0, 64]))
    with pytest.raises(CheckpointError, match="tensor a is stored as F7"):
        TensorIndex(tmp_path)


def test_a_header_of_a_terabyte_takes_no_memory(tmp_path: Path) -> None:
    with (tmp_path / "model.safetensors").open("wb") as stream:
        stream.write((2**40 - 8).to_bytes(8, "little"))
        stream.truncate(2**40)  # sparse
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="shall have 1099511627768 bytes"):
            TensorIndex(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_weights_that_are_cut_off_while_they_are_read_end_no_process(tmp_path: Path) -> None:
    """A file that is mapped ends the process with SIGBUS when it shrinks."""
    path = tmp_path / "model.safetensors"
    save_file({"a": np.ones((4096, 1024), np.float32), "b": np.ones((64,), np.float16)}, path)
    tensors = TensorIndex(tmp_path)
    assert tensors.read("a").sum() == 4096 * 1024
    os.truncate(path, 9_000_000)
    assert tensors.read_rows("a", 0, 10).sum() == 10 * 1024
    for read in (
        lambda: tensors.read("a"),
        lambda: tensors.read_rows("b", 0, 64),
        lambda: tensors.count_not_finite("b", 0, 64),
    ):
        with pytest.raises(
            CheckpointError, match=r"model\.safetensors has become shorter since it was opened: tensor"
        ):
            read()


def test_an_export_whose_checkpoint_is_cut_off_is_refused_and_leaves_nothing(
    checkpoint: Path, tmp_path: Path
) -> None:
    def cut(_count: int, what: str) -> None:
        if what == "blk.1.attn_q.weight":
            os.truncate(checkpoint / "model.safetensors", 100_000)

    with pytest.raises(CheckpointError, match="has become shorter since it was opened"):
        export_checkpoint(checkpoint, tmp_path / "b", quant="f16", vision="fp32", threads=1, advance=cut)
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_weights_are_read_as_they_are_stored(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(300, 20_000)).astype(np.float32)
    save_file({"half": values.astype(np.float16), "single": values}, tmp_path / "model.safetensors")
    tensors = TensorIndex(tmp_path)
    assert np.array_equal(tensors.read("single"), values)
    assert np.array_equal(tensors.read("half"), values.astype(np.float16).astype(np.float32))
    assert np.array_equal(tensors.read_rows("single", 299, 300), values[299:])


def test_twenty_thousand_missing_shards_are_named_in_no_time(tmp_path: Path) -> None:
    places = {f"t{number}": f"m{number}.safetensors" for number in range(20_000)} | {
        "long": "x" * 100_000,
        "null": "\0",
    }
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    started = time.process_time()
    with pytest.raises(CheckpointError, match="is missing"):
        TensorIndex(tmp_path)
    assert time.process_time() - started < SECONDS


@pytest.mark.parametrize("weights", [[], None, "x", {"a": []}, {"a": {}}, {"a": 5}, {"": ""}])
def test_an_index_of_any_form_is_refused(tmp_path: Path, weights: Any) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))
    with pytest.raises(CheckpointError):
        TensorIndex(tmp_path)


def test_sixty_thousand_added_tokens_are_read_in_no_time(tiny: Path) -> None:
    data = json.loads((tiny / "tokenizer.json").read_text("utf-8"))
    settings = json.loads((tiny / "tokenizer_config.json").read_text("utf-8"))
    first = len(data["model"]["vocab"])
    data["added_tokens"] += [{"id": first + 1000 + n, "content": f"<extra_{n}>"} for n in range(60_000)]
    faults: list[str] = []
    started = time.process_time()
    parse_tokenizer(data, settings, faults)
    assert time.process_time() - started < SECONDS


MERGES = [["1", 2], [1, 2], [["1"], "2"], "1  2", 12, None, {}, ["1", "2", "3"], [], "x" * 10**6]


@pytest.mark.parametrize(("merge", "count"), [*((merge, 1) for merge in MERGES), (["1", 2], 1_000_000)])
def test_a_merge_that_is_none_is_refused_even_behind_a_million(tiny: Path, merge: Any, count: int) -> None:
    data = json.loads((tiny / "tokenizer.json").read_text("utf-8"))
    vocab = data["model"]["vocab"]
    vocab.update({text: vocab.get(text, 10_000 + number) for number, text in enumerate("12")})
    data["model"]["merges"] = ["1 2"] * count + [merge]
    faults: list[str] = []
    started = time.process_time()
    assert parse_tokenizer(data, {}, faults) is None
    assert time.process_time() - started < SECONDS
    assert any("a merge that is not a pair of its tokens" in fault for fault in faults)
    assert max(map(len, faults)) < 1000


@pytest.mark.parametrize("content", [{"a": 1}, ["<x>"], 5, True, ""])
def test_an_added_token_whose_text_is_none_is_refused(content: Any) -> None:
    faults: list[str] = []
    parse_tokenizer({"added_tokens": [{"id": 1, "content": content}]}, {}, faults)
    assert any("an added token without a text and an id" in fault for fault in faults)


@pytest.mark.parametrize("kind", [[], {}, None, 5])
def test_kinds_of_layers_may_be_of_any_type(kind: Any, tiny: Path) -> None:
    config = json.loads((tiny / "config.json").read_text("utf-8"))
    config["text_config"]["layer_types"] = [kind] * config["text_config"]["num_hidden_layers"]
    faults: list[str] = []
    parse_config(config, faults)
    assert any("layer_types" in fault for fault in faults)


@pytest.mark.parametrize("key", ["logit_scale", "rope_theta", "layer_norm_eps"])
def test_whole_numbers_beyond_a_float_are_faults(tiny: Path, key: str) -> None:
    config = json.loads((tiny / "config.json").read_text("utf-8"))
    config["text_config"][key] = DIGITS
    faults: list[str] = []
    parse_config(config, faults)
    assert any(key in fault for fault in faults)


def test_every_weight_of_a_good_checkpoint_is_finite(tiny: Path) -> None:
    check_finite(open_checkpoint(tiny), 2)
