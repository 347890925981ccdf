"""Merging the decoder with a language model while it is exported: bytes, formulas, faults, and what is told of it."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from language_models import noise, write_language_model, write_merged_checkpoint
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from ayaedge import CheckpointError, ExportError, InvalidOptionError, read_bundle
from ayaedge.bundle import Bundle, check_hashes, hash_file
from ayaedge_export import (
    Effort,
    MergeMethod,
    MergeOptions,
    export_checkpoint,
    merge_checkpoint,
    merge_like,
    plan_export,
)
from ayaedge_export.calibration.imatrix import collect
from ayaedge_export.calibration.text import BUILTIN
from ayaedge_export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from ayaedge_export.checkpoint.tensors import slabs
from ayaedge_export.decoder import gguf_writer
from ayaedge_export.decoder.gguf_writer import write_decoder
from ayaedge_export.evaluation.evaluate import evaluate_bundle
from ayaedge_export.evaluation.reference import Reference
from ayaedge_export.evaluation.verify import verify_bundle
from ayaedge_export.exporter import check_plans, plan_sweep
from ayaedge_export.merge.merged_tensors import MergedTensors
from ayaedge_export.merge.methods import METHODS, PARALLEL

EMBEDDINGS = "language_model.model.embed_tokens.weight"
NORM = "language_model.model.layers.1.input_layernorm.weight"
QUERY = "language_model.model.layers.2.self_attn.q_proj.weight"
IMAGE_ROWS = (2040, 2041, 2042, 2043)


@pytest.fixture(scope="module")
def checkpoint(tiny: Path) -> Checkpoint:
    return open_checkpoint(tiny)


@pytest.fixture(scope="module")
def base(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with the checkpoint's whole tokenizer."""
    return write_language_model(tmp_path_factory.mktemp("base") / "aya-base", tiny, noise(1), without=())


