from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ayaedge import CheckpointError
from ayaedge_export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from ayaedge_export.checkpoint.tensors import canonical_name
from random_checkpoint import Shape, write_random_checkpoint


@pytest.fixture(scope="module")
def small(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("small") / "c", tiny, Shape(dtype="float16"))


@pytest.fixture
def checkpoint(small: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small, tmp_path / "c"))


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads(path.read_text("utf-8"))
    change(data)
    path.write_text(json.dumps(data), "utf-8")


def edit_tensors(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")


def refusal(directory: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(directory)
    return str(caught.value)


def shard(directory: Path, tiny: Path) -> Path:
    return write_random_checkpoint(directory, tiny, Shape(shard_size="100KB"))


def test_a_good_checkpoint_opens(checkpoint: Path) -> None:
    assert open_checkpoint(checkpoint).config.text.model_type == "cohere2"


def test_all_wrong_tensors_are_reported_at_once(checkpoint: Path) -> None:
    def spoil(tensors: dict[str, Any]) -> None:
        del tensors["language_model.model.layers.2.mlp.up_proj.weight"]
        del tensors["multi_modal_projector.linear_1.bias"]
        tensors["language_model.model.norm.weight"] = np.ones(7, np.float16)
        tensors["language_model.model.layers.0.self_attn.q_proj.bias"] = np.ones(64, np.float16)
        tensors["stranger"] = np.ones((2, 2), np.float16)

    edit_tensors(checkpoint, spoil)
    message = refusal(checkpoint)
    for part in (
        "5 faults",
        "language_model.model.layers.2.mlp.up_proj.weight (96, 64) is missing",
        "multi_modal_projector.linear_1.bias (96) is missing",
        "language_model.model.norm.weight has shape (7) instead of (64)",
        "q_proj.bias (64) is not part of this architecture",
        "stranger (2, 2) is not part",
    ):
        assert part in message


@pytest.mark.parametrize("kept", [0, 4, 8, 100, 5000, -1])
def test_a_truncated_file_is_named(checkpoint: Path, kept: int) -> None:
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    assert "model.safetensors is truncated or not a safetensors file" in refusal(checkpoint)


@pytest.mark.parametrize(
    "lie",
    [
        lambda first, second: first.update(data_offsets=second["data_offsets"]),
        lambda first, second: first.update(shape=[*first["shape"], 2]),
        lambda first, second: first.update(dtype="F32"),
        lambda first, second: first["data_offsets"].__setitem__(1, 10**12),
        lambda first, second: first["data_offsets"].reverse(),
        lambda first, second: first.update(data_offsets=[-2, 0]),
        lambda first, second: first.pop("data_offsets"),
    ],
)
def test_a_header_that_lies_is_refused(
    checkpoint: Path, lie: Callable[[dict[str, Any], dict[str, Any]], Any]
) -> None:
    path = checkpoint / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    names = [name for name in header if name != "__metadata__"]
    lie(header[names[0]], header[names[1]])
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    assert "model.safetensors is truncated or not a safetensors file" in refusal(checkpoint)


def test_a_header_longer_than_the_file_is_refused(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    path.write_bytes((2**62).to_bytes(8, "little") + path.read_bytes()[8:])
    assert "model.safetensors is truncated or not a safetensors file" in refusal(checkpoint)


def test_an_unsupported_number_format_is_named(checkpoint: Path) -> None:
    edit_tensors(
        checkpoint, lambda t: t.update({k: v.astype(np.int8) for k, v in t.items() if "norm.weight" in k})
    )
    message = refusal(checkpoint)
    assert "is stored as I8; supported are F16, BF16, F32" in message


@pytest.mark.parametrize(
    ("file", "change", "says"),
    [
        (
            "config.json",
            lambda c: c.update(model_type="llava", architectures=["Llava"]),
            "'llava' (Llava); supported is",
        ),
        ("config.json", lambda c: c["text_config"].update(model_type="llama"), "decoder is of type 'llama'"),
        ("config.json", lambda c: c["text_config"].update(use_qk_norm=True), "use_qk_norm with 6 layers"),
        ("config.json", lambda c: c["text_config"].update(attention_bias=True), "attention_bias"),
        (
            "config.json",
            lambda c: c["text_config"].update(rope_scaling={"type": "linear", "factor": 2}),
            "'linear'",
        ),
        ("config.json", lambda c: c["text_config"].update(head_dim=32), "head size must be"),
        ("config.json", lambda c: c["text_config"].update(hidden_act="gelu"), "hidden_act 'gelu'"),
        ("config.json", lambda c: c["vision_config"].update(hidden_act="gelu"), "hidden_act 'gelu'"),
        ("config.json", lambda c: c["vision_config"].update(model_type="clip"), "model_type 'clip'"),
        ("config.json", lambda c: c.update(vision_feature_layer=-2), "vision_feature_layer -2"),
        ("config.json", lambda c: c.update(downsample_factor=3), "cannot be joined by 3"),
        ("config.json", lambda c: c.update(image_token_index=9), "9 in config.json"),
        ("config.json", lambda c: c.update(tie_word_embeddings=False), "not tied"),
        ("tokenizer.json", lambda t: t.update(normalizer=None), "another way than NFC"),
        (
            "tokenizer.json",
            lambda t: t.update(pre_tokenizer={"type": "Whitespace"}),
            "splits text by ['Whitespace']",
        ),
        ("tokenizer.json", lambda t: t["model"].update(type="Unigram"), "'Unigram' model"),
        ("tokenizer.json", lambda t: t["added_tokens"][9].update(lstrip=True), "has lstrip"),
        (
            "tokenizer.json",
            lambda t: t.update(added_tokens=[a for a in t["added_tokens"] if "IMG" not in a["content"]]),
            "the tokenizer has no image token <|IMG_PATCH|>",
        ),
        ("tokenizer_config.json", lambda t: t.pop("bos_token"), "must name a bos_token"),
        (
            "preprocessor_config.json",
            lambda p: p.update(size={"height": 64, "width": 64}),
            "tiles of 64 x 64",
        ),
        ("preprocessor_config.json", lambda p: p.update(do_normalize=False), "do_normalize False"),
        ("processor_config.json", lambda p: p.update(patch_size=28), "writes 4 image tokens for a tile"),
    ],
)
def test_what_cannot_be_run_is_named(
    checkpoint: Path, file: str, change: Callable[[dict[str, Any]], object], says: str
) -> None:
    edit(checkpoint / file, change)
    assert says in refusal(checkpoint)


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"])
def test_a_missing_or_damaged_file_is_named(checkpoint: Path, file: str) -> None:
    (checkpoint / file).write_text("{ not json")
    assert file in refusal(checkpoint)
    (checkpoint / file).unlink()
    assert f"{file} is missing" in refusal(checkpoint)


def test_a_missing_template_is_named(checkpoint: Path) -> None:
    for name in ("chat_template.jinja", "chat_template.json"):
        (checkpoint / name).unlink(missing_ok=True)
    edit(checkpoint / "tokenizer_config.json", lambda t: t.pop("chat_template", None))
    assert "there is no chat template" in refusal(checkpoint)


def test_what_is_no_checkpoint_says_so(tmp_path: Path) -> None:
    assert "there is no checkpoint directory" in refusal(tmp_path / "nothing")
    assert "has no config.json" in refusal(tmp_path)


def test_a_pickle_is_refused_and_never_opened(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    message = refusal(checkpoint)
    assert "pytorch_model.bin is a pickle" in message
    assert "safe_serialization" in message


def test_a_missing_shard_is_named(tiny: Path, tmp_path: Path) -> None:
    directory = shard(tmp_path / "c", tiny)
    lost = sorted(directory.glob("model-*.safetensors"))[1]
    lost.unlink()
    assert f"shard {lost.name}, named in model.safetensors.index.json, is missing" in refusal(directory)


def test_an_index_cannot_name_files_elsewhere(tiny: Path, tmp_path: Path) -> None:
    directory = shard(tmp_path / "c", tiny)
    edit(directory / "model.safetensors.index.json", lambda i: i["weight_map"].update(x="../../etc/passwd"))
    assert "'../../etc/passwd', which is not a file of this directory" in refusal(directory)


def test_an_untied_head_is_refused_and_a_tied_copy_is_not(checkpoint: Path) -> None:
    embeddings = load_file(checkpoint / "model.safetensors")["language_model.model.embed_tokens.weight"]
    edit_tensors(checkpoint, lambda t: t.update({"lm_head.weight": embeddings.copy()}))
    assert open_checkpoint(checkpoint)
    edit_tensors(checkpoint, lambda t: t.update({"lm_head.weight": embeddings + np.float16(1)}))
    assert "differs from the embeddings" in refusal(checkpoint)


def reopened(checkpoint: Path, change: Callable[[dict[str, Any]], object]) -> Checkpoint:
    edit(checkpoint / "config.json", change)
    return open_checkpoint(checkpoint)


def test_newer_spellings_of_keys_mean_the_same(checkpoint: Path) -> None:
    before = open_checkpoint(checkpoint).config

    def respell(config: dict[str, Any]) -> None:
        text = config["text_config"]
        text["rope_parameters"] = {"rope_theta": text.pop("rope_theta"), "rope_type": "default"}
        text.pop("layer_types", None)
        text["sliding_window_pattern"] = 4
        for part in (config, text, config["vision_config"]):
            if "dtype" in part:
                part["torch_dtype"] = part.pop("dtype")

    assert reopened(checkpoint, respell).config == before


def test_the_largest_stated_context_counts(checkpoint: Path) -> None:
    assert (
        reopened(
            checkpoint, lambda c: c["text_config"].update(model_max_length=16384)
        ).config.text.context_length
        == 16384
    )


@pytest.mark.parametrize(
    ("stored", "hub"),
    [
        (
            "model.language_model.layers.0.mlp.up_proj.weight",
            "language_model.model.layers.0.mlp.up_proj.weight",
        ),
        ("language_model.model.norm.weight", "language_model.model.norm.weight"),
        ("model.language_model.model.norm.weight", "language_model.model.norm.weight"),
        (
            "model.vision_tower.encoder.layers.1.mlp.fc1.bias",
            "vision_tower.vision_model.encoder.layers.1.mlp.fc1.bias",
        ),
        (
            "model.vision_tower.vision_model.post_layernorm.bias",
            "vision_tower.vision_model.post_layernorm.bias",
        ),
        ("model.multi_modal_projector.linear_1.weight", "multi_modal_projector.linear_1.weight"),
        ("lm_head.weight", "language_model.lm_head.weight"),
        ("model.layers.0.weight", "model.layers.0.weight"),
    ],
)
def test_every_spelling_of_a_name_is_known(stored: str, hub: str) -> None:
    assert canonical_name(stored) == hub


def test_a_tensor_that_is_there_twice_is_named(checkpoint: Path) -> None:
    edit_tensors(
        checkpoint, lambda t: t.update({"model.language_model.norm.weight": np.ones(64, np.float16)})
    )
    assert "is there twice" in refusal(checkpoint)


def test_the_template_may_stand_in_any_of_three_places(checkpoint: Path) -> None:
    template = open_checkpoint(checkpoint).chat_template
    for name in ("chat_template.jinja", "chat_template.json"):
        (checkpoint / name).unlink(missing_ok=True)
    settings = checkpoint / "tokenizer_config.json"
    edit(settings, lambda t: t.update(chat_template=template))
    assert open_checkpoint(checkpoint).chat_template == template
    edit(settings, lambda t: t.update(chat_template=[{"name": "default", "template": template}]))
    assert open_checkpoint(checkpoint).chat_template == template
    edit(settings, lambda t: t.pop("chat_template"))
    (checkpoint / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    assert open_checkpoint(checkpoint).chat_template == template
    (checkpoint / "chat_template.jinja").write_text("\ufeff" + template, "utf-8")
    assert open_checkpoint(checkpoint).chat_template == template


def test_the_image_processor_may_stand_inside_the_processors_file(checkpoint: Path) -> None:
    tiling = open_checkpoint(checkpoint).tiling
    image = checkpoint / "preprocessor_config.json"
    nested = json.loads(image.read_text("utf-8"))
    edit(checkpoint / "processor_config.json", lambda p: p.update(image_processor=nested))
    image.unlink()
    assert open_checkpoint(checkpoint).tiling == tiling


def test_the_licence_comes_from_the_model_card(checkpoint: Path) -> None:
    (checkpoint / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n# Card\n")
    assert open_checkpoint(checkpoint).license == "cc-by-nc-4.0"


def test_stop_tokens_may_be_several(checkpoint: Path) -> None:
    (checkpoint / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 6]}))
    assert open_checkpoint(checkpoint).stop_ids == (6, 7)


ODD_VALUES = [None, "x", -1, 0, [], [None], {}, 10**30, float("nan"), True]
FUZZED_FILES = (
    "config.json",
    "tokenizer_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "generation_config.json",
)


def places(data: Any, depth: int = 2) -> list[tuple[str, ...]]:
    """Where the values of an object are, two levels deep."""
    found = []
    for key, value in data.items() if isinstance(data, dict) and depth else []:
        found += [(key,), *((key, *rest) for rest in places(value, depth - 1))]
    return found


@pytest.mark.parametrize("file", FUZZED_FILES)
def test_a_value_of_any_kind_anywhere_is_accepted_or_refused_cleanly(checkpoint: Path, file: str) -> None:
    path = checkpoint / file
    text = path.read_text("utf-8")
    for number, place in enumerate(places(json.loads(text))):
        if place[0] in ("added_tokens_decoder", "chat_template"):
            continue
        for value in ODD_VALUES[number % 3 :: 3]:
            data = json.loads(text)
            parent = data
            for key in place[:-1]:
                parent = parent[key]
            parent[place[-1]] = value
            path.write_text(json.dumps(data), "utf-8")
            with contextlib.suppress(CheckpointError):
                open_checkpoint(checkpoint)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t["added_tokens"][3].update(id=2), "one of the two is taken already"),
        (lambda t: t["added_tokens"][3].update(id=500), "gives id"),
        (lambda t: t["added_tokens"][3].update(id=-1), "without a text and an id"),
        (lambda t: t["added_tokens"][3].update(content="<CLS>"), "one of the two is taken already"),
        (lambda t: t["added_tokens"].append(None), "without a text and an id"),
        (lambda t: t["model"].update(merges=["a b c"]), "not a pair of its tokens"),
        (lambda t: t["model"].update(merges=[]), "has no merges"),
        (lambda t: t["model"].update(vocab={}), "no vocabulary"),
        (lambda t: t["model"]["vocab"].update({"": 2047}), "a token that is empty"),
        (lambda t: t["model"]["vocab"].update({"a\0b": 2047}), "holds a zero byte"),
        (lambda t: t["model"]["vocab"].update({"\ud800": 2047}), "not valid Unicode"),
    ],
)
def test_a_tokenizer_that_would_crash_llama_cpp_is_refused(
    checkpoint: Path, change: Callable[[dict[str, Any]], object], says: str
) -> None:
    edit(checkpoint / "tokenizer.json", change)
    assert says in refusal(checkpoint)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.update(layer_types=["x"] * 6), "layer_types"),
        (lambda t: t.update(layer_types=["full_attention"] * 6), "no layer of the decoder slides"),
        (lambda t: t.update(layer_types=["sliding_attention"]), "layer_types"),
        (lambda t: t.update(layer_norm_eps=-1), "layer_norm_eps -1"),
        (lambda t: t.update(logit_scale=0), "logit_scale 0"),
        (lambda t: t.update(rope_theta=float("nan")), "rope_theta nan"),
        (lambda t: t.update(sliding_window=0), "sliding_window 0"),
        (lambda t: t.update(num_hidden_layers=10**30), "num_hidden_layers"),
        (lambda t: t.update(num_hidden_layers=513), "num_hidden_layers 513"),
    ],
)
def test_a_decoder_that_llama_cpp_cannot_run_is_refused(
    checkpoint: Path, change: Callable[[dict[str, Any]], object], says: str
) -> None:
    edit(checkpoint / "config.json", lambda c: change(c["text_config"]))
    assert says in refusal(checkpoint)


@pytest.mark.parametrize("template", ["{% if %}", "no image at all", "{{ raise_exception('no') }}"])
def test_a_template_that_cannot_ask_about_an_image_is_refused(checkpoint: Path, template: str) -> None:
    for name in ("chat_template.jinja", "chat_template.json"):
        (checkpoint / name).unlink(missing_ok=True)
    (checkpoint / "chat_template.jinja").write_text(template)
    assert "chat template" in refusal(checkpoint)


@pytest.mark.parametrize("ids", [[], 99999, -1, "x", [1, "x"]])
def test_stop_tokens_must_be_tokens(checkpoint: Path, ids: object) -> None:
    (checkpoint / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    assert "eos_token_id" in refusal(checkpoint)


def test_faults_of_all_files_are_reported_together(checkpoint: Path) -> None:
    edit(checkpoint / "config.json", lambda c: c["text_config"].update(hidden_act="gelu"))
    edit(checkpoint / "preprocessor_config.json", lambda p: p.update(do_normalize=False))
    (checkpoint / "tokenizer.json").unlink()
    message = refusal(checkpoint)
    for part in ("hidden_act", "do_normalize", "tokenizer.json is missing"):
        assert part in message
