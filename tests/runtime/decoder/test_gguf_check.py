"""Headers that the exporter does not write: named before llama.cpp sees them, which ends the process on many."""

from __future__ import annotations

import ast
import ctypes
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from ayaedge import Bundle, BundleError, llama
from ayaedge.bundle import demo_bundle, read_manifest
from ayaedge.decoder.gguf_check import check_decoder, check_vocabulary, expected_tensors
from ayaedge.decoder.gguf_file import STORAGE_TYPES, read_header
from ayaedge.hardware.probes import Probe, probe
from ayaedge_export.checkpoint.config import TextConfig
from ayaedge_export.decoder.gguf_writer import ARCHITECTURES, plan_tensors
from ayaedge_quant.number_formats import GgmlType
from gguf_mutations import ARRAY, STRING, Parts, base, changed_file, fitting, lay_out, outcomes

MANIFEST = read_manifest(demo_bundle())
Change = Callable[[Parts], object]
RUNTIME = Path(__file__).parents[3] / "runtime" / "ayaedge"


def written(path: Path, change: Change, architecture: str = "cohere2") -> tuple[Path, Parts]:
    whole = base(architecture)
    parts = Parts(list(whole.keys), list(whole.tensors), whole.data)
    change(parts)
    path.write_bytes(parts.file)
    return path, parts


def put(key: str, value: object, kind: int | None = None) -> Change:
    return lambda parts: parts.put(key, value, kind)


def without(key: str) -> Change:
    return lambda parts: parts.keys.pop(parts.index(key))


def add(key: str, value: object, kind: int = 4) -> Change:
    return lambda parts: parts.keys.append((key.encode(), kind, value))


def item(key: str, at: int, value: object) -> Change:
    """Another item at a place of an array."""

    def change(parts: Parts) -> None:
        kind, items = parts.value(key)
        parts.put(key, (kind, [*items[:at], value, *items[at + 1 :]]))

    return change


def tensor(name: str, **fields: object) -> Change:
    """A tensor with another name, other sizes, another kind or offset."""

    def change(parts: Parts) -> None:
        at = parts.tensor(name)
        old = dict(zip(("name", "sizes", "kind", "offset"), parts.tensors[at], strict=True))
        parts.tensors[at] = tuple({**old, **fields}.values())  # type: ignore[assignment]

    return change


def narrow(parts: Parts, width: int) -> None:
    """A feed-forward part of this width, whatever the tensors' types are."""
    parts.put("cohere2.feed_forward_length", width)
    for at, (name, sizes, kind, offset) in enumerate(parts.tensors):
        if b"ffn_" in name:
            parts.tensors[at] = (
                name,
                [width, sizes[1]] if b"down" in name else [sizes[0], width],
                kind,
                offset,
            )
    lay_out(parts)


