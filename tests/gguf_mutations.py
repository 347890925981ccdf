"""A GGUF header taken apart, changed by chance and put together again, and what becomes of it in llama.cpp.

`outcomes` runs in a child process (`ayaedge.hardware.probes`), because a header that llama.cpp does not bear ends it.
The same seed gives the same file, so that the parent can say what was changed.
"""

from __future__ import annotations

import random
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

from ayaedge import AyaEdgeError, DecoderOptions
from ayaedge.bundle import demo_bundle, read_manifest
from ayaedge.decoder.decoder import Decoder
from ayaedge.decoder.vocabulary import open_vocabulary
from ayaedge.manifest import EmbeddingTable, Manifest

STRING, ARRAY = 8, 9
FORMS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
WHOLE = [
    0, 1, 2, 3, 7, 63, 64, 255, 256, 512, 513, 1000, 4096, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1,
]  # fmt: skip
REAL = [0.0, -0.0, 1.0, -1.0, 1e-45, 1e-5, 1e30, 3.4e38, float("inf"), float("-inf"), float("nan")]
TEXT = [
    b"", b"none", b"llama", b"gpt2", b"bert", b"t5", b"rwkv", b"plamo2", b"test", b"whitespace", b"hybriddna",
    b"default", b"command-r", b"qwen2", b"kimi-k2", b"linear", b"yarn", b"longrope", b"nonsense", b"cohere2",
    b"command-r", b"llama4", b"model", b"adapter", b"mmproj", b"\xff\xfe", b"a\0b", b" ", b"a b", b"a b c",
    b"\xed\xa0\x80", b"x" * 300, b"x" * 70_000, "ẞ한🎈".encode(), b"<|im_end|>", b"<|channel|>",
]  # fmt: skip
MORE_KEYS = [
    "{}.attention.key_length", "{}.attention.value_length", "{}.attention.key_length_swa", "{}.attention.causal",
    "{}.expert_count", "{}.expert_used_count", "{}.expert_group_count", "{}.nextn_predict_layers", "{}.pooling_type",
    "{}.rope.scaling.factor", "{}.rope.scale_linear", "{}.rope.scaling.attn_factor", "{}.rope.freq_base_swa",
    "{}.rope.scaling.original_context_length", "{}.rope.dimension_count_swa", "{}.embedding_length_out",
    "{}.attention.sliding_window", "{}.attention.sliding_window_pattern", "{}.attention.max_alibi_bias",
    "{}.attention.clamp_kqv", "{}.classifier.output_labels", "{}.use_parallel_residual", "{}.tensor_data_layout",
    "general.alignment", "general.sampling.top_k", "general.sampling.temp", "split.count", "split.no",
    "split.tensors.count",
    "tokenizer.ggml.scores", "tokenizer.ggml.suppress_tokens", "tokenizer.ggml.eot_token_id",
    "tokenizer.ggml.unknown_token_id", "tokenizer.ggml.fim_pre_token_id", "tokenizer.ggml.add_eos_token",
    "tokenizer.ggml.add_sep_token", "tokenizer.ggml.add_space_prefix", "tokenizer.ggml.remove_extra_whitespaces",
    "tokenizer.ggml.token_type_count", "tokenizer.ggml.precompiled_charsmap", "tokenizer.chat_template.tool_use",
    "adapter.type", "quantize.imatrix.chunks_count", "", "x",
]  # fmt: skip


@dataclass
class Parts:
    """A GGUF file in its pieces."""

    keys: list[tuple[bytes, int, Any]]
    """Name, type, value; an array's value is its items' type and a list."""
    tensors: list[tuple[bytes, list[int], int, int]]
    """Name, sizes (columns first), type, offset."""
    data: bytes

    def index(self, key: str) -> int:
        return next(i for i, (name, *_) in enumerate(self.keys) if name == key.encode())

    def value(self, key: str) -> Any:
        return self.keys[self.index(key)][2]

    def put(self, key: str, value: Any, kind: int | None = None) -> None:
        at = self.index(key)
        self.keys[at] = (self.keys[at][0], self.keys[at][1] if kind is None else kind, value)

    def tensor(self, name: str) -> int:
        return next(i for i, tensor in enumerate(self.tensors) if tensor[0] == name.encode())

    @property
    def header(self) -> bytes:
        out = b"GGUF" + struct.pack("<IQQ", 3, len(self.tensors), len(self.keys))
        out += b"".join(_WHOLE_KEYS.get(id(key)) or _packed_key(key) for key in self.keys)
        for name, sizes, kind, offset in self.tensors:
            out += _text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)
        return out + bytes(-len(out) % 32)

    @property
    def file(self) -> bytes:
        return self.header + self.data


