"""Exports with the effort `best`, as a whole: nearer to the checkpoint, within a budget, the same every time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import gguf
import pytest
from scenes import held_out

from ayaedge import AyaVision, InvalidOptionError
from ayaedge.bundle import Bundle, check_hashes
from ayaedge_export.best.best import list_types
from ayaedge_export.calibration.text import BUILTIN, CalibrationText
from ayaedge_export.checkpoint.checkpoint import open_checkpoint
from ayaedge_export.effort import Budget, GptqOptions
from ayaedge_export.evaluation.evaluate import evaluate_bundle
from ayaedge_export.exporter import export_checkpoint
from ayaedge_quant.number_formats import GgmlType
from ayaedge_quant.recipes import EMBEDDINGS, DecoderFormat, Recipe
from random_checkpoint import Shape, write_random_checkpoint

NEARER = 0.65
"""Of the KL divergence of the effort calibrated on the trained checkpoint; measured are 0.38."""
SHORT = CalibrationText("short", {language: BUILTIN.passages[language][:2] for language in ("en", "ja")})
FEW = 400
"""Positions that SHORT can half fill."""
LAYERS = 2
SMALL = Shape(
    text={"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": LAYERS},
    vision={"num_hidden_layers": 1},
    dtype="bfloat16",
)
"""The least that holds super-blocks: exporting it takes half of what 512 inner columns and 3 layers take."""


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@dataclass(frozen=True)
class Stored:
    """What a decoder's file holds."""

    types: dict[str, str]
    data_bits: float
    """Of each weight, without the padding between tensors."""


def stored(bundle: Bundle) -> Stored:
    tensors = gguf.GGUFReader(bundle.decoder_path).tensors
    types = {tensor.name: tensor.tensor_type.name for tensor in tensors}
    weights = sum(math.prod(tensor.shape.tolist()) for tensor in tensors)
    return Stored(types, 8 * sum(int(tensor.n_bytes) for tensor in tensors) / weights)


