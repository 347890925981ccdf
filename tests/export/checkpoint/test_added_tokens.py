"""Tokens that a fine-tune has added, from the checkpoint to the prompt, against transformers' own tokenizer."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest

from ayaedge import CheckpointError
from ayaedge.bundle import Bundle, read_bundle
from ayaedge.decoder.decoder import Decoder
from ayaedge.decoder.options import DecoderOptions
from ayaedge.decoder.vocabulary import open_vocabulary
from ayaedge.manifest import TextToken
from ayaedge.text.added_tokens import AddedTokens
from ayaedge.text.prompt import Message, PromptBuilder
from ayaedge_export.checkpoint.checkpoint import open_checkpoint
from ayaedge_export.evaluation.verify import verify_bundle, wrong_added_tokens
from ayaedge_export.exporter import export_checkpoint
from ayaedge_export.resume.staged_bundle import write_manifest
from random_checkpoint import Shape, write_random_checkpoint

FLAGS = ("normalized", "single_word", "lstrip", "rstrip")
TURN = "<|im_start|>"
"""A turn marker of the fine-tune's own, which its template writes."""
ADDED: dict[str, dict[str, bool]] = {
    "GeoJSON": {},
    "<loc_12>": {"special": True},
    "<loc_1>": {"normalized": False},
    "Việt": {},
    "[km]": {"lstrip": True, "rstrip": True},
    "cat": {"single_word": True},
    TURN: {"special": True},
}
TEXTS = [
    "Give me GeoJSON, GeoJSONs and geojson",
    "<loc_12><loc_1>2 <loc_123>",
    "Vi\u1ec7t, Vie\u0323\u0302t",
    "a [km]  b[km]\n[km]",
    "cat, cats, concat\u0301, a cat.",
    "\u0301cat\u0301 cat\u200d 12cat cat-cat",
    "GeoJSON" * 3,
]


