"""Bundles of every shape against transformers."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from ayaedge.bundle import Bundle, read_bundle
from ayaedge.decoder.decoder import Decoder
from ayaedge.decoder.options import DecoderOptions
from ayaedge.text.prompt import Prompt
from ayaedge_export.evaluation.reference import Reference
from ayaedge_export.evaluation.verify import DECODER_KL, prompt_logits, verify_bundle
from ayaedge_export.exporter import export_checkpoint
from ayaedge_export.resume.staged_bundle import write_manifest
from ayaedge_quant.kernels import kl_divergence
from random_checkpoint import Shape, rename_tensors, write_random_checkpoint

SHAPES = {
    "cohere2": Shape(),
    "cohere": Shape(text_type="cohere", seed=1),
    "cohere, 64 layers with query and key norms": Shape(
        text_type="cohere", text={"num_hidden_layers": 64, "use_qk_norm": True, "initializer_range": 0.05}, seed=2
    ),
    "odd vision": Shape(
        vision={"num_hidden_layers": 3, "image_size": 112, "patch_size": 14, "num_attention_heads": 2}, seed=3
    ),
    "image 96, patch 16, three vision layers": Shape(
        vision={"num_hidden_layers": 3, "image_size": 96, "patch_size": 16, "hidden_size": 40, "intermediate_size": 52,
                "num_attention_heads": 5}, adapter_size=34, seed=4,
    ),
    "downsample 4": Shape(vision={"image_size": 64, "patch_size": 8}, downsample=4, seed=5),
    "bf16 in shards": Shape(dtype="bfloat16", shard_size="100KB", seed=6),
    "fp16": Shape(dtype="float16", seed=7),
    "other window pattern": Shape(
        text={"layer_types": ["full_attention"] + ["sliding_attention"] * 3 + ["full_attention"] * 2}, seed=8
    ),
    "one key head, no grouping in vision": Shape(text={"num_key_value_heads": 1}, seed=9),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_an_exact_bundle_of_any_shape_passes_verification(name: str, tiny: Path, tmp_path: Path) -> None:
    checkpoint = write_random_checkpoint(tmp_path / "checkpoint", tiny, SHAPES[name])
    bundle = export_checkpoint(checkpoint, tmp_path / "bundle", quant="f32", vision="fp32")
    report = verify_bundle(bundle, checkpoint)
    assert report.passed, report
    assert read_bundle(bundle.directory).manifest.parity == {c.name: c.value for c in report.checks}


def test_names_with_a_leading_model_mean_the_same(tiny: Path, tmp_path: Path) -> None:
    checkpoint = write_random_checkpoint(tmp_path / "c", tiny, Shape())
    plain = export_checkpoint(checkpoint, tmp_path / "plain", quant="f16", vision="fp32")
    rename_tensors(checkpoint, "model.")
    prefixed = export_checkpoint(checkpoint, tmp_path / "prefixed", quant="f16", vision="fp32")
    assert prefixed.manifest.files == plain.manifest.files


@pytest.mark.parametrize("fmt", ["f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m"])
def test_every_format_of_the_trained_decoder_passes_verification(
    fmt: str, tiny: Path, tmp_path: Path
) -> None:
    bundle = export_checkpoint(tiny, tmp_path / "b", quant=fmt, vision="fp16")  # type: ignore[arg-type]
    report = verify_bundle(bundle, tiny)
    assert report.passed, report


@pytest.fixture(scope="module")
def random_decoder(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Reference]:
    """Random weights are sensitive to every detail of the graph; the trained checkpoint forgives some."""
    directory = tmp_path_factory.mktemp("random")
    checkpoint = write_random_checkpoint(
        directory / "c", tiny, Shape(text={"initializer_range": 0.3}, seed=11)
    )
    bundle = export_checkpoint(checkpoint, directory / "b", quant="f32", vision="fp32")
    return bundle, Reference(checkpoint)


EXACT = DecoderOptions(cache_type="f32", all_logits=True)
TEXT = tuple(int(i) for i in np.random.default_rng(5).integers(300, 1900, 200))


def kl_of(bundle: Bundle, reference: Reference, cache: str = "f32") -> float:
    options = DecoderOptions(cache_type=cache, all_logits=True)  # type: ignore[arg-type]
    with Decoder(bundle.decoder_path, bundle.manifest, options) as decoder:
        ours = prompt_logits(decoder, Prompt(TEXT, ()), None, patch=-1)
    return float(kl_divergence(reference.logits(TEXT), ours).kl.mean())


def test_text_beyond_the_window_is_exact(random_decoder: tuple[Bundle, Reference]) -> None:
    bundle, reference = random_decoder
    assert len(TEXT) > 4 * (bundle.manifest.decoder.sliding_window or 0)
    assert kl_of(bundle, reference) <= DECODER_KL["f32"]


def test_scaled_logits_are_those_of_coheres_own_decoder_class(
    random_decoder: tuple[Bundle, Reference],
) -> None:
    """It multiplies by the scale in config.json, as in the training of the released models; Aya Vision's does not."""
    import torch
    from transformers import Cohere2ForCausalLM

    bundle, reference = random_decoder
    network = reference.model
    own = Cohere2ForCausalLM(network.config.text_config).eval()
    own.model.load_state_dict(network.model.language_model.state_dict())
    own.tie_weights()
    ids = torch.tensor([list(TEXT)])
    with torch.no_grad():
        expected = own(input_ids=ids, use_cache=False).logits[0].numpy()
        unscaled = network(input_ids=ids, use_cache=False).logits[0].numpy()
    with Decoder(bundle.decoder_path, bundle.manifest, EXACT) as decoder:
        ours = prompt_logits(decoder, Prompt(TEXT, ()), None, patch=-1)
    largest = np.abs(expected).max()
    assert np.abs(ours - expected).max() <= 1e-3 * largest
    assert np.abs(reference.logits(TEXT) - expected).max() <= 1e-4 * largest
    assert np.abs(ours - unscaled).max() > largest


