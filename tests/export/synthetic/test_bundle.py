"""Synthetic bundles: the true shapes, and a miniature with the true vocabulary and tiles that really answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import gguf
import numpy as np
import pytest
from PIL import Image

from ayaedge import NO_CACHE, AyaVision
from ayaedge.bundle import read_bundle
from ayaedge.errors import ExportError, InvalidOptionError
from ayaedge_export.checkpoint.config import parse_config
from ayaedge_export.decoder.gguf_writer import PlannedTensor
from ayaedge_export.plan import VisionFormat
from ayaedge_export.synthetic.bundle import (
    MODELS,
    Shape,
    SyntheticModel,
    write_random_bundle,
    write_synthetic_bundle,
)
from ayaedge_export.synthetic.random_weights import RandomBlocks, RandomTensors, RandomWeights
from ayaedge_export.synthetic.tokenizer import fill_vocabulary, read_demo
from ayaedge_quant.number_formats import GgmlType, encode
from ayaedge_quant.recipes import DecoderFormat

PHOTO = Image.new("RGB", (640, 480), (40, 90, 160))
TEMPLATE_TOKENS: dict[Shape, int] = {"8b": 557, "32b": 75}
"""What the released templates and tokenizers make of the question "Describe" about an image, the image left out."""


def miniature(shape: Shape) -> SyntheticModel:
    """Narrow and shallow, with the vocabulary, the tiles and the template of a true shape."""
    model = MODELS[shape]
    vision = replace(
        model.vision, hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2, adapter_size=64,
        output_size=256,
    )  # fmt: skip
    text = replace(
        model.text, hidden_size=256, intermediate_size=512, num_layers=2, num_heads=4, num_kv_heads=2,
        layer_is_sliding=model.text.layer_is_sliding[:2],
    )  # fmt: skip
    return replace(model, vision=vision, text=text)


def write_miniature(
    target: Path,
    shape: Shape = "8b",
    *,
    vision: VisionFormat = "int8",
    quant: DecoderFormat = "q4_k_m",
    threads: int = 2,
    seed: int = 0,
    vocab_size: int = 256000,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> Path:
    model = miniature(shape)
    model = replace(model, text=replace(model.text, vocab_size=vocab_size))
    return write_random_bundle(
        target,
        "miniature",
        model,
        vision=vision,
        quant=quant,
        threads=threads,
        seed=seed,
        on_progress=on_progress,
    )


@dataclass(frozen=True)
class Written:
    """A bundle with the whole vocabulary, and what was told while it was written."""

    shape: Shape
    directory: Path
    progress: list[tuple[int, int, str]]


@pytest.fixture(scope="module", params=get_args(Shape))
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Written:
    seen: list[tuple[int, int, str]] = []
    target = tmp_path_factory.mktemp("miniature") / "b"
    write_miniature(target, request.param, on_progress=lambda *args: seen.append(args))
    return Written(request.param, target, seen)


def test_a_synthetic_bundle_answers_about_an_image_of_true_length(written: Written) -> None:
    with AyaVision.load(written.directory, cache=NO_CACHE) as model:
        answer = model.ask("Describe", images=[PHOTO], max_tokens=8)
    assert answer.usage.tiles == (13,)
    assert answer.usage.completion_tokens == 8
    assert answer.text.strip()
    tags = 44  # start, end, and the names of 13 tiles, as with the released tokenizer
    assert answer.usage.image_tokens == 13 * 169 + tags
    expected = 13 * 169 + tags + TEMPLATE_TOKENS[written.shape]
    assert answer.usage.prompt_tokens == pytest.approx(expected, rel=0.005)


@pytest.mark.parametrize("shape", get_args(Shape))
def test_shapes_are_those_of_the_released_checkpoints(released_files: Path, shape: Shape) -> None:
    directory = released_files / f"aya-vision-{shape}"
    config, settings = (
        json.loads((directory / name).read_text("utf-8")) for name in ("config.json", "tokenizer_config.json")
    )
    released = parse_config(config, [], tokenizer_max_length=settings.get("model_max_length"))
    assert MODELS[shape].text == released.text
    assert MODELS[shape].vision == released.vision


def test_the_same_seed_gives_the_same_bytes_on_any_number_of_threads(tmp_path: Path) -> None:
    def hashes(name: str, seed: int, threads: int) -> dict[str, str]:
        target = write_miniature(tmp_path / name, seed=seed, threads=threads, vocab_size=3000)
        return {file: info.sha256 for file, info in read_bundle(target).manifest.files.items()}

    first = hashes("a", 1, 1)
    assert hashes("b", 1, 3) == first
    other = hashes("c", 2, 1)
    assert all(other[file] != first[file] for file in first)


def test_progress_ends_where_it_was_said_to_end(written: Written) -> None:
    seen = written.progress
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
    assert seen[-1][0] == seen[-1][1] > 0


def test_an_interrupted_bundle_goes_on_and_equals_one_at_a_stretch(tmp_path: Path) -> None:
    def stop(_done: int, _of: int, what: str) -> None:
        if what.startswith("blk.1"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_miniature(tmp_path / "b", vocab_size=3000, on_progress=stop)
    assert not (tmp_path / "b").exists()
    again = read_bundle(write_miniature(tmp_path / "b", vocab_size=3000))
    whole = read_bundle(write_miniature(tmp_path / "c", vocab_size=3000))
    assert again.manifest.files == whole.manifest.files


def test_other_number_formats_can_be_written(tmp_path: Path) -> None:
    bundle = write_miniature(tmp_path / "b", vision="fp16", quant="f16", vocab_size=3000)
    kinds = {tensor.tensor_type.name for tensor in gguf.GGUFReader(bundle / "decoder.gguf").tensors}
    assert kinds == {"F16", "F32"}


def test_wrong_options_and_an_existing_target_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidOptionError, match="layers"):
        write_synthetic_bundle(tmp_path / "b", "8b", layers=33)
    with pytest.raises(ExportError, match="exists"):
        write_synthetic_bundle(tmp_path, "8b")


def test_joined_words_fill_the_vocabulary_and_every_one_has_its_merge() -> None:
    _, demo = read_demo()
    filled = fill_vocabulary(demo, 20000)
    assert sorted([*filled.vocab.values(), *filled.added.values()]) == list(range(20000))
    assert {token: filled.vocab[token] for token in demo.vocab} == demo.vocab
    assert len(filled.merges) == len(set(filled.merges))
    made = {merge.replace(" ", "") for merge in filled.merges}
    assert set(filled.vocab) - set(demo.vocab) <= made


@pytest.mark.parametrize("kind", [GgmlType.Q4_K, GgmlType.Q6_K, GgmlType.Q8_0, GgmlType.F16])
def test_blocks_lie_at_the_columns_for_which_they_were_encoded(kind: GgmlType) -> None:
    random_weights = RandomWeights(0)
    tensor = PlannedTensor("some.weight", "some", (40, 2048), kind)
    rows = RandomBlocks(random_weights, [tensor]).encode_rows(tensor, 0, 40)
    assert rows.shape == (40, kind.row_bytes(2048))
    drawn = 2**21 // 2048
    encoded = encode(random_weights.rows(f"{kind.name}.2048", (drawn, 2048), 0, drawn), kind)
    stretch = kind.row_bytes(256)
    for start in range(0, encoded.shape[1], stretch):
        part = slice(start, start + stretch)
        known = {row.tobytes() for row in encoded[:, part]}
        assert {row.tobytes() for row in rows[:, part]} <= known
    assert len({row.tobytes() for row in rows}) == 40


def test_drawn_tensors_have_their_shapes_and_are_finite() -> None:
    shapes = {"a.weight": (8, 3, 4, 4), "b.weight": (16, 32), "c.bias": (5,)}
    tensors = RandomTensors(RandomWeights(0), shapes)
    for name, shape in shapes.items():
        assert tensors.read(name).shape == shape
        assert tensors.entries[name].nbytes == 2 * np.prod(shape)
        assert tensors.count_not_finite(name, 0, shape[0]) == 0