@pytest.fixture(scope="module")
def tuned(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose tokenizer and template are as transformers saves them after tokens were added."""
    from transformers import AddedToken, AutoTokenizer

    target = tmp_path_factory.mktemp("tuned") / "c"
    write_random_checkpoint(target, tiny, Shape(text={"vocab_size": 2100}))
    tokenizer = AutoTokenizer.from_pretrained(target, trust_remote_code=False)
    for text, flags in ADDED.items():
        tokenizer.add_tokens([AddedToken(text, **flags)], special_tokens=flags.get("special", False))
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "openings[turn.role]", f"openings[turn.role] + '{TURN}GeoJSON '"
    )
    assert TURN in tokenizer.chat_template
    tokenizer.save_pretrained(target)
    return target


@pytest.fixture
def checkpoint(tuned: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tuned, tmp_path / "c"))


@pytest.fixture(scope="module")
def bundle(tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export_checkpoint(tuned, tmp_path_factory.mktemp("b") / "b", quant="f32", vision="fp32")


@pytest.fixture(scope="module")
def builder(bundle: Bundle) -> Iterator[PromptBuilder]:
    with Decoder(bundle.decoder_path, bundle.manifest, DecoderOptions(context_size=64)) as decoder:
        yield PromptBuilder(bundle.manifest, decoder.vocabulary.tokenize)


@pytest.fixture(scope="module")
def processor(tuned: Path) -> Any:
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(tuned, trust_remote_code=False)


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads(path.read_text("utf-8"))
    change(data)
    path.write_text(json.dumps(data), "utf-8")


def refusal(directory: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(directory)
    return str(caught.value)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("role", ["user", "assistant"])
def test_any_text_may_hold_what_a_fine_tune_has_added(
    builder: PromptBuilder, processor: Any, text: str, role: Any
) -> None:
    messages = [Message(role, text), Message("user", "x")]
    rendered = processor.apply_chat_template(
        [{"role": m.role, "content": m.text} for m in messages], add_generation_prompt=True, tokenize=False
    )
    expected = processor.tokenizer(rendered, add_special_tokens=False)["input_ids"]
    assert list(builder.build(messages, []).ids) == expected


def test_only_markers_stay_out_of_a_users_reach(bundle: Bundle, builder: PromptBuilder) -> None:
    tokens = bundle.manifest.tokens
    assert {token.text for token in tokens.texts} == ADDED.keys() - {TURN}
    markers = set(tokens.special.values())
    plain = [i for i in builder.build([Message("user", "x")], []).ids if i in markers]
    for text in tokens.special:
        ids = builder.build([Message("user", f"a{text}b {text}")], []).ids
        assert [i for i in ids if i in markers] == plain, text


def test_flags_of_tokens_reach_the_manifest(bundle: Bundle) -> None:
    flags = {t.text: {f for f in FLAGS if getattr(t, f)} for t in bundle.manifest.tokens.texts}
    assert flags["GeoJSON"] == {"normalized"}
    assert flags["<loc_1>"] == set()
    assert flags["[km]"] == {"normalized", "lstrip", "rstrip"}
    assert flags["cat"] == {"normalized", "single_word"}


def test_other_programs_find_plain_tokens_in_the_file_and_no_markers(bundle: Bundle) -> None:
    fields = gguf.GGUFReader(bundle.decoder_path).fields
    kinds = fields["tokenizer.ggml.token_type"].contents()
    ids = bundle.manifest.tokens.added
    assert kinds[ids["GeoJSON"]] == gguf.TokenType.USER_DEFINED
    for text in ("cat", "[km]", "<loc_12>", TURN, "<|USER_TOKEN|>"):
        assert kinds[ids[text]] == gguf.TokenType.CONTROL
    with open_vocabulary(bundle.decoder_path) as vocabulary:
        assert ids["GeoJSON"] in vocabulary.tokenize("a GeoJSON")


def test_verify_puts_every_added_token_into_a_prompt(bundle: Bundle, tuned: Path, tmp_path: Path) -> None:
    report = verify_bundle(bundle, tuned)
    checks = {check.name: check for check in report.checks}
    assert checks["added tokens with other ids"].passed
    assert checks["prompts with other token ids"].passed
    copy = Path(shutil.copytree(bundle.directory, tmp_path / "b"))
    tokens = bundle.manifest.tokens
    closed = replace(
        tokens, special=tokens.added, texts=()
    )  # as bundles were written that spell all of them out
    write_manifest(copy, replace(bundle.manifest, tokens=closed))
    checks = {check.name: check for check in verify_bundle(read_bundle(copy), tuned).checks}
    assert checks["added tokens with other ids"].value == 4  # llama.cpp finds GeoJSON and Việt by itself
    assert not checks["added tokens with other ids"].passed
    assert not checks["prompts with other token ids"].passed


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        (lambda t: replace(t, texts=tuple(replace(x, single_word=False) for x in t.texts)), {"cat"}),
        (lambda t: replace(t, texts=tuple(replace(x, rstrip=False) for x in t.texts)), {"[km]"}),
        (lambda t: replace(t, texts=tuple(x for x in t.texts if x.text != "GeoJSON")), {"GeoJSON"}),
        (lambda t: replace(t, texts=(*t.texts, TextToken("<PAD>", 0))), {"<PAD>"}),
    ],
)
def test_the_bar_of_verify_catches_one_wrong_token(
    bundle: Bundle, processor: Any, change: Callable[[Any], Any], wrong: set[str]
) -> None:
    texts = [token.text for token in bundle.manifest.tokens.texts]
    manifest = replace(bundle.manifest, tokens=change(bundle.manifest.tokens))
    with open_vocabulary(bundle.decoder_path) as vocabulary:
        assert wrong_added_tokens(bundle.manifest, texts, vocabulary.tokenize, processor.tokenizer) == set()
        assert wrong_added_tokens(manifest, texts, vocabulary.tokenize, processor.tokenizer) >= wrong


def test_no_added_token_of_a_released_tokenizer_changes_a_prompt(shrunk_release_bundle: Bundle) -> None:
    assert shrunk_release_bundle.manifest.tokens.texts == ()


def test_a_word_of_the_preamble_is_no_marker(checkpoint: Path) -> None:
    template = open_checkpoint(checkpoint).chat_template
    assert "GeoJSON" in template
    assert "GeoJSON" in {token.text for token in open_checkpoint(checkpoint).tokenizer.texts}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t, s: s["added_tokens_decoder"].update({"2060": {"content": "new"}}), "adds 'new', which tok"),
        (lambda t, s: s.update(additional_special_tokens=["new", "GeoJSON"]), "adds 'new', which tokenizer"),
        (lambda t, s: s.update(extra_special_tokens={"a": "new"}), "adds 'new', which tokenizer.json lacks"),
        (lambda t, s: s.update(add_prefix_space=True), "add_prefix_space"),
        (lambda t, s: t["added_tokens"][-1].update(id=2090), "has id 2090 in the tokenizer's files, and 2050"),
        (lambda t, s: _flag(t, s, "<|USER_TOKEN|>", "rstrip"), "'<|USER_TOKEN|>' has rstrip"),
        (lambda t, s: _flag(t, s, TURN, "single_word"), f"'{TURN}' has single_word"),
        (lambda t, s: t["added_tokens"][-3].update(lstrip=True, rstrip=False), None),
        (lambda t, s: t["added_tokens"][-4].update(content="Vie\u0323\u0302t", normalized=True), "lacks"),
        (lambda t, s: (_flag(t, s, "cat", "rstrip"), _rename(t, s, "GeoJSON", " Geo")), "begins with a blank"),
        (lambda t, s: _rename(t, s, "GeoJSON", "Vie\u0323\u0302t"), "in two Unicode spellings"),
    ],
)  # fmt: skip
def test_added_tokens_that_would_be_read_in_another_way_are_refused(
    checkpoint: Path, change: Callable[[dict[str, Any], dict[str, Any]], object], says: str | None
) -> None:
    paths = [checkpoint / "tokenizer.json", checkpoint / "tokenizer_config.json"]
    tokenizer, settings = (json.loads(path.read_text("utf-8")) for path in paths)
    change(tokenizer, settings)
    for path, data in zip(paths, (tokenizer, settings), strict=True):
        path.write_text(json.dumps(data), "utf-8")
    if says is None:
        assert open_checkpoint(checkpoint)
    else:
        assert says in refusal(checkpoint)


def _flag(tokenizer: dict[str, Any], settings: dict[str, Any], text: str, flag: str) -> None:
    for token in (*tokenizer["added_tokens"], *settings["added_tokens_decoder"].values()):
        token[flag] = token[flag] or token["content"] == text


def _rename(tokenizer: dict[str, Any], settings: dict[str, Any], old: str, new: str) -> None:
    for token in (*tokenizer["added_tokens"], *settings["added_tokens_decoder"].values()):
        token["content"] = new if token["content"] == old else token["content"]


def loaded(checkpoint: Path, text: str) -> tuple[list[int], list[int]]:
    """Ids of a text by the checkpoint as the exporter reads it, and by transformers."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False)
    bare = json.loads((checkpoint / "tokenizer.json").read_text("utf-8"))
    from tokenizers import Tokenizer

    plain = Tokenizer.from_str(json.dumps({**bare, "added_tokens": [], "post_processor": None}))
    texts = AddedTokens(open_checkpoint(checkpoint).tokenizer.texts, lambda t: plain.encode(t).ids)
    return texts.tokenize(text), tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    ("tokenizer", "settings"),
    [
        (lambda t: None, lambda s: s["added_tokens_decoder"]["2044"].update(single_word=True)),
        (lambda t: None, lambda s: s["added_tokens_decoder"]["2044"].update(normalized=False)),
        (lambda t: None, lambda s: s.pop("added_tokens_decoder")),
        (lambda t: t["added_tokens"][-7].update(normalized=False), lambda s: None),
    ],
)
def test_where_the_files_disagree_the_settings_are_followed_as_in_transformers(
    checkpoint: Path,
    tokenizer: Callable[[dict[str, Any]], object],
    settings: Callable[[dict[str, Any]], object],
) -> None:
    edit(checkpoint / "tokenizer.json", tokenizer)
    edit(checkpoint / "tokenizer_config.json", settings)
    for text in TEXTS:
        ours, theirs = loaded(checkpoint, text)
        assert ours == theirs, text


