"""Checkpoints of true size: quick tests on shrunk ones, slow ones at true width."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
from full_size import (
    RELEASES,
    Dtype,
    checkpoint_tensors,
    draw_words,
    plan_shards,
    write_full_size_checkpoint,
)

from ayaedge_export.checkpoint.checkpoint import open_checkpoint
from ayaedge_export.checkpoint.config import parse_config
from ayaedge_export.checkpoint.spec import text_tensors, vision_tensors
from ayaedge_export.decoder.gguf_writer import plan_tensors, write_decoder
from ayaedge_export.exporter import export_checkpoint
from ayaedge_export.plan import plan_export
from ayaedge_export.synthetic.random_weights import RandomWeights
from ayaedge_quant.imatrix import ColumnSums, ImportanceMatrix
from stock_quantizer import stock_quantize

SMALL_SHARD = 4_000_000


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_a_drawn_checkpoint_opens_and_has_every_tensor(shrunk_release: Path, tmp_path: Path) -> None:
    target = write_full_size_checkpoint(tmp_path / "c", shrunk_release, shard_bytes=SMALL_SHARD)
    opened = open_checkpoint(target)
    config = opened.config
    assert set(opened.tensors.entries) == {*text_tensors(config.text), *vision_tensors(config.vision)}
    released = json.loads((shrunk_release / "config.json").read_text())["torch_dtype"]
    expected = {"bfloat16": "BF16", "float16": "F16"}[released]
    assert {entry.dtype for entry in opened.tensors.entries.values()} == {expected}
    assert len(list(target.glob("model-0000?-of-0000?.safetensors"))) >= 2


def test_a_drawn_checkpoint_becomes_a_bundle(shrunk_release: Path, tmp_path: Path) -> None:
    target = write_full_size_checkpoint(tmp_path / "c", shrunk_release, layers=2, dtype="bf16")
    assert (target / "model.safetensors").is_file()  # one shard has no index
    bundle = export_checkpoint(target, tmp_path / "b", quant="q8_0", vision="fp32")
    assert bundle.manifest.decoder.num_layers == 2


def test_the_same_seed_gives_the_same_bytes(shrunk_release: Path, tmp_path: Path) -> None:
    def write(name: str, seed: int, threads: int) -> dict[str, bytes]:
        target = tmp_path / name
        return contents(write_full_size_checkpoint(target, shrunk_release, seed=seed, threads=threads))

    first = write("a", 5, 1)
    assert write("b", 5, 3) == first
    assert write("c", 6, 1)["model.safetensors"] != first["model.safetensors"]


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_weights_have_heavy_tails_and_columns_of_outliers(dtype: Dtype) -> None:
    words = draw_words(RandomWeights(0), dtype, "some.weight", (2000, 2048), 0, 2000)
    if dtype == "bf16":
        weights = (words.astype(np.uint32) << np.uint32(16)).view(np.float32)
    else:
        weights = words.view(np.float16).astype(np.float32)
    assert np.isfinite(weights).all()
    columns, rows = weights.std(0), weights.std(1)
    outliers = columns > 3 * np.median(columns)
    assert 1 <= outliers.sum() <= 2 * 2048 / 1024
    assert rows.max() / rows.min() > 2
    ordinary = weights[:, ~outliers] / weights[:, ~outliers].std()
    assert (ordinary**4).mean() > 5  # a normal distribution has 3
    assert 0.5 < columns[~outliers].mean() * math.sqrt(2048) < 2


def test_rows_of_different_tensors_and_tasks_differ() -> None:
    random_weights = RandomWeights(0)
    first = random_weights.rows("a.weight", (64, 256), 0, 32)
    for name, start in (("a.weight", 32), ("b.weight", 0)):
        other = random_weights.rows(name, (64, 256), start, start + 32)
        assert (first == other).mean() < 0.01


def test_missing_files_of_the_release_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"lacks config.json, tokenizer.json.*--reference"):
        write_full_size_checkpoint(tmp_path / "c", tmp_path)


@pytest.mark.parametrize(
    ("model", "gigabytes"), [("8b", [4.93, 5.00, 4.92, 2.42]), ("32b", [1.68, *[None] * 14])]
)
def test_shards_are_the_hubs(released_files: Path, model: str, gigabytes: list[float | None]) -> None:
    config = json.loads((released_files / RELEASES[model] / "config.json").read_text("utf-8"))
    shards = plan_shards(checkpoint_tensors(config), 5_000_000_000)
    sizes = [sum(2 * math.prod(shape) for shape in shard.tensors.values()) / 1e9 for shard in shards]
    assert len(shards) == len(gigabytes)
    assert max(sizes) <= 5
    if model == "32b":
        assert all(not name.startswith("language_model") for name in shards[0].tensors)
        assert sizes[0] == pytest.approx(1.68, abs=0.005)
    else:
        assert sum(sizes) == pytest.approx(17.27, abs=0.01)


@pytest.mark.parametrize(("model", "gigabytes"), [("8b", 5.05), ("32b", 19.8)])
def test_the_decoders_come_to_their_sizes(released_files: Path, model: str, gigabytes: float) -> None:
    config = json.loads((released_files / RELEASES[model] / "config.json").read_text("utf-8"))
    planned = plan_tensors(parse_config(config, []).text, "q4_k_m")
    assert sum(tensor.nbytes for tensor in planned) / 1e9 == pytest.approx(gigabytes, rel=0.01)


@pytest.fixture
def large(tmp_path: Path) -> Iterator[Path]:
    """A directory that is emptied at once; pytest keeps those of three runs."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "gigabytes"), [("8b", 1.0), ("32b", 2.5)])