_WHOLE_KEYS: dict[int, bytes] = {}
"""The bytes of what `base` holds, by its identity."""


def _packed_key(key: tuple[bytes, int, Any]) -> bytes:
    name, kind, value = key
    return _text(name) + struct.pack("<I", kind) + _packed(kind, value)


def _text(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def _packed(kind: int, value: Any) -> bytes:
    if kind == STRING:
        return _text(value)
    if kind == ARRAY:
        inner, items = value
        head = struct.pack("<IQ", inner, len(items))
        if inner in FORMS:
            return head + struct.pack(f"<{len(items)}{FORMS[inner]}", *items)
        return head + b"".join(_packed(inner, item) for item in items)
    form = FORMS.get(kind, "I")
    return struct.pack(f"<{form}", _wrapped(value, form) if isinstance(value, int) else value)


def _wrapped(number: int, form: str) -> int:
    """A whole number as so many bits hold it."""
    if form in "fd":
        return number
    bits = 8 * struct.calcsize(f"<{form}")
    number %= 2**bits
    return number - 2**bits if form.islower() and number >= 2 ** (bits - 1) else number


def take_apart(file: bytes) -> Parts:
    """A GGUF file's pieces."""
    at = 24

    def take(form: str) -> Any:
        nonlocal at
        (value,) = struct.unpack_from(f"<{form}", file, at)
        at += struct.calcsize(f"<{form}")
        return value

    def value(kind: int) -> Any:
        if kind == STRING:
            return take(f"{take('Q')}s")
        if kind == ARRAY:
            inner, size = take("I"), take("Q")
            return inner, [value(inner) for _ in range(size)]
        return take(FORMS[kind])

    tensors, keys = struct.unpack_from("<QQ", file, 8)
    found = []
    for _ in range(keys):
        name, kind = value(STRING), take("I")
        found.append((name, kind, value(kind)))
    listed = [
        (value(STRING), [take("Q") for _ in range(take("I"))], take("I"), take("Q")) for _ in range(tensors)
    ]
    return Parts(found, listed, file[at + -at % 32 :])


@cache
def base(architecture: str) -> Parts:
    """The demo's decoder, or the same weights as a `command-r`, which has no window."""
    parts = take_apart((demo_bundle() / "decoder.gguf").read_bytes())
    if architecture != "cohere2":
        parts.put("general.architecture", architecture.encode())
        parts.keys = [
            (name.replace(b"cohere2.", f"{architecture}.".encode()), kind, value)
            for name, kind, value in parts.keys
            if b"sliding_window" not in name
        ]
    _WHOLE_KEYS.update({id(key): _packed_key(key) for key in parts.keys})
    return parts


# --- changes --------------------------------------------------------------------------------------------------------
def _edge(rng: random.Random, kind: int) -> Any:
    if kind == STRING:
        return rng.choice(TEXT)
    if kind == ARRAY:
        inner = rng.choice([0, 4, 5, 6, 7, STRING])
        return inner, [_edge(rng, inner) for _ in range(rng.choice([0, 1, 2, 5, 512, 513]))]
    form = FORMS.get(kind, "I")
    if form in "fd":
        return rng.choice(REAL)
    return _wrapped(rng.choice(WHOLE), form)


def _near(rng: random.Random, number: int) -> int:
    return max(0, rng.choice([number - 1, number + 1, number * 2, number // 2, number + 32, number ^ 1]))


def set_value(parts: Parts, rng: random.Random) -> str:
    at = rng.randrange(len(parts.keys))
    name, kind, value = parts.keys[at]
    new = _near(rng, value) if isinstance(value, int) and rng.random() < 0.4 else _edge(rng, kind)
    parts.keys[at] = (name, kind, new)
    return f"{name!r} = {new!r:.80}"


def retype(parts: Parts, rng: random.Random) -> str:
    at = rng.randrange(len(parts.keys))
    kind = rng.choice([*FORMS, STRING, ARRAY])
    value = _edge(rng, kind)
    parts.keys[at] = (parts.keys[at][0], kind, value)
    return f"{parts.keys[at][0]!r} of type {kind} = {value!r:.80}"


def remove_key(parts: Parts, rng: random.Random) -> str:
    name, *_ = parts.keys.pop(rng.randrange(len(parts.keys)))
    return f"without {name!r}"


def double_key(parts: Parts, rng: random.Random) -> str:
    name, kind, value = rng.choice(parts.keys)
    parts.keys.insert(rng.randrange(len(parts.keys)), (name, kind, rng.choice([value, _edge(rng, kind)])))
    return f"{name!r} twice"


def add_key(parts: Parts, rng: random.Random) -> str:
    name = rng.choice(MORE_KEYS).format(rng.choice(["cohere2", "command-r"])).encode()
    kind = rng.choice([4, 4, 4, 6, 7, STRING, ARRAY])
    value = _edge(rng, kind)
    parts.keys.append((name, kind, value))
    return f"more: {name!r} of type {kind} = {value!r:.80}"


def change_array(parts: Parts, rng: random.Random) -> str:
    at = rng.choice([i for i, (_, kind, _) in enumerate(parts.keys) if kind == ARRAY] or [None])
    if at is None:
        return "nothing"
    name, kind, (inner, items) = parts.keys[at]
    items = list(items)
    how = rng.choice(["empty", "cut", "longer", "item", "item", "copy", "copy", "swap"])
    if not items or how == "empty":
        items = []
    elif how == "cut":
        del items[rng.choice([-1, 0, len(items) // 2]) :]
    elif how == "longer":
        items += items[-1:] * rng.choice([1, 5])
    elif how == "item":
        items[rng.randrange(len(items))] = _edge(rng, inner)
    elif how == "copy":
        items[rng.randrange(len(items))] = rng.choice(items)
    else:
        first, second = rng.randrange(len(items)), rng.randrange(len(items))
        items[first], items[second] = items[second], items[first]
    parts.keys[at] = (name, kind, (inner, items))
    return f"{name!r}: {how}"


def change_text(parts: Parts, rng: random.Random) -> str:
    key = rng.choice(["tokenizer.ggml.tokens", "tokenizer.ggml.merges"])
    try:
        kind, items = parts.value(key)
    except (StopIteration, TypeError, ValueError):
        return "nothing"
    if kind != STRING or not items:
        return "nothing"
    items, at = list(items), rng.randrange(len(items))
    text = items[at]
    items[at] = rng.choice(
        [
            text + text,
            text[:-1],
            text + b" ",
            b" " + text,
            text.replace(b" ", b""),
            text + b"\x80",
            text + b"\0",
            b"\n",
            rng.choice(items),
        ]
    )
    parts.put(key, (kind, items))
    return f"{key} {at}: {text!r} -> {items[at]!r}"


def change_tensor(parts: Parts, rng: random.Random) -> str:
    if not parts.tensors:
        return "nothing"
    at = rng.randrange(len(parts.tensors))
    name, sizes, kind, offset = parts.tensors[at]
    how = rng.choice(["name", "kind", "kind", "shape", "shape", "offset", "remove", "double", "swap"])
    if how == "name":
        name = rng.choice(
            [
                b"",
                b"blk.0.attn_q.bias",
                b"output.weight",
                b"blk.999.attn_q.weight",
                b"rope_freqs.weight",
                b"x" * 63,
                b"x" * 64,
                name[:-1],
                b"\xff",
                name.replace(b"weight", b"scale"),
                rng.choice(parts.tensors)[0],
            ]
        )
    elif how == "kind":
        kind = rng.choice([*range(42), 255, 2**31, 2**32 - 1])
    elif how == "shape":
        edges = [0, 1, 2**31, 2**32, 2**62, 2**63, 2**64 - 1]
        place = rng.randrange(len(sizes)) if sizes else 0
        sizes = rng.choice(
            [
                sizes[::-1],
                [*sizes, 1],
                [*sizes, 0],
                sizes[:-1],
                [*sizes, 2],
                [1] * 5,
                [*sizes[:place], rng.choice(edges), *sizes[place + 1 :]],
                [
                    *sizes[:place],
                    *(_near(rng, size) for size in sizes[place : place + 1]),
                    *sizes[place + 1 :],
                ],
            ]
        )
    elif how == "offset":
        offset = rng.choice(
            [offset + 1, offset + 32, max(0, offset - 32), 0, 2**63, 2**64 - 32, rng.choice(parts.tensors)[3]]
        )
    if how == "remove":
        del parts.tensors[at]
    elif how == "double":
        parts.tensors.insert(rng.randrange(len(parts.tensors)), (name, sizes, kind, offset))
    elif how == "swap":
        other = rng.randrange(len(parts.tensors))
        parts.tensors[at], parts.tensors[other] = parts.tensors[other], parts.tensors[at]
    else:
        parts.tensors[at] = (name, sizes, kind, offset)
    return f"tensor {at} {how}: {name!r} {sizes} {kind} {offset}"


def lay_out(parts: Parts) -> None:
    """Offsets as they must be for these shapes and types, where the types are known."""
    from ayaedge.decoder.gguf_file import STORAGE_TYPES

    offset = 0
    for at, (name, sizes, kind, _) in enumerate(parts.tensors):
        parts.tensors[at] = (name, sizes, kind, offset % 2**64)
        weights = 1
        for size in sizes:
            weights *= size
        stored = STORAGE_TYPES.get(kind, STORAGE_TYPES[0])
        offset += weights // stored.weights * stored.block_bytes
        offset += -offset % 32


CHANGES = [
    set_value,
    set_value,
    set_value,
    retype,
    remove_key,
    double_key,
    add_key,
    add_key,
    change_array,
    change_text,
    change_tensor,
    change_tensor,
]


def changed_bytes(file: bytes, header_bytes: int, rng: random.Random) -> tuple[bytes, str]:
    """Bytes of the header flipped or overwritten, or the file cut."""
    data, how = bytearray(file), rng.choice(["flip", "flip", "flip", "cut", "count", "word"])
    at = rng.choice(
        [
            rng.randrange(header_bytes),
            rng.randrange(min(header_bytes, 2000)),
            header_bytes - 1 - rng.randrange(2000),
        ]
    )
    if how == "flip":
        data[at] ^= 1 << rng.randrange(8)
    elif how == "cut":
        del data[rng.choice([at, len(data) - 1, len(data) - 4096, header_bytes]) :]
    elif how == "count":
        at = rng.choice([4, 8, 16])
        struct.pack_into("<Q", data, at, rng.choice([*WHOLE, 4, 35, 40]))
    else:
        struct.pack_into("<Q", data, at - at % 8, rng.choice(WHOLE))
    return bytes(data), f"{how} at {at}"


def changed_file(seed: int) -> tuple[Parts, bytes, str]:
    """A file that belongs to this seed: its pieces, its bytes, and what was changed."""
    rng = random.Random(seed)
    architecture = ["cohere2", "command-r"][seed % 2]
    whole = base(architecture)
    parts = Parts(list(whole.keys), list(whole.tensors), whole.data)
    said = [change(parts, rng) for change in rng.choices(CHANGES, k=rng.choice([0, 1, 1, 1, 2, 3]))]
    if rng.random() < 0.5:
        lay_out(parts)
    file = parts.file
    if len(said) == 0:
        file, how = changed_bytes(file, len(file) - len(parts.data), rng)
        said.append(how)
    return parts, file, f"{architecture}: {'; '.join(said)}"


def fitting(manifest: Manifest, parts: Parts) -> Manifest:
    """The manifest with the figures of a header, as far as it has them."""
    values = {name.decode("utf-8", "replace"): value for name, _, value in parts.keys}
    arch = values.get("general.architecture")
    arch = arch.decode("utf-8", "replace") if isinstance(arch, bytes) else "cohere2"
    table = next((tensor for tensor in parts.tensors if tensor[0] == b"token_embd.weight"), None)
    decoder = manifest.decoder
    fields: dict[str, Any] = {"architecture": arch, "sliding_window": None}
    for field, key in {
        "hidden_size": "embedding_length", "vocab_size": "vocab_size", "num_layers": "block_count",
        "context_length": "context_length", "sliding_window": "attention.sliding_window",
    }.items():  # fmt: skip
        if isinstance(values.get(f"{arch}.{key}"), int):
            fields[field] = values[f"{arch}.{key}"]
    if isinstance(values.get(f"{arch}.logit_scale"), float):
        fields["logit_scale"] = values[f"{arch}.logit_scale"]
    if table:
        place = len(parts.header) + table[3]
        fields["embeddings"] = EmbeddingTable(decoder.embeddings.type, place, decoder.embeddings.row_bytes)
    return replace(manifest, decoder=replace(decoder, **fields))


# --- in the child ---------------------------------------------------------------------------------------------------
def outcomes(first: int) -> Iterator[str]:
    """For each seed from `first` on: `loaded`, or why not."""
    manifest = read_manifest(demo_bundle())
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "decoder.gguf"
        for seed in count(first):
            parts, file, _ = changed_file(seed)
            path.write_bytes(file)
            yield outcome(path, fitting(manifest, parts) if seed % 4 < 3 else manifest)


def outcome(path: Path, manifest: Manifest) -> str:
    """What a decoder's file comes to: `loaded` when a token was decoded, else the error's class and message."""
    try:
        with open_vocabulary(path) as vocabulary:
            vocabulary.tokenize("A text, 123 é 한\n")
        with Decoder(path, manifest, DecoderOptions(threads=1)) as decoder:
            ids = decoder.vocabulary.tokenize("A text, 123 é 한\n")
            decoder.decode_tokens([*ids, 0][: min(40, decoder.context_size)])
            decoder.likeliest()
            for token in range(0, decoder.vocabulary.size, 7):
                decoder.vocabulary.piece(token)
    except AyaEdgeError as error:
        return f"{type(error).__name__}: {error}"
    return "loaded"