@pytest.fixture(scope="module")
def best(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export_checkpoint(tiny, tmp_path_factory.mktemp("best") / "b", vision="int8", effort="best")


@pytest.fixture(scope="module")
def plain(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export_checkpoint(tiny, tmp_path_factory.mktemp("plain") / "b", vision="int8", effort="fast")


@pytest.fixture(scope="module")
def small(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("small") / "c", tiny, SMALL)


def export_small(
    small: Path,
    target: Path,
    budget: Budget | None = None,
    *,
    quant: DecoderFormat | Recipe = "q4_k_m",
    threads: int | None = None,
    gptq: GptqOptions | None = None,
) -> Bundle:
    return export_checkpoint(
        small, target, quant=quant, vision="fp16", effort="best", calibrate=SHORT, budget=budget or Budget(),
        gptq=gptq or GptqOptions(tokens=FEW), threads=threads,
    )  # fmt: skip


def test_best_is_much_nearer_to_the_checkpoint_than_calibrated(
    best: Bundle, tiny: Path, exact_bundle: Bundle, tmp_path: Path
) -> None:
    calibrated = export_checkpoint(tiny, tmp_path / "b", vision="int8", effort="calibrated")
    divergences = [
        evaluate_bundle(bundle, exact_bundle, images=False).overall.mean_kl for bundle in (best, calibrated)
    ]
    assert divergences[0] <= NEARER * divergences[1]


def test_the_manifest_says_what_was_done_and_what_it_should_give(best: Bundle) -> None:
    assert check_hashes(best) == []
    formats, figures = best.manifest.formats, best.manifest.parity
    assert (formats.decoder, formats.vision) == ("q4_k_m", "int8")
    feedback, types = formats.adjustments
    assert feedback == "error feedback from builtin"
    assert types.startswith("types chosen by measurement (")
    chosen = figures["best, predicted KL divergence of the chosen types (nats)"]
    fixed = figures["best, predicted KL divergence of the format's own types (nats)"]
    assert 0 < chosen < fixed < 0.03  # measured: 0.0076, 0.0106


def test_the_chosen_types_are_those_of_the_file(best: Bundle, plain: Bundle) -> None:
    before = stored(plain).types
    changed = {name: GgmlType[kind] for name, kind in stored(best).types.items() if kind != before[name]}
    assert changed
    assert best.manifest.formats.adjustments[1] == f"types chosen by measurement ({list_types(changed)})"


def test_chosen_types_are_listed_in_short() -> None:
    names = {f"blk.{layer}.attn_v.weight": GgmlType.Q6_K for layer in (10, 7, 0, 2, 1, 9)}
    names |= {"token_embd.weight": GgmlType.Q5_K, "blk.3.ffn_down.weight": GgmlType.Q6_K}
    assert list_types(names) == "q5_k: token_embd; q6_k: attn_v in 0-2 7 9-10, ffn_down in 3"
    assert list_types({}) == ""


def test_without_a_budget_it_is_no_larger_and_no_slower_than_the_format(best: Bundle, plain: Bundle) -> None:
    types = stored(best).types
    assert best.decoder_path.stat().st_size <= plain.decoder_path.stat().st_size
    before = stored(plain).types
    assert set(types.values()) <= set(before.values())
    assert types[EMBEDDINGS] == before[EMBEDDINGS]
    assert best.decoder_path.stat().st_size > 0.9 * plain.decoder_path.stat().st_size


def test_the_bundle_loads_and_answers(best: Bundle) -> None:
    samples = held_out(23, seed=5)
    with AyaVision.load(best.directory) as model:
        answers = [model.ask(sample.question, images=[sample.picture]).text for sample in samples]
    right = sum(answer == sample.answer for answer, sample in zip(answers, samples, strict=True))
    assert right >= 20


@pytest.mark.usefixtures("all_processors")
def test_two_exports_are_byte_identical_whatever_the_threads(small: Path, tmp_path: Path) -> None:
    first, second = (export_small(small, tmp_path / str(threads), threads=threads) for threads in (1, 3))
    assert contents(first.directory) == contents(second.directory)
    assert {path.name for path in tmp_path.iterdir()} == {"1", "3"}


def test_a_budget_in_bits_is_kept_and_used(small: Path, tmp_path: Path) -> None:
    bits = 5.5
    bundle = export_small(small, tmp_path / "b", Budget(bits_per_weight=bits))
    assert 0.97 * bits < stored(bundle).data_bits <= bits


@pytest.mark.parametrize("share", [0.85, 1.3])
def test_a_budget_in_bytes_is_kept_by_the_file_and_used(small: Path, tmp_path: Path, share: float) -> None:
    plain = export_checkpoint(small, tmp_path / "plain", vision="fp16").decoder_path.stat().st_size
    limit = int(share * plain)
    bundle = export_small(small, tmp_path / "b", Budget(nbytes=limit))
    assert 0.95 * limit < bundle.decoder_path.stat().st_size <= limit
    with AyaVision.load(bundle.directory) as model:
        assert model.ask("What?", max_tokens=3) is not None


def test_what_a_user_wants_stays(small: Path, tmp_path: Path) -> None:
    recipe = Recipe.parse("q4_k_m", ["attn_k=q8_0", r"blk\.1\.ffn_up=f16"], "q5_k")
    bundle = export_small(small, tmp_path / "b", Budget(bits_per_weight=6.4), quant=recipe)
    types = stored(bundle).types
    assert types["token_embd.weight"] == "Q5_K"
    assert {types[f"blk.{layer}.attn_k.weight"] for layer in range(LAYERS)} == {"Q8_0"}
    assert types["blk.1.ffn_up.weight"] == "F16"
    assert stored(bundle).data_bits <= 6.4
    assert bundle.manifest.formats.adjustments[:3] == (
        "attn_k=q8_0",
        r"blk\.1\.ffn_up=f16",
        "output=q5_k",
    )


def test_a_budget_that_cannot_be_kept_is_an_error_and_another_one_begins_anew(
    small: Path, tmp_path: Path
) -> None:
    with pytest.raises(InvalidOptionError, match=r"its least is [\d.]+ MB \(4\.\d\d bits per weight\)"):
        export_small(small, tmp_path / "b", Budget(bits_per_weight=4))
    assert list(tmp_path.iterdir()) == []
    assert stored(export_small(small, tmp_path / "b", Budget(bits_per_weight=4.4))).data_bits <= 4.4
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


@pytest.mark.parametrize(
    "text",
    [
        {"hidden_size": 64, "intermediate_size": 96},
        {"hidden_size": 320, "intermediate_size": 256, "num_attention_heads": 5, "num_key_value_heads": 1},
        {"hidden_size": 256, "intermediate_size": 1280},
        {"hidden_size": 256, "intermediate_size": 1312},
    ],
    ids=["no whole blocks", "some whole blocks", "two parts of the MLP", "a part without whole blocks"],
)
@pytest.mark.parametrize("fmt", ["q4_k_m", "q6_k"])
def test_decoders_of_any_width_are_exported(
    tiny: Path, tmp_path: Path, text: dict[str, int], fmt: DecoderFormat
) -> None:
    shape = Shape(text={**text, "num_hidden_layers": 2}, vision={"num_hidden_layers": 1})
    checkpoint = write_random_checkpoint(tmp_path / "c", tiny, shape)
    bundle = export_small(checkpoint, tmp_path / "b", quant=fmt)
    plain = export_checkpoint(checkpoint, tmp_path / "plain", quant=fmt, vision="fp16")
    assert bundle.decoder_path.stat().st_size <= plain.decoder_path.stat().st_size
    with AyaVision.load(bundle.directory) as model:
        assert model.ask("What?", max_tokens=2) is not None


def test_errors_can_be_compensated_within_all_columns(tiny: Path, tmp_path: Path) -> None:
    shape = Shape(text={**SMALL.text, "intermediate_size": 512}, vision=SMALL.vision)
    checkpoint = write_random_checkpoint(tmp_path / "c", tiny, shape)
    bundles = [
        export_small(checkpoint, tmp_path / str(block), gptq=GptqOptions(block=block, tokens=FEW))
        for block in (0, 512, 256)
    ]
    whole, widest, narrow = (bundle.decoder_path.read_bytes() for bundle in bundles)
    assert whole == widest
    assert whole != narrow


@pytest.mark.parametrize("block", [-256, 100, 300])
def test_blocks_that_are_no_whole_super_blocks_are_refused_first(
    small: Path, tmp_path: Path, block: int
) -> None:
    with pytest.raises(InvalidOptionError, match=f"multiples of 256, not {block}"):
        export_checkpoint(
            open_checkpoint(small), tmp_path / "b", effort="best", gptq=GptqOptions(block=block)
        )
    assert list(tmp_path.iterdir()) == []