@pytest.fixture(scope="module")
def text_base(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base in two files and float32, whose tokenizer knows no images."""
    place = tmp_path_factory.mktemp("text-base") / "aya-text"
    return write_language_model(place, tiny, noise(2), dtype="float32", shards=2)


def decoder_bytes(directory: Path | Checkpoint, target: Path, merge: MergeOptions | None = None) -> bytes:
    """What an export writes as decoder.gguf, behind the header."""
    plan = plan_export(directory, quant="q4_k_m", vision="fp32", merge=merge)
    embeddings = write_decoder(plan, target, threads=2)
    return target.read_bytes()[embeddings.offset :]


def weights_of(directory: Path) -> dict[str, NDArray[np.float64]]:
    """All tensors of a plain model as PyTorch reads them, under the checkpoint's names."""
    stored: dict[str, Any] = {}
    for file in directory.glob("*.safetensors"):
        stored |= load_file(file)
    return {f"language_model.{name}": tensor.double().numpy() for name, tensor in stored.items()}


@pytest.mark.parametrize("method", METHODS)
def test_weight_0_gives_the_bytes_of_the_base(
    tiny: Path, base: Path, tmp_path: Path, method: MergeMethod
) -> None:
    theirs = weights_of(base)
    alone = write_merged_checkpoint(tmp_path / "c", tiny, lambda name: theirs[name].astype(np.float32))
    ancestor = tiny if method == "task-arithmetic" else None
    merged = decoder_bytes(tiny, tmp_path / "merged", MergeOptions(base, 0, method, ancestor))
    assert merged == decoder_bytes(alone, tmp_path / "alone")
    assert merged != decoder_bytes(tiny, tmp_path / "own")


@pytest.mark.parametrize("method", ["linear", "slerp"])
def test_weight_1_gives_the_bytes_of_the_checkpoint(
    tiny: Path, base: Path, tmp_path: Path, method: MergeMethod
) -> None:
    merged = decoder_bytes(tiny, tmp_path / "merged", MergeOptions(base, 1, method))
    assert merged == decoder_bytes(tiny, tmp_path / "own")


def test_an_export_with_a_merge_is_that_of_the_merged_checkpoint(
    tiny: Path, checkpoint: Checkpoint, base: Path, tmp_path: Path
) -> None:
    """PyTorch, which stores bfloat16, rounds as we do; the mean itself is computed in double precision here.

    With 5 / 8 that is exact, so that both meet ties as ties.
    """
    theirs = weights_of(base)

    def mean(name: str) -> NDArray[np.float32]:
        return (0.625 * checkpoint.tensors.read(name).astype(np.float64) + 0.375 * theirs[name]).astype(
            np.float32
        )

    third = open_checkpoint(write_merged_checkpoint(tmp_path / "c", tiny, mean))
    merged = merge_checkpoint(checkpoint, MergeOptions(base, 0.625))
    differing = 0
    for name in checkpoint.config.text.tensors:
        expected, found = third.tensors.read(name), merged.tensors.read(name)
        # float32's own rounding: a step of bfloat16 next to a tie, and what is left where both cancel
        assert np.allclose(found, expected, rtol=2**-7, atol=2**-22 * np.abs(expected).max())
        differing += np.count_nonzero(found != expected)
    assert differing < 20  # of 2.6 million
    again = write_merged_checkpoint(tmp_path / "d", tiny, merged.tensors.read)
    assert decoder_bytes(tiny, tmp_path / "merged", MergeOptions(base, 0.625)) == decoder_bytes(
        again, tmp_path / "again"
    )


def test_slerp_goes_along_the_arc_of_each_tensor(checkpoint: Checkpoint, base: Path) -> None:
    merged = merge_checkpoint(checkpoint, MergeOptions(base, 0.3, "slerp"))
    theirs = weights_of(base)
    for name in (QUERY, EMBEDDINGS):
        v, b = checkpoint.tensors.read(name).astype(np.float64), theirs[name]
        cosine = float((v * b).sum() / np.linalg.norm(v) / np.linalg.norm(b))
        assert cosine < PARALLEL
        angle = np.arccos(cosine)
        expected = (np.sin(0.3 * angle) * v + np.sin(0.7 * angle) * b) / np.sin(angle)
        found = merged.tensors.read(name)
        assert np.allclose(found, expected, rtol=2**-8, atol=1e-9)
        straight = merge_checkpoint(checkpoint, MergeOptions(base, 0.3)).tensors.read(name)
        assert np.linalg.norm(found) > 1.005 * np.linalg.norm(straight)


def test_slerp_of_nearly_parallel_tensors_is_linear(
    tiny: Path, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    def nearly(name: str, weights: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.zeros_like(weights) if name == NORM else noise(3, 0.01)(name, weights)

    near = write_language_model(tmp_path / "near", tiny, nearly)
    straight, arc = (
        merge_checkpoint(checkpoint, MergeOptions(near, 0.6, method)) for method in ("linear", "slerp")
    )
    for name in (QUERY, NORM):
        assert np.array_equal(straight.tensors.read(name), arc.tensors.read(name))
        assert not np.array_equal(straight.tensors.read(name), checkpoint.tensors.read(name))


def test_task_arithmetic_adds_what_was_learned_since_the_ancestor(
    tiny: Path, checkpoint: Checkpoint, base: Path, tmp_path: Path
) -> None:
    ancestor = write_language_model(tmp_path / "ancestor", tiny, noise(4), without=())
    merged = merge_checkpoint(checkpoint, MergeOptions(base, 0.5, "task-arithmetic", ancestor))
    theirs, before = weights_of(base), weights_of(ancestor)
    for name in (QUERY, NORM):
        expected = theirs[name] + 0.5 * (checkpoint.tensors.read(name).astype(np.float64) - before[name])
        assert np.allclose(merged.tensors.read(name), expected, rtol=2**-8, atol=1e-6)
    since_base = merge_checkpoint(checkpoint, MergeOptions(base, 0.5, "task-arithmetic", base))
    linear = merge_checkpoint(checkpoint, MergeOptions(base, 0.5))
    assert np.array_equal(since_base.tensors.read(QUERY), linear.tensors.read(QUERY))


def test_equal_weights_stay_what_they_are(tiny: Path, checkpoint: Checkpoint, tmp_path: Path) -> None:
    twin = write_language_model(tmp_path / "twin", tiny, lambda _, weights: weights)
    for method in ("linear", "slerp"):
        merged = merge_checkpoint(checkpoint, MergeOptions(twin, 0.37, method))
        assert np.array_equal(merged.tensors.read(EMBEDDINGS), checkpoint.tensors.read(EMBEDDINGS))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("weight", [0, 0.6, 1])
def test_tokens_that_the_base_lacks_keep_their_embeddings(
    checkpoint: Checkpoint, text_base: Path, base: Path, weight: float, method: MergeMethod
) -> None:
    ancestor = base if method == "task-arithmetic" else None
    merged = merge_checkpoint(checkpoint, MergeOptions(text_base, weight, method, ancestor))
    own, found = checkpoint.tensors.read(EMBEDDINGS), merged.tensors.read(EMBEDDINGS)
    changed = np.flatnonzero((own != found).any(axis=1))
    assert not set(IMAGE_ROWS) & set(changed.tolist())
    assert len(changed) == (2044 if weight < 1 or ancestor else 0)
    for start, stop in ((2039, 2042), (2041, 2048), (2042, 2043)):
        assert np.array_equal(merged.tensors.read_rows(EMBEDDINGS, start, stop), found[start:stop])
    assert "4 added tokens that it lacks keep their embeddings: <|START_OF_IMG|>, " in merged.text


def test_a_token_that_is_another_one_in_the_base_keeps_its_embedding(
    tiny: Path, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """As between Aya Expanse and Aya Vision 32B, whose image markers stand where others were."""
    other = write_language_model(tmp_path / "base", tiny, noise(5), without=())
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (other / name).read_text("utf-8")
        (other / name).write_text(text.replace("<|IMG_PATCH|>", "<|EXTRA_0_TOKEN|>"), "utf-8")
    assert merge_checkpoint(checkpoint, MergeOptions(other, 0.5)).base.foreign_rows == (2043,)


def test_the_numbers_of_the_base_may_have_another_format(checkpoint: Checkpoint, text_base: Path) -> None:
    merged = merge_checkpoint(checkpoint, MergeOptions(text_base, 0.5))
    found = merged.tensors.read(QUERY)
    assert not np.any(found.view(np.uint32) & np.uint32(0xFFFF))  # the checkpoint's format: bfloat16
    exact = merge_checkpoint(checkpoint, MergeOptions(text_base, 0)).tensors.read(QUERY)
    assert np.array_equal(exact, weights_of(text_base)[QUERY])  # the base's own float32


@pytest.mark.parametrize("method", METHODS)
def test_rows_do_not_depend_on_which_are_asked_for(
    checkpoint: Checkpoint, base: Path, text_base: Path, method: MergeMethod
) -> None:
    ancestor = text_base if method == "task-arithmetic" else None
    merged = merge_checkpoint(checkpoint, MergeOptions(base, 0.4, method, ancestor))
    whole = merged.tensors.read(EMBEDDINGS)
    assert np.array_equal(merged.tensors.read_rows(EMBEDDINGS, 100, 131), whole[100:131])
    assert merged.tensors.count_not_finite(EMBEDDINGS, 0, 2048) == 0


def test_the_vision_tower_is_the_checkpoints(checkpoint: Checkpoint, base: Path) -> None:
    merged = merge_checkpoint(checkpoint, MergeOptions(base, 0.0))
    for name in checkpoint.config.vision.tensors:
        assert np.array_equal(merged.tensors.read(name), checkpoint.tensors.read(name))


def test_all_that_does_not_fit_is_named_at_once(tiny: Path, tmp_path: Path) -> None:
    wrong = {"rope_theta": 10000.0, "logit_scale": 0.25, "layer_norm_eps": 1e-6, "sliding_window": 32}
    other = write_language_model(tmp_path / "other", tiny, noise(6), text=wrong | {"layer_types": None})
    settings = json.loads((other / "tokenizer_config.json").read_text("utf-8"))
    (other / "adapter_config.json").write_text("{}")
    data = json.loads((other / "tokenizer.json").read_text("utf-8"))
    vocabulary = data["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (other / "tokenizer.json").write_text(json.dumps(data), "utf-8")
    (other / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    with pytest.raises(CheckpointError) as raised:
        plan_export(tiny, merge=MergeOptions(other, 0.5))
    told = str(raised.value)
    for fault in (
        "other cannot be merged into the decoder of",
        "its rope_theta is 10000.0, the checkpoint's is 50000.0",
        "its logit_scale is 0.25, the checkpoint's is 1.0",
        "its layer_norm_eps is 1e-06, the checkpoint's is 1e-05",
        "its sliding_window is 32, the checkpoint's is 64",
        "adapter_config.json next to the weights",
        "2 of the checkpoint's tokens are not there under the same id, such as 'a'",
    ):
        assert fault in told


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"num_hidden_layers": 4, "layer_types": None}, "its num_hidden_layers is 4, the checkpoint's is 5"),
        ({"hidden_size": 128, "head_dim": 32}, "its hidden_size is 128, the checkpoint's is 256"),
        ({"num_key_value_heads": 4}, "its num_key_value_heads is 4, the checkpoint's is 2"),
        ({"layer_types": ["sliding_attention"] * 5}, "other layers than the checkpoint's slide"),
        ({"model_type": "cohere"}, "its model_type is 'cohere', the checkpoint's is 'cohere2'"),
        (
            {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
            "architecture 'llama' (LlamaForCausalLM)",
        ),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantized by gptq (4 bits)"),
        ({"vocab_size": 4096}, "its vocab_size is 4096, the checkpoint's is 2048"),
    ],
)
def test_another_architecture_is_refused(
    tiny: Path, base: Path, tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    config = json.loads((base / "config.json").read_text("utf-8"))
    other = tmp_path / "other"
    other.mkdir()
    for path in base.iterdir():
        (other / path.name).symlink_to(path)
    (other / "config.json").unlink()
    (other / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(CheckpointError) as raised:
        plan_export(tiny, merge=MergeOptions(other, 0.5))
    assert told in str(raised.value)


def test_tensors_of_the_base_are_held_against_the_checkpoints_shapes(tiny: Path, tmp_path: Path) -> None:
    other = write_language_model(tmp_path / "other", tiny, noise(7))
    tensors = load_file(other / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"] = tensors["model.layers.0.mlp.up_proj.weight"][
        :-1
    ].contiguous()
    del tensors["model.norm.weight"]
    tensors["model.layers.0.self_attn.q_proj.bias"] = tensors["model.layers.0.input_layernorm.weight"].clone()
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError) as raised:
        plan_export(tiny, merge=MergeOptions(other, 0.5))
    for fault in (
        "tensor model.layers.0.mlp.up_proj.weight has shape (511, 256) instead of (512, 256)",
        "tensor language_model.model.norm.weight (256) is missing",
        "tensor model.layers.0.self_attn.q_proj.bias (256) is not part of this architecture",
    ):
        assert fault in str(raised.value)


def test_a_head_that_is_not_the_embeddings_is_refused(tiny: Path, tmp_path: Path) -> None:
    other = write_language_model(tmp_path / "other", tiny, noise(8))
    tensors = load_file(other / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    assert plan_export(tiny, merge=MergeOptions(other, 0.5))
    tensors["lm_head.weight"] += 1
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lm_head\.weight differs from the embeddings"):
        plan_export(tiny, merge=MergeOptions(other, 0.5))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"weight": 1.5}, "merge weight must be a number from 0 to 1, not 1.5"),
        ({"weight": float("nan")}, "merge weight must be a number from 0 to 1"),
        ({"weight": True}, "merge weight must be a number from 0 to 1"),
        ({"method": "ties"}, "merge method must be one of linear, slerp, task-arithmetic"),
        ({"method": "task-arithmetic"}, "name that language model as merge ancestor"),
        ({"ancestor": "x"}, "only task-arithmetic has a merge ancestor"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    tiny: Path, base: Path, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(InvalidOptionError, match=told):
        plan_export(tiny, merge=MergeOptions(**{"base": base, "weight": 0.5, **options}))


def test_a_merge_is_not_merged_again(checkpoint: Checkpoint, base: Path) -> None:
    merged = merge_checkpoint(checkpoint, MergeOptions(base, 0.5))
    with pytest.raises(InvalidOptionError, match="merged with aya-base already"):
        merge_checkpoint(merged, MergeOptions(base, 0.5))


def test_the_manifest_says_what_was_merged(tiny: Path, text_base: Path, base: Path, tmp_path: Path) -> None:
    options = MergeOptions(text_base, 0.25, "task-arithmetic", base)
    counts: list[int] = []
    bundle = export_checkpoint(
        tiny, tmp_path / "b", vision="fp32", merge=options, advance=lambda count, _: counts.append(count)
    )
    assert check_hashes(bundle) == []
    merge = read_bundle(bundle.directory).manifest.source.merge
    assert merge is not None
    assert (merge.method, merge.weight, merge.base.name) == ("task-arithmetic", 0.25, "aya-text")
    assert merge.base.license == "cc-by-nc-4.0"
    assert merge.ancestor is not None
    assert merge.ancestor.name == "aya-base"
    shards = sorted(text_base.glob("*.safetensors"))
    assert len(shards) == 2
    assert {name: info.sha256 for name, info in merge.base.files.items()} == {
        path.name: hash_file(path) for path in shards
    }
    assert sum(counts) == plan_export(tiny, merge=options).work_bytes
    assert sum(counts) > plan_export(tiny).work_bytes


def test_a_bundle_without_a_merge_says_nothing_of_one(exact_bundle: Bundle) -> None:
    assert "merge" not in json.loads((exact_bundle.directory / "manifest.json").read_text("utf-8"))["source"]


def test_an_interrupted_merge_goes_on_at_its_own_weight_alone(
    tiny: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish, written = gguf_writer.PieceWriter.finish, []

    def watched(self: gguf_writer.PieceWriter, name: str, *, fails: bool) -> None:
        written.append(name)
        if fails and name == "blk.2.attn_k.weight":
            raise OSError("gone")
        finish(self, name)

    def export(weight: float, target: str = "b", *, fails: bool = False) -> str:
        written.clear()
        monkeypatch.setattr(gguf_writer.PieceWriter, "finish", partialmethod(watched, fails=fails))
        merge = MergeOptions(base, weight)
        bundle = export_checkpoint(tiny, tmp_path / target, vision="fp32", merge=merge, force=True)
        return bundle.manifest.files["decoder.gguf"].sha256

    expected = {weight: export(weight, f"undisturbed-{weight}") for weight in (0.3, 0.6)}
    for weight, tensors in ((0.3, 1 + 42), (0.6, 42 - 20)):
        with pytest.raises(ExportError, match="goes on from there"):
            export(0.6, fails=True)
        assert export(weight) == expected[weight]
        assert len(written) == tensors


def test_a_damaged_base_is_named_and_nothing_is_left(tiny: Path, tmp_path: Path) -> None:
    def broken(name: str, weights: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.full_like(weights, np.nan) if name == NORM else weights

    other = write_language_model(tmp_path / "other", tiny, broken)
    with pytest.raises(CheckpointError, match=r"other is damaged.*\n?.*layers\.1\.input_layernorm\.weight"):
        export_checkpoint(tiny, tmp_path / "b", vision="fp32", merge=MergeOptions(other, 0.5))
    assert {path.name for path in tmp_path.iterdir()} == {"other"}


def test_a_merge_that_its_format_cannot_hold_is_an_error(tiny: Path, tmp_path: Path) -> None:
    stored = load_file(tiny / "model.safetensors")
    half = write_merged_checkpoint(tmp_path / "half", tiny, open_checkpoint(tiny).tensors.read, "float16")
    assert stored.keys() == load_file(half / "model.safetensors").keys()
    huge = write_language_model(
        tmp_path / "huge", tiny, lambda name, w: w + (1e6 if name == QUERY else 0), dtype="float32"
    )
    with pytest.raises(CheckpointError, match=r"q_proj\.weight.*values"):
        export_checkpoint(half, tmp_path / "b", vision="fp32", merge=MergeOptions(huge, 0.5))
    assert not (tmp_path / "b").exists()


def test_a_sweep_is_a_bundle_for_each_weight(tiny: Path, base: Path, tmp_path: Path) -> None:
    plan = plan_export(tiny, vision="fp32", merge=MergeOptions(base, 0.3))
    names = [one.target.name for one in plan_sweep(plan, (0.3, 0.6, 0.6, 1))]
    assert names == [f"tiny-aya-vision-linear-{weight}-q4_k_m-fp32" for weight in (0.3, 0.6, 1.0)]
    plans = plan_sweep(plan, (0.3, 0.6), tmp_path / "s")
    assert [one.target for one in plans] == [tmp_path / "s-0.3", tmp_path / "s-0.6"]
    check_plans(plans)
    (tmp_path / "s-0.6").mkdir()
    with pytest.raises(ExportError, match=r"s-0\.6 exists"):
        check_plans(plans)
    first, second = (one.checkpoint.tensors.read(QUERY) for one in plans)
    assert not np.array_equal(first, second)
    with pytest.raises(InvalidOptionError, match="only a merge has weights"):
        plan_sweep(plan_export(tiny), (0.3,))


@pytest.fixture(scope="module")
def merged_bundle(tiny: Path, text_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    target = tmp_path_factory.mktemp("merged") / "b"
    return export_checkpoint(
        tiny, target, quant="f32", vision="fp32", merge=MergeOptions(text_base, 0.8, "slerp")
    )


def test_the_reference_of_a_merge_is_the_merged_checkpoints(
    tiny: Path, checkpoint: Checkpoint, text_base: Path, tmp_path: Path
) -> None:
    merged = merge_checkpoint(checkpoint, MergeOptions(text_base, 0.5))
    third = Reference(write_merged_checkpoint(tmp_path / "c", tiny, merged.tensors.read))
    ids = list(range(1, 60))
    assert np.array_equal(Reference.of(merged).logits(ids), third.logits(ids))


@pytest.mark.slow
def test_a_merged_bundle_is_verified_against_the_same_merge(
    checkpoint: Checkpoint, text_base: Path, merged_bundle: Bundle
) -> None:
    report = verify_bundle(merged_bundle, merge_like(merged_bundle, checkpoint, text_base), trace=True)
    assert report.passed, report.to_dict()


def test_a_merged_bundle_is_compared_with_nothing_but_the_same_merge(
    tiny: Path, checkpoint: Checkpoint, base: Path, merged_bundle: Bundle
) -> None:
    with pytest.raises(InvalidOptionError, match=r"merged with aya-text .*name the merge base"):
        verify_bundle(merged_bundle, tiny)
    with pytest.raises(CheckpointError, match="is not the aya-text that is meant"):
        merge_like(merged_bundle, checkpoint, base)


def test_a_merged_bundle_is_evaluated_against_the_same_merge(
    tiny: Path,
    checkpoint: Checkpoint,
    text_base: Path,
    merged_bundle: Bundle,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("What number is at the bottom left?")
    same = merge_like(merged_bundle, checkpoint, text_base)
    near = evaluate_bundle(merged_bundle, same, text=text, images=False)
    assert near.overall.mean_kl < 1e-4
    assert not caplog.records
    far = evaluate_bundle(merged_bundle, tiny, text=text, images=False)
    assert far.overall.mean_kl > 100 * near.overall.mean_kl
    assert "compared with tiny-aya-vision alone" in caplog.text


def test_a_bundle_without_a_merge_has_no_base_to_compare_with(
    checkpoint: Checkpoint, base: Path, exact_bundle: Bundle
) -> None:
    with pytest.raises(InvalidOptionError, match="was not merged"):
        merge_like(exact_bundle, checkpoint, base)


def test_threads_find_the_arc_of_a_tensor_once(
    checkpoint: Checkpoint, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []
    measure = MergedTensors._measure

    def watched(self: MergedTensors, name: str) -> Any:
        measured.append(name)
        return measure(self, name)

    monkeypatch.setattr(MergedTensors, "_measure", watched)
    monkeypatch.setattr("ayaedge_export.decoder.gguf_writer.slabs", lambda s: small_slabs(s))
    decoder_bytes(checkpoint, tmp_path / "d", MergeOptions(base, 0.5, "slerp"))
    assert sorted(measured) == sorted(checkpoint.config.text.tensors)


def small_slabs(shape: tuple[int, ...]) -> Any:
    """Many slabs of few rows, so that threads meet at each tensor."""
    if len(shape) == 1:
        return slabs(shape)
    return ((start, min(start + 64, shape[0])) for start in range(0, shape[0], 64))


def test_a_merge_keeps_the_scale_that_was_asked_for(tiny: Path, base: Path) -> None:
    plan = plan_export(tiny, merge=MergeOptions(base, 0.5), logit_scale=0.5)
    assert plan.checkpoint.config.text.logit_scale == 0.5
    assert "linear-0.5" in plan.target.name
    assert replace(plan).to_dict()["merge"] == {"method": "linear", "weight": 0.5}


def test_an_importance_matrix_is_the_merged_decoders(
    tiny: Path, checkpoint: Checkpoint, base: Path, tmp_path: Path
) -> None:
    merged = merge_checkpoint(checkpoint, MergeOptions(base, 0.5))
    third = open_checkpoint(write_merged_checkpoint(tmp_path / "c", tiny, merged.tensors.read))
    text = BUILTIN.only("en", "ja")
    ours, theirs, own = (collect(one, text, max_tokens=300) for one in (merged, third, checkpoint))
    assert ours.digest() == theirs.digest() != own.digest()


@pytest.mark.slow
@pytest.mark.parametrize("effort", ["calibrated", "best"])
@pytest.mark.parametrize("method", ["linear", "slerp"])
def test_every_effort_gives_the_bytes_of_the_merged_checkpoint(
    tiny: Path, base: Path, tmp_path: Path, effort: Effort, method: MergeMethod
) -> None:
    options = MergeOptions(base, 0.6, method)
    merged = merge_checkpoint(open_checkpoint(tiny), options)
    third = write_merged_checkpoint(tmp_path / "c", tiny, merged.tensors.read)
    ours = export_checkpoint(tiny, tmp_path / "b", vision="fp32", effort=effort, merge=options, threads=2)
    theirs = export_checkpoint(third, tmp_path / "d", vision="fp32", effort=effort, threads=2)
    starts = [bundle.manifest.decoder.embeddings.offset for bundle in (ours, theirs)]
    first, second = (
        bundle.decoder_path.read_bytes()[start:] for bundle, start in zip((ours, theirs), starts, strict=True)
    )
    assert first == second


@pytest.mark.slow
def test_a_traced_bundle_may_be_merged(tiny: Path, base: Path, tmp_path: Path) -> None:
    bundle = export_checkpoint(tiny, tmp_path / "b", trace=True, merge=MergeOptions(base, 0.5))
    assert bundle.manifest.source.merge is not None
    assert bundle.manifest.formats.vision == "fp32"
