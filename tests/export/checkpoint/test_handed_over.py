"""What people hand over in place of a plain checkpoint: each is taken as transformers takes it, or named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ayaedge import CheckpointError
from ayaedge_export.checkpoint.checkpoint import open_checkpoint
from ayaedge_export.plan import default_name
from random_checkpoint import Shape, write_random_checkpoint

NORM = "language_model.model.norm.weight"
EMBEDDINGS = "language_model.model.embed_tokens.weight"
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def small(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("small") / "c", tiny, Shape(dtype="float16"))


@pytest.fixture(scope="module")
def small_shards(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(
        tmp_path_factory.mktemp("s") / "c", tiny, Shape(shard_size="100KB", seed=1)
    )


@pytest.fixture
def checkpoint(small: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small, tmp_path / "c"))


@pytest.fixture
def shards(small_shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_shards, tmp_path / "c"))


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads(path.read_text("utf-8"))
    change(data)
    path.write_text(json.dumps(data), "utf-8")


def edit_tensors(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")


def refusal(directory: Path | str) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(directory)
    return str(caught.value)


def shard_files(directory: Path) -> list[Path]:
    return sorted(directory.glob("model-*-of-*.safetensors"))


# Weights: which of several files


def test_a_single_file_beside_the_shards_of_an_older_save_is_refused_with_both_names(
    small: Path, shards: Path
) -> None:
    shutil.copy(small / "model.safetensors", shards)
    message = refusal(shards)
    for part in (
        "model.safetensors is there",
        INDEX,
        shard_files(shards)[0].name,
        "transformers takes the first",
    ):
        assert part in message


@pytest.mark.parametrize("left", [0, 1])
def test_a_single_file_comes_before_an_index_whose_shards_are_gone(
    small: Path, shards: Path, left: int
) -> None:
    for path in shard_files(shards)[left:]:
        path.unlink()
    shutil.copy(small / "model.safetensors", shards)
    shutil.copy(small / "config.json", shards)
    saved = load_file(small / "model.safetensors")[NORM].astype(np.float32)
    assert np.array_equal(open_checkpoint(shards).tensors.read(NORM), saved)


def test_an_index_over_the_single_file_is_no_second_model(checkpoint: Path) -> None:
    names = load_file(checkpoint / "model.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model.safetensors")}
    (checkpoint / INDEX).write_text(json.dumps(index))
    assert open_checkpoint(checkpoint)


def test_a_shard_of_an_older_save_that_no_index_names_changes_nothing(shards: Path) -> None:
    shutil.copy(shard_files(shards)[0], shards / "model-00009-of-00009.safetensors")
    assert open_checkpoint(shards)


def test_other_files_beside_the_weights_change_nothing(checkpoint: Path) -> None:
    (checkpoint / "pytorch_model.bin").write_bytes(b"old")
    (checkpoint / "consolidated.safetensors").write_bytes(b"old")
    assert open_checkpoint(checkpoint)


def test_an_index_that_does_not_fit_its_shards_is_one_line_for_all_tensors(shards: Path) -> None:
    edit(shards / INDEX, lambda i: i["weight_map"].pop(NORM))
    assert f"it does not name {NORM} in model-" in refusal(shards)
    edit(shards / INDEX, lambda i: i["weight_map"].update({"a": shard_files(shards)[0].name, "b": "x"}))
    (shards / "x").write_bytes(shard_files(shards)[1].read_bytes())
    message = refusal(shards)
    assert "is there twice" in message
    edit(shards / INDEX, lambda i: i["weight_map"].pop("b"))
    assert f"they lack a in {shard_files(shards)[0].name}" in refusal(shards)


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["model.fp16.safetensors"], "weights of a variant (model.fp16.safetensors); rename"),
        (["model-00001-of-00002.safetensors"], f"is there, but no {INDEX}"),
        (["consolidated.safetensors"], "consolidated.safetensors is weights in their authors' own form"),
        (["zero_to_fp32.py", "global_step9"], "zero_to_fp32.py is DeepSpeed's training state"),
        (["pytorch_model_fsdp_0"], "accelerate merge-weights"),
        (["__0_0.distcp"], "distributed training state"),
        (["pytorch_model.bin"], "save_pretrained(NEW, safe_serialization=True)"),
    ],
)
def test_weights_in_another_form_are_named_with_what_to_do(
    checkpoint: Path, names: list[str], says: str
) -> None:
    (checkpoint / "model.safetensors").unlink()
    for name in names:
        (checkpoint / name).write_bytes(b"")
    assert says in refusal(checkpoint)


def test_many_tensors_of_one_unknown_format_are_one_line(checkpoint: Path) -> None:
    edit_tensors(checkpoint, lambda t: t.update({k: v.astype(np.float64) for k, v in t.items()}))
    message = refusal(checkpoint)
    assert "more) is stored as F64; supported are F16, BF16, F32" in message
    assert "\n" not in message


# Adapters

LORA = {"peft_type": "LORA", "base_model_name_or_path": "CohereLabs/aya-vision-8b"}


@pytest.mark.parametrize("weights", ["adapter_model.safetensors", "adapter_model.bin"])
def test_an_adapter_alone_is_named_with_its_base_and_how_to_merge_it(tmp_path: Path, weights: str) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(LORA))
    (tmp_path / weights).write_bytes(b"")
    message = refusal(tmp_path)
    for part in ("a LoRA adapter of CohereLabs/aya-vision-8b only", "merge_and_unload()"):
        assert part in message


@pytest.mark.parametrize(
    "files", [["adapter_config.json", "adapter_model.safetensors"], ["adapter_model.bin"]]
)
def test_an_adapter_beside_its_base_is_never_left_out_silently(checkpoint: Path, files: list[str]) -> None:
    for name in files:
        (checkpoint / name).write_text(json.dumps({**LORA, "use_dora": True}))
    edit(checkpoint / "config.json", lambda c: c["text_config"].update(hidden_act="gelu"))
    message = refusal(checkpoint)
    for part in (files[0], " adapter of ", "merge_and_unload", "or move these files away", "hidden_act"):
        assert part in message
    assert ("a DoRA adapter of CohereLabs/aya-vision-8b" in message) == ("adapter_config.json" in files)


@pytest.mark.parametrize(
    ("text", "says"),
    [("{ not json", "a model that it does not name"), ('{"peft_type": "PREFIX_TUNING"}', "cannot be merged")],
)
def test_an_adapter_of_any_kind_is_named(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "adapter_config.json").write_text(text)
    assert says in refusal(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model." + NORM,
        "language_model.model.layers.0.self_attn.q_proj.lora_A.default.weight",
        "language_model.model.layers.0.self_attn.q_proj.base_layer.weight",
    ],
)
def test_weights_with_an_adapters_tensors_are_one_line(checkpoint: Path, name: str) -> None:
    edit_tensors(checkpoint, lambda t: t.update({name: np.ones(4, np.float16), "x": np.ones(4, np.float16)}))
    message = refusal(checkpoint)
    assert "hold an adapter's tensors" in message
    assert "\n" not in message


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "model._fsdp_wrapped_module."])
def test_names_that_a_trainer_has_wrapped_are_one_line(checkpoint: Path, wrapper: str) -> None:
    def wrap(tensors: dict[str, Any]) -> None:
        for name in list(tensors):
            tensors[wrapper + name] = tensors.pop(name)

    edit_tensors(checkpoint, wrap)
    message = refusal(checkpoint)
    assert "which a wrapper of the trainer has added" in message
    assert "\n" not in message


# Quantized weights

BITS_AND_BYTES = {"quant_method": "bitsandbytes", "_load_in_4bit": True, "load_in_4bit": True}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"quantization_config": BITS_AND_BYTES}, "bitsandbytes (4 bits)"),
        ({"quantization_config": {"load_in_8bit": True}}, "bitsandbytes (8 bits)"),
        ({"quantization_config": {"quant_method": "fp8", "activation_scheme": "dynamic"}}, "fp8"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq (4 bits)"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "awq (4 bits)"),
        ({"quantization_config": {"quant_method": "torchao"}}, "torchao"),
        ({"compression_config": {"format": "int-quantized"}}, "compressed-tensors"),
        ({"quantization": {"group_size": 64, "bits": 4}}, "MLX (4 bits)"),
        ({"text_config": {"quantization_config": {"quant_method": "hqq"}}}, "hqq"),
    ],
)
def test_quantized_weights_are_one_line_that_names_the_method(
    checkpoint: Path, settings: dict[str, Any], says: str
) -> None:
    def halve(tensors: dict[str, Any]) -> None:
        for name, value in tensors.items():
            tensors[name] = np.frombuffer(value.tobytes(), np.uint8) if "proj.weight" in name else value

    edit_tensors(checkpoint, halve)
    edit(
        checkpoint / "config.json",
        lambda c: c.update({k: {**c.get(k, {}), **v} for k, v in settings.items()}),
    )
    message = refusal(checkpoint)
    assert f"the weights were quantized by {says}, " in message
    assert "export the original checkpoint" in message
    assert "whole weights again" not in message
    assert "\n" not in message


def test_other_faults_of_a_quantized_checkpoint_are_told_behind_that(checkpoint: Path) -> None:
    edit(checkpoint / "config.json", lambda c: c.update(quantization_config=BITS_AND_BYTES))
    edit(checkpoint / "config.json", lambda c: c["text_config"].update(hidden_act="gelu"))
    first, second = refusal(checkpoint).splitlines()[1:]
    assert "quantized by bitsandbytes" in first
    assert "if these are whole weights again, remove" in first
    assert "hidden_act" in second


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("up_proj.weight.quant_state.bitsandbytes__nf4", "bitsandbytes (4 bits)"),
        ("up_proj.SCB", "bitsandbytes (8 bits)"),
        ("up_proj.g_idx", "gptq"),
        ("up_proj.qweight", "awq or gptq"),
        ("up_proj.weight_packed", "compressed-tensors"),
        ("up_proj.W_q", "hqq"),
        ("up_proj.weight._data", "quanto"),
        ("up_proj.weight_scale_inv", "fp8 or int8"),
    ],
)
def test_quantized_weights_are_known_by_their_tensors_alone(checkpoint: Path, name: str, says: str) -> None:
    place = f"language_model.model.layers.0.mlp.{name}"
    edit_tensors(checkpoint, lambda t: t.update({place: np.ones(4, np.uint8), "x": np.ones(4, np.uint8)}))
    message = refusal(checkpoint)
    assert f"the weights were quantized by {says}" in message
    assert "\n" not in message


def rewrite_header(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = directory / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def test_fp8_and_mlx_are_known_by_what_the_files_declare(checkpoint: Path) -> None:
    rewrite_header(checkpoint, lambda h: h.update(__metadata__={"format": "mlx"}))
    assert "the weights are in MLX's form" in refusal(checkpoint)
    mlx = {"a.weight": np.ones(4, np.uint32), "a.scales": np.ones(4, np.float16)}
    edit_tensors(checkpoint, lambda t: t.update({NORM: np.ones(64, np.uint8), **mlx}))
    assert "quantized by MLX" in refusal(checkpoint)
    edit_tensors(checkpoint, lambda t: [t.pop(name) for name in mlx])
    rewrite_header(checkpoint, lambda h: h[NORM].update(dtype="F8_E4M3"))
    assert "quantized by fp8" in refusal(checkpoint)


@pytest.mark.parametrize("file", ["quantize_config.json", "quant_config.json", "quanto_qmap.json"])
def test_a_quantizers_file_beside_the_weights_is_enough(checkpoint: Path, file: str) -> None:
    (checkpoint / file).write_text("{}")
    assert "the weights were quantized by" in refusal(checkpoint)


# Other things than checkpoints


def touch(*names: str) -> Callable[[Path], Path]:
    def prepare(directory: Path) -> Path:
        for name in names:
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_bytes(b"{}")
        return directory

    return prepare


@pytest.mark.parametrize(
    ("prepare", "says"),
    [
        (touch("model-Q4_K_M.gguf"), "holds a GGUF file (model-Q4_K_M.gguf)"),
        (touch("model.onnx"), "holds an ONNX graph"),
        (touch("manifest.json", "decoder.gguf", "vision.onnx"), "is a bundle already"),
        (touch("params.json", "consolidated.00.pth"), "in their authors' own form"),
        (touch("global_step500/mp_rank_00_model_states.pt"), "global_step500 is DeepSpeed's training state"),
        (touch("checkpoint-500/config.json", "checkpoint-900/config.json"), "give one of them, such as "),
        (touch("snapshots/abc/config.json"), "snapshots/abc"),
        (lambda d: touch("x.gguf")(d) / "x.gguf", "x.gguf is a file; give the directory"),
        (touch(), "has no config.json"),
    ],
)
def test_what_is_no_checkpoint_is_named_for_what_it_is(
    tmp_path: Path, prepare: Callable[[Path], Path], says: str
) -> None:
    assert says in refusal(prepare(tmp_path))


def test_a_name_on_the_hub_is_told_how_it_becomes_a_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    message = refusal("CohereLabs/aya-vision-8b")
    assert "hf download CohereLabs/aya-vision-8b --local-dir aya-vision-8b" in message
    (tmp_path / "CohereLabs").mkdir()
    for path in ("CohereLabs/aya-vision-8b", "aya-vision-8b", "../a", "/no/where", "a/b/c"):
        assert "hf download" not in refusal(path)


# The output head


def with_head(directory: Path, head: np.ndarray[Any, Any] | None, *, top: bool, text: bool) -> Path:
    edit(directory / "config.json", lambda c: c.update(tie_word_embeddings=top))
    edit(directory / "config.json", lambda c: c["text_config"].update(tie_word_embeddings=text))
    if head is not None:
        edit_tensors(directory, lambda t: t.update({"lm_head.weight": head}))
    return directory


@pytest.mark.parametrize(("top", "text"), [(False, True), (True, False), (False, False), (True, True)])
def test_an_untied_head_is_accepted_if_it_equals_the_embeddings(
    checkpoint: Path, top: bool, text: bool
) -> None:
    def embeddings() -> Any:
        return load_file(checkpoint / "model.safetensors")[EMBEDDINGS]

    equal = embeddings()
    assert open_checkpoint(with_head(checkpoint, equal, top=top, text=text)).parameters
    assert open_checkpoint(with_head(checkpoint, equal.astype(np.float32), top=top, text=text))
    equal[-1, -1] += 1
    message = refusal(with_head(checkpoint, equal, top=top, text=text))
    assert "lm_head.weight differs from the embeddings" in message
    assert ("transformers would leave this tensor out" in message) == (top and text)


@pytest.mark.parametrize(("top", "text"), [(False, True), (True, False)])
def test_an_untied_head_that_is_not_there_is_refused(checkpoint: Path, top: bool, text: bool) -> None:
    assert "not tied" in refusal(with_head(checkpoint, None, top=top, text=text))


def test_a_damaged_head_is_compared_by_its_bytes(checkpoint: Path) -> None:
    def spoil(tensors: dict[str, Any]) -> None:
        tensors[EMBEDDINGS][0, 0] = np.nan
        tensors["lm_head.weight"] = tensors[EMBEDDINGS].copy()

    edit_tensors(checkpoint, spoil)
    assert open_checkpoint(checkpoint)  # what is NaN is said by the export


# Names and links


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("models--CohereLabs--aya-vision-8b/snapshots/0123abc", "aya-vision-8b"),
        ("models--me--aya--geo/snapshots/0123abc", "aya--geo"),
        ("models--mine/snapshots/0123abc", "mine"),
        ("my-aya/checkpoint-500", "my-aya-checkpoint-500"),
        ("my-aya", "my-aya"),
        ("my-aya/.", "my-aya"),
        ("other/../my-aya/", "my-aya"),
        ("snapshots/0123abc", "0123abc"),
    ],
)
def test_a_bundle_is_called_after_the_model(small: Path, tmp_path: Path, path: str, name: str) -> None:
    (tmp_path / "other").mkdir()
    shutil.copytree(small, (tmp_path / path).resolve())
    opened = open_checkpoint(f"{tmp_path}/{path}")
    assert opened.name == name
    assert default_name(opened, "q4_k_m", "int8") == f"{name}-q4_k_m-int8"


def test_a_bundle_is_called_after_the_working_directory_or_a_link(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(checkpoint)
    assert open_checkpoint(tmp_path / "link").name == "link"
    monkeypatch.chdir(checkpoint)
    assert open_checkpoint(".").name == "c"


def cached(small: Path, hub: Path) -> Path:
    """A snapshot in a cache, all of whose files are links to blobs."""
    snapshot = hub / "models--CohereLabs--aya-vision-8b" / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "blobs").mkdir()
    for path in small.iterdir():
        shutil.copy(path, snapshot.parents[1] / "blobs" / f"blob-{path.name}")
        (snapshot / path.name).symlink_to(f"../../blobs/blob-{path.name}")
    return snapshot


@pytest.mark.parametrize(
    "file", ["config.json", "model.safetensors", "tokenizer.json", "generation_config.json"]
)
def test_a_link_of_a_cache_that_leads_nowhere_says_so(small: Path, tmp_path: Path, file: str) -> None:
    snapshot = cached(small, tmp_path)
    assert open_checkpoint(snapshot).name == "aya-vision-8b"
    (tmp_path / "models--CohereLabs--aya-vision-8b" / "blobs" / f"blob-{file}").unlink()
    message = refusal(snapshot)
    assert f"{file} is a link to ../../blobs/blob-{file}, which is missing" in message
    assert "hf download CohereLabs/aya-vision-8b" in message


def test_links_that_lead_nowhere_say_so_elsewhere_too(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("gone")
    assert "link is a link to gone, which is missing" in refusal(tmp_path / "link")
    lost = shard_files(shards)[1]
    lost.unlink()
    lost.symlink_to("gone")
    assert f"{lost.name} is a link to gone, which is missing" in refusal(shards)
    (shards / INDEX).unlink()
    (shards / INDEX).symlink_to("gone")
    assert f"{INDEX} is a link to gone" in refusal(shards)


# Settings in several files


def test_templates_that_differ_are_refused_with_both_names(checkpoint: Path) -> None:
    template = open_checkpoint(checkpoint).chat_template
    (checkpoint / "chat_template.jinja").write_text(template)
    (checkpoint / "chat_template.json").write_text(json.dumps({"chat_template": template + "\n"}))
    assert open_checkpoint(checkpoint)
    (checkpoint / "chat_template.json").write_text(json.dumps({"chat_template": template + "!"}))
    message = refusal(checkpoint)
    assert "chat_template.json and chat_template.jinja differ" in message


def test_a_template_of_the_processor_comes_before_the_tokenizers(checkpoint: Path) -> None:
    template = open_checkpoint(checkpoint).chat_template
    for name in ("chat_template.jinja", "chat_template.json"):
        (checkpoint / name).unlink(missing_ok=True)
    edit(checkpoint / "tokenizer_config.json", lambda t: t.update(chat_template=template + "tokenizer"))
    assert open_checkpoint(checkpoint).chat_template == template + "tokenizer"
    edit(checkpoint / "processor_config.json", lambda t: t.update(chat_template=template + "processor"))
    assert open_checkpoint(checkpoint).chat_template == template + "processor"


def test_stop_tokens_are_taken_in_transformers_order(checkpoint: Path) -> None:
    (checkpoint / "generation_config.json").write_text("{}")
    edit(checkpoint / "config.json", lambda c: c["text_config"].update(eos_token_id=6))
    assert open_checkpoint(checkpoint).stop_ids == (6,)
    edit(checkpoint / "config.json", lambda c: c.update(eos_token_id=[7]))
    assert open_checkpoint(checkpoint).stop_ids == (7,)
    (checkpoint / "generation_config.json").write_text('{"eos_token_id": [5, 6]}')
    assert open_checkpoint(checkpoint).stop_ids == (5, 6)