TOKENS, MERGES = "tokenizer.ggml.tokens", "tokenizer.ggml.merges"
FAULTS: dict[str, tuple[Change, str]] = {
    "no block": (put("cohere2.block_count", 0), "block_count is 0, it must be from 1 to 512"),
    "too many blocks": (put("cohere2.block_count", 1000), "block_count is 1000, it must be"),
    "an odd rotation": (put("cohere2.rope.dimension_count", 63), "63 rotated values cannot share"),
    "no width": (put("cohere2.embedding_length", 0), "embedding_length is 0"),
    "no heads": (put("cohere2.attention.head_count", 0), "head_count is 0"),
    "heads that cannot share": (put("cohere2.attention.head_count_kv", 3), "3 of them for keys"),
    "more key heads than heads": (put("cohere2.attention.head_count_kv", 4096), "4096 of them for keys"),
    "an epsilon of NaN": (
        put("cohere2.attention.layer_norm_epsilon", float("nan")),
        "epsilon is nan, it must be above 0",
    ),
    "an infinite base": (put("cohere2.rope.freq_base", float("inf")), "freq_base is inf"),
    "no scale": (put("cohere2.logit_scale", 0.0), "logit_scale is 0.0"),
    "no pattern": (put("cohere2.attention.sliding_window_pattern", (7, [])), "a flag for each of"),
    "nothing slides": (put("cohere2.attention.sliding_window_pattern", (7, [0] * 4)), "one must be set"),
    "flags of 2": (put("cohere2.attention.sliding_window_pattern", (7, [2] * 4)), "a flag for each of"),
    "a pattern of numbers": (
        put("cohere2.attention.sliding_window_pattern", (4, [1])),
        "array of uint32 instead of array of bool",
    ),
    "no window": (put("cohere2.attention.sliding_window", 0), "sliding_window is 0"),
    "a key length": (
        add("cohere2.attention.key_length", 0),
        "'cohere2.attention.key_length' is none of its keys",
    ),
    "experts": (add("cohere2.expert_count", 2**31), "expert_count' is none of its keys"),
    "parts of a split file": (add("split.count", 2, 2), "'split.count' is none of its keys"),
    "another alignment": (add("general.alignment", 3), "'general.alignment' is none of its keys"),
    "an unknown scaling": (
        put("cohere2.rope.scaling.type", b"nonsense"),
        "scaling.type is 'nonsense', it must be 'none'",
    ),
    "another architecture": (put("general.architecture", b"llama"), "general.architecture is 'llama'"),
    "no tokenizer": (
        put("tokenizer.ggml.model", b"none"),
        "tokenizer.ggml.model is 'none', it must be 'gpt2'",
    ),
    "another splitting": (put("tokenizer.ggml.pre", b"qwen2"), "tokenizer.ggml.pre is 'qwen2'"),
    "a token twice": (item(TOKENS, 400, b"<PAD>"), "token '<PAD>' stands there twice, as 0 and 400"),
    "an empty token": (item(TOKENS, 400, b""), "holds an empty token"),
    "a token that is no text": (item(TOKENS, 400, b"ab\xff"), "tokens: number 400 is not UTF-8"),
    "half of a surrogate pair": (item(TOKENS, 401, b"\xed\xa0\x80"), "tokens: number 401 is not UTF-8"),
    "a token cut in a character": (item(TOKENS, 402, "é".encode()[:1]), "tokens: number 402 is not UTF-8"),
    "a token with a zero": (item(TOKENS, 400, b"a\0b"), "tokens: number 400 holds a zero byte"),
    "no tokens": (put(TOKENS, (STRING, [])), "tokens is empty"),
    "tokens that are numbers": (put(TOKENS, (4, [1, 2])), "tokens has the wrong type: array of uint32"),
    "a token too few": (
        lambda parts: put(TOKENS, (STRING, parts.value(TOKENS)[1][:-1]))(parts),
        "the vocabulary's size is",
    ),
    "no merges": (without(MERGES), "merges is missing"),
    "a merge of one": (item(MERGES, 7, b"alone"), "and each must have one"),
    "a merge of three": (item(MERGES, 7, b"a b c"), "and each must have one"),
    "a merge with nothing": (item(MERGES, 7, b" alone"), "merges: number 7 is no pair"),
    "a merge that ends early": (item(MERGES, 7, b"alone "), "merges: number 7 is no pair"),
    "a kind of token": (item("tokenizer.ggml.token_type", 9, 6), "token_type must be one of"),
    "kinds too few": (put("tokenizer.ggml.token_type", (5, [1])), "token_type must be one of"),
    "an end outside": (put("tokenizer.ggml.eos_token_id", 2**32 - 1), "eos_token_id is 4294967295"),
    "a beginning just outside": (
        put("tokenizer.ggml.bos_token_id", MANIFEST.decoder.vocab_size),
        "and there are 2048 tokens",
    ),
    "a number as text": (
        put("cohere2.context_length", b"9", STRING),
        "context_length has the wrong type: string",
    ),
    "a signed number": (put("cohere2.context_length", 64, 5), "context_length has the wrong type: int32"),
    "a key twice": (add("cohere2.block_count", 4), "'cohere2.block_count' stands there twice"),
    "a norm of integers": (tensor("output_norm.weight", kind=26), "output_norm.weight is stored as type 26"),
    "a norm in halves": (tensor("blk.0.attn_norm.weight", kind=1), "attn_norm.weight is stored as type F16"),
    "an unknown storage": (tensor("blk.0.attn_q.weight", kind=99), "attn_q.weight is stored as type 99"),
    "rows that are no whole blocks": (lambda parts: narrow(parts, 100), "has rows of 100 weights, which"),
    "a tensor turned": (
        lambda parts: tensor(
            "token_embd.weight", sizes=parts.tensors[parts.tensor("token_embd.weight")][1][::-1]
        )(parts),
        "token_embd.weight has the shape",
    ),
    "a tensor of no size": (tensor("output_norm.weight", sizes=[]), "output_norm.weight has the shape ()"),
    "a negative size": (
        tensor("output_norm.weight", sizes=[2**64 - 1]),
        "output_norm.weight has the shape (-1,)",
    ),
    "a tensor too many": (
        lambda parts: parts.tensors.append((b"rope_freqs.weight", [4], 0, 0)),
        "'rope_freqs.weight' is none of its tensors",
    ),
    "a tensor too few": (lambda parts: parts.tensors.pop(), "is missing"),
    "a tensor twice": (lambda parts: parts.tensors.append(parts.tensors[-1]), "stands there twice"),
    "tensors over one another": (
        tensor("blk.0.attn_norm.weight", offset=0),
        "attn_norm.weight begins at 0 instead of",
    ),
    "a tensor off the grid": (
        tensor("token_embd.weight", offset=1),
        "token_embd.weight begins at 1 instead of 0",
    ),
    "weights cut off": (
        lambda parts: setattr(parts, "data", parts.data[:-100]),
        "ends behind the end of the file",
    ),
    "no weights": (lambda parts: setattr(parts, "data", b""), "ends behind the end of the file"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_header_that_the_exporter_does_not_write_is_refused(tmp_path: Path, name: str) -> None:
    change, says = FAULTS[name]
    path, parts = written(tmp_path / "decoder.gguf", change)
    with pytest.raises(BundleError) as caught:
        check_decoder(path, fitting(MANIFEST, parts))
    assert says in str(caught.value)
    assert "copy or export it again" in str(caught.value)
    with pytest.raises(BundleError) as caught:  # nor is its tokenizer opened alone
        check_vocabulary(path)
    assert says in str(caught.value)


@pytest.mark.parametrize("architecture", ["cohere2", "command-r"])
def test_a_header_as_it_was_exported_is_taken(tmp_path: Path, architecture: str) -> None:
    path, parts = written(tmp_path / "decoder.gguf", lambda parts: None, architecture)
    check_decoder(path, fitting(MANIFEST, parts))
    check_vocabulary(path)


def test_all_faults_are_named_at_once(tmp_path: Path) -> None:
    names = [
        "an epsilon of NaN",
        "a token twice",
        "a merge of one",
        "an unknown scaling",
        "a key length",
        "an end outside",
    ]

    def change(parts: Parts) -> None:
        for name in names:
            FAULTS[name][0](parts)

    path, parts = written(tmp_path / "decoder.gguf", change)
    with pytest.raises(BundleError, match=f"has {len(names)} faults") as caught:
        check_decoder(path, fitting(MANIFEST, parts))
    assert [name for name in names if FAULTS[name][1] not in str(caught.value)] == []


DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "an older version": (lambda file: file[:4] + struct.pack("<I", 2) + file[8:], "only version 3"),
    "the other byte order": (lambda file: file[:4] + struct.pack(">I", 3) + file[8:], "other byte order"),
    "2**40 tensors": (
        lambda file: file[:8] + struct.pack("<Q", 2**40) + file[16:],
        "announces 1099511627776 tensors",
    ),
    "2**63 keys": (
        lambda file: file[:16] + struct.pack("<Q", 2**63) + file[24:],
        "announces 9223372036854775808 keys",
    ),
    "a name of 2**40 bytes": (
        lambda file: file[:24] + struct.pack("<Q", 2**40) + file[32:],
        "a key has 1099511627776 bytes",
    ),
    "a cut in the tokens": (
        lambda file: file[: file.index(b"tokenizer.ggml.merges") - 400],
        "ends within its header",
    ),
    "a cut in the keys": (lambda file: file[:300], "ends within its header"),
    "tokens without end": (
        lambda file: _announce(file, 2**40),
        "announces 1099511627776 items of tokenizer.ggml.tokens",
    ),
    "more tokens than bytes": (lambda file: _announce(file, 2**24), "ends within its header"),
    "another type of items": (lambda file: _announce(file, 2, kind=77), "type of number 77"),
    "arrays in arrays": (lambda file: _announce(file, 2, kind=ARRAY), "type of number 9"),
}


def _announce(file: bytes, items: int, kind: int = STRING) -> bytes:
    """The list of tokens with another number of items, or items of another kind."""
    at = file.index(TOKENS.encode()) + len(TOKENS) + 4
    return file[:at] + struct.pack("<IQ", kind, items) + file[at + 12 :]


@pytest.mark.parametrize("name", DAMAGE)
def test_counts_and_lengths_are_bounded_before_anything_is_made(tmp_path: Path, name: str) -> None:
    damage, says = DAMAGE[name]
    path = tmp_path / "decoder.gguf"
    path.write_bytes(damage(base("cohere2").file))
    with pytest.raises(BundleError) as caught:
        check_decoder(path, MANIFEST)
    assert says in str(caught.value)


def test_strings_of_any_length_are_found_where_they_are(tmp_path: Path) -> None:
    rng = random.Random(3)
    short = [0, 1, 7, 8, 9, 31, 32, 33]
    long = [*short, 250, 254, 255, 256, 257, 512, 65_535, 65_536, 70_000]
    for usual in (1.0, 0.9, 0.0):
        sizes = [rng.choice(short if rng.random() < usual else long) for _ in range(300)]
        texts = [rng.choice([bytes(size), b"\xff" * size, rng.randbytes(size)]) for size in sizes]
        (tmp_path / "a").write_bytes(Parts([(b"a", ARRAY, (STRING, texts)), (b"b", 4, 77)], [], b"").file)
        values = read_header(tmp_path / "a").values
        strings = values["a"].value
        assert [strings[number] for number in range(len(strings))] == texts
        assert values["b"].value == 77


@pytest.mark.parametrize("length", [1, 8, 16, 17, 24, 31, 32, 33, 40, 300])
def test_two_texts_are_the_same_only_if_every_byte_is(tmp_path: Path, length: int) -> None:
    text = bytes(65 + number % 26 for number in range(length))
    others = [text[:at] + b"0" + text[at + 1 :] for at in range(length)] + [
        text[:at] for at in range(1, length)
    ]
    for last, found in ((b"another", None), (text, (0, 1 + len(others)))):
        (tmp_path / "a").write_bytes(Parts([(b"a", ARRAY, (STRING, [text, *others, last]))], [], b"").file)
        strings = read_header(tmp_path / "a").values["a"].value
        assert strings.fault() is None
        assert strings.doubled() == found


def test_what_a_released_vocabulary_becomes_is_taken(shrunk_release_bundle: Bundle) -> None:
    assert shrunk_release_bundle.manifest.decoder.vocab_size > 200_000
    check_decoder(shrunk_release_bundle.decoder_path, shrunk_release_bundle.manifest)


@pytest.mark.parametrize(
    ("kind", "layers", "norms"), [("cohere2", 4, False), ("cohere", 5, False), ("cohere", 64, True)]
)
def test_the_tensors_are_those_that_the_exporter_plans(kind: str, layers: int, norms: bool) -> None:
    text = TextConfig(
        model_type=kind, vocab_size=512, hidden_size=256, intermediate_size=512, num_layers=layers, num_heads=8,
        num_kv_heads=2, layer_norm_eps=1e-5, rope_theta=1e4, logit_scale=1.0, context_length=64, use_qk_norm=norms,
    )  # fmt: skip
    values = {
        "architecture": ARCHITECTURES[kind], "block_count": layers, "embedding_length": 256, "feed_forward_length": 512,
        "attention.head_count": 8, "attention.head_count_kv": 2, "vocab_size": 512,
    }  # fmt: skip
    assert expected_tensors(values) == {one.name: one.shape for one in plan_tensors(text, "q4_k_m")}


def test_the_storage_types_are_those_that_the_exporter_writes() -> None:
    exported = {int(kind): (kind.name, kind.block_size, kind.block_bytes) for kind in GgmlType}
    assert {number: tuple(stored) for number, stored in STORAGE_TYPES.items()} == exported


def test_no_file_goes_to_llama_cpp_unchecked() -> None:
    """Two functions load one: the check of the first stands in it, that of the other where it is used."""
    loads, makes = set(), set()
    for path in RUNTIME.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr.startswith("llama_model_load"):
                loads.add(path.stem)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Weights":
                makes.add(path.stem)
    assert loads == {"vocabulary", "weights"}
    assert makes == {"decoder"}


# --- by chance ------------------------------------------------------------------------------------------------------
def run_seeds(first: int, number: int) -> list[str]:
    """What became of each seed's file; a child that died is started anew behind the seed it died of."""
    found: list[str] = []
    while len(found) < number:
        with Probe(outcomes, first + len(found)) as child:
            while len(found) < number:
                result = child.ask(120)
                found.append(f"{result.death}: {result.said}" if result.death else str(result.value))
                if result.death:
                    break
    return found


def check_seeds(first: int, number: int) -> None:
    found = run_seeds(first, number)
    deaths = {
        f"seed {first + at}, {changed_file(first + at)[2]}": outcome
        for at, outcome in enumerate(found)
        if not (
            outcome == "loaded"
            or outcome.startswith(("BundleError: ", "BackendError: ", "OutOfMemoryError: "))
        )
    }
    assert deaths == {}
    assert 0.02 * number < found.count("loaded") < 0.5 * number  # neither too wild nor too tame


def test_no_changed_header_ends_the_process() -> None:
    check_seeds(0, 250)


@pytest.mark.slow
def test_none_of_ten_thousand_changed_headers_ends_the_process() -> None:
    check_seeds(1000, 10_000)


def load_unchecked(path: str) -> None:
    """llama.cpp alone."""
    library = llama.library()
    model = library.llama_model_load_from_file(os.fsencode(path), library.llama_model_default_params())
    assert ctypes.cast(model, ctypes.c_void_p)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a token twice", "no block", "an unknown scaling", "experts"])
def test_llama_cpp_does_not_bear_such_headers(tmp_path: Path, name: str) -> None:
    """Where it does one day, the check is still right, but need not be as strict."""
    path, _ = written(tmp_path / "decoder.gguf", FAULTS[name][0])
    assert probe(load_unchecked, str(path), seconds=60).death in ("SIGABRT", "SIGSEGV", "exit code 1")