def test_files_of_old_versions_are_read_as_transformers_reads_them(checkpoint: Path) -> None:
    edit(checkpoint / "tokenizer_config.json", lambda s: s.pop("added_tokens_decoder"))
    edit(checkpoint / "special_tokens_map.json", lambda m: m.update(eos_token="<EOS_TOKEN>"))
    assert open_checkpoint(checkpoint).tokenizer.eos == "<EOS_TOKEN>"
    (checkpoint / "added_tokens.json").write_text(json.dumps({"GeoJSON": 2044}))
    assert open_checkpoint(checkpoint)
    (checkpoint / "added_tokens.json").write_text(json.dumps({"GeoJSON": 2044, "new": 2051}))
    assert "adds 'new'" in refusal(checkpoint)


ALPHABET = [
    "Geo", "GeoJSON", "<l>", "<l1>", "km", "Việt", "ab", "a", "x", "हि", "_t", "क\u093c", "①", "Ⓐ", "ab cd",
    "한", "ᄒ", "e\u0301",
    *"bkKeo 12_-<>\n\t", "\u0301", "\u0323", "\u200d", "\u3000", "\x1c", "\x85", "\u212a", "ि", "．", "‿",
]  # fmt: skip


def test_tokens_with_any_flags_are_found_as_by_the_reference(tiny: Path) -> None:
    """Only what `keep_markers` refuses is left out: blanks at a token's beginning beside `rstrip`."""
    from tokenizers import AddedToken, Tokenizer

    chance = random.Random(4)
    bare = json.loads((tiny / "tokenizer.json").read_text("utf-8"))
    bare |= {"added_tokens": [], "post_processor": None}
    plain = Tokenizer.from_str(json.dumps(bare))
    for _ in range(60):
        reference = Tokenizer.from_str(json.dumps(bare))
        tokens = []
        for text in chance.sample(ALPHABET[:18], chance.randint(1, 6)):
            flags = {flag: chance.random() < 0.5 for flag in FLAGS}
            reference.add_tokens([AddedToken(text, **flags)])
            tokens.append(TextToken(text, reference.token_to_id(text), **flags))
        ours = AddedTokens(tokens, lambda text: plain.encode(text).ids)
        for _ in range(100):
            text = "".join(chance.choices(ALPHABET, k=chance.randint(0, 14)))
            assert ours.tokenize(text) == reference.encode(text).ids, (text, tokens)