def test_export_at_true_width_stays_within_its_memory(
    released_files: Path, large: Path, model: str, gigabytes: float
) -> None:
    from export_size import measure

    target = write_full_size_checkpoint(large / "c", released_files / RELEASES[model], layers=1)
    decoder = measure("decoder", target, 2)
    if decoder.peak_bytes is None:
        pytest.skip("this system does not say how much memory a process has allocated")
    assert decoder.peak_bytes <= gigabytes * 1e9
    assert decoder.extra_disk_bytes == 0
    for step in ("vision fp16", "vision int8"):
        assert (measure(step, target, 2).peak_bytes or 0) <= max(1.5, gigabytes) * 1e9


@pytest.mark.slow
def test_tracing_at_true_size_stays_within_its_memory(released_files: Path, large: Path) -> None:
    from export_size import measure

    target = write_full_size_checkpoint(large / "c", released_files / RELEASES["8b"], layers=1)
    traced = measure("trace", target, 2)
    if traced.peak_bytes is None:
        pytest.skip("this system does not say how much memory a process has allocated")
    assert traced.peak_bytes <= 6e9


@pytest.mark.slow
@pytest.mark.parametrize("model", ["8b", "32b"])
def test_every_tensor_of_true_width_equals_llama_cpps_own(
    released_files: Path, large: Path, model: str
) -> None:
    target = write_full_size_checkpoint(large / "c", released_files / RELEASES[model], layers=1)
    checkpoint = open_checkpoint(target)
    write_decoder(
        plan_export(checkpoint, quant="f32"), large / "f32.gguf"
    )  # f16 would round small weights of a bf16 checkpoint
    columns = {t.name: t.shape[1] for t in plan_tensors(checkpoint.config.text, "f32") if len(t.shape) == 2}
    rng = np.random.default_rng(3)
    drawn = {
        name: ColumnSums(100 * np.exp(2 * rng.standard_normal(count)).astype(np.float32), 100)
        for name, count in columns.items()
    }
    for matrix in (None, ImportanceMatrix(drawn, ("drawn",))):
        write_decoder(plan_export(checkpoint, quant="q4_k_m"), large / "ours.gguf", importance=matrix)
        stock_quantize(large / "f32.gguf", large / "stock.gguf", "q4_k_m", matrix)
        ours, stock = (
            {t.name: t for t in gguf.GGUFReader(large / name).tensors} for name in ("ours.gguf", "stock.gguf")
        )
        assert ours.keys() == stock.keys()
        for name in ours:
            assert ours[name].tensor_type == stock[name].tensor_type, name
            assert np.array_equal(ours[name].data, stock[name].data), (matrix, name)