def test_the_default_cache_costs_little(random_decoder: tuple[Bundle, Reference]) -> None:
    assert kl_of(*random_decoder, cache="f16") <= 1e-3


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("cohere2.attention.sliding_window", 4096),
        ("cohere2.attention.sliding_window", 47),
        ("cohere2.rope.freq_base", 10000.0),
        ("cohere2.logit_scale", 1.0),
        ("cohere2.attention.layer_norm_epsilon", 1e-2),
    ],
)
def test_the_bar_catches_a_wrong_figure(
    random_decoder: tuple[Bundle, Reference], tmp_path: Path, key: str, value: float
) -> None:
    bundle, reference = random_decoder
    copy = tmp_path / "copy"
    shutil.copytree(bundle.directory, copy)
    reader = gguf.GGUFReader(copy / "decoder.gguf", "r+")
    field = reader.fields[key]
    field.parts[field.data[0]][0] = value
    reader.data.flush()
    del reader, field
    both = {"cohere2.attention.sliding_window": "sliding_window", "cohere2.logit_scale": "logit_scale"}
    said = {both[key]: value} if key in both else {}  # an exporter that errs writes the same to the manifest
    decoder = replace(bundle.manifest.decoder, **said)  # type: ignore[arg-type]
    write_manifest(copy, replace(bundle.manifest, decoder=decoder))
    assert kl_of(read_bundle(copy), reference) > 2 * DECODER_KL["f32"]


def test_the_bar_catches_a_wrong_pattern(random_decoder: tuple[Bundle, Reference], tmp_path: Path) -> None:
    bundle, reference = random_decoder
    copy = tmp_path / "copy"
    shutil.copytree(bundle.directory, copy)
    reader = gguf.GGUFReader(copy / "decoder.gguf", "r+")
    field = reader.fields["cohere2.attention.sliding_window_pattern"]
    for index in field.data:
        field.parts[index][0] = True
    reader.data.flush()
    del reader, field
    write_manifest(copy, bundle.manifest)
    assert kl_of(read_bundle(copy), reference) > 2 * DECODER_KL["f32"]
