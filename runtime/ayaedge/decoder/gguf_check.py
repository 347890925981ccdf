"""Whether a decoder.gguf is what the exporter writes, and belongs to its manifest: asked before llama.cpp sees it.

llama.cpp ends the process where a header is not as it must be: no block, a token that stands there twice, a norm of
another type. No list of such cases would be complete, so what is checked is the other way round: nothing may stand
there but what the exporter writes. The weights themselves are not looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ayaedge.decoder.gguf_file import ALIGNMENT, STORAGE_TYPES, Header, Strings, Tensor, read_header
from ayaedge.decoder.gguf_header import MOST_LAYERS
from ayaedge.errors import BundleError, list_faults
from ayaedge.manifest import Manifest

ARCHITECTURES = ("cohere2", "command-r")
_TOKENIZER = "tokenizer.ggml"
_TOKEN_TYPES = (1, 3, 4, 5)
"""Of `llama_token_type`: normal, control, user-defined, unused."""
_MOST = 1 << 24
_BLANK = 32
_QK_NORM_LAYERS = 64
"""llama.cpp's command-r has norms of queries and keys from so many layers on."""


class Rule(NamedTuple):
    """What a key must hold."""

    kind: str
    holds: Callable[[Any], bool]
    words: str
    """What `holds` demands."""
    needed: bool = True


def _whole(least: int, most: int = _MOST) -> Rule:
    return Rule("uint32", lambda value: least <= value <= most, f"from {least} to {most}")


def _number(most: float) -> Rule:
    return Rule("float32", lambda value: 0 < value <= most, f"above 0 and at most {most:g}")


def _one_of(*choices: str) -> Rule:
    return Rule("string", lambda value: value in choices, " or ".join(map(repr, choices)))


def _anything(kind: str, *, needed: bool = False) -> Rule:
    return Rule(kind, lambda _: True, "anything", needed)


_GENERAL = {
    "general.type": _one_of("model")._replace(needed=False), "general.name": _anything("string"),
    "general.license": _anything("string"), "general.file_type": _anything("uint32"),
    "general.quantization_version": _anything("uint32"), "quantize.imatrix.dataset": _anything("string"),
    "quantize.imatrix.entries_count": _anything("uint32"), "quantize.imatrix.chunks_count": _anything("uint32"),
}  # fmt: skip
_VOCABULARY = {
    f"{_TOKENIZER}.model": _one_of("gpt2"), f"{_TOKENIZER}.pre": _one_of("command-r"),
    f"{_TOKENIZER}.tokens": _anything("array of string", needed=True),
    f"{_TOKENIZER}.token_type": _anything("array of int32", needed=True),
    f"{_TOKENIZER}.merges": _anything("array of string", needed=True),
    f"{_TOKENIZER}.bos_token_id": _whole(0), f"{_TOKENIZER}.eos_token_id": _whole(0),
    f"{_TOKENIZER}.padding_token_id": _whole(0)._replace(needed=False),
    f"{_TOKENIZER}.add_bos_token": _anything("bool", needed=True), "tokenizer.chat_template": _anything("string"),
}  # fmt: skip
_MODEL = {
    "context_length": _whole(2), "embedding_length": _whole(1), "block_count": _whole(1, MOST_LAYERS),
    "feed_forward_length": _whole(1), "attention.head_count": _whole(1), "attention.head_count_kv": _whole(1),
    "attention.layer_norm_epsilon": _number(1.0), "rope.freq_base": _number(1e30), "rope.dimension_count": _whole(2),
    "rope.scaling.type": _one_of("none"), "logit_scale": _number(1e30), "vocab_size": _whole(1),
}  # fmt: skip
_WINDOW = {
    "attention.sliding_window": _whole(1),
    "attention.sliding_window_pattern": _anything("array of bool", needed=True),
}


def check_decoder(path: Path, manifest: Manifest) -> None:
    """Raise BundleError, with all faults, unless a file's header is what the exporter writes for this manifest."""
    checked = _Checked(_open(path))
    checked.keys(whole=True)
    checked.vocabulary()
    checked.shapes()
    if checked.faults:
        raise BundleError(_faulty(path, checked.faults))
    if faults := _mismatches(checked, manifest):
        raise BundleError(list_faults(f"{path} does not belong to this bundle", faults))


def check_vocabulary(path: Path) -> None:
    """Raise BundleError, with all faults, unless a file is what the exporter writes, or the tokenizer of that alone."""
    header = _open(path)
    checked = _Checked(header)
    checked.keys(whole=bool(header.tensors))
    checked.vocabulary()
    if header.tensors:
        checked.shapes()
    if checked.faults:
        raise BundleError(_faulty(path, checked.faults))


def _open(path: Path) -> Header:
    try:
        return read_header(path)
    except (OSError, ValueError) as error:
        raise BundleError(f"llama.cpp cannot load {path}: {error}") from None


def _faulty(path: Path, faults: list[str]) -> str:
    return list_faults(f"{path} is not as it was exported; copy or export it again", faults)


class _Checked:
    """A header, what is wrong with it, and the values that are right."""

    def __init__(self, header: Header) -> None:
        self.header = header
        self.faults = list(header.faults)
        self.values: dict[str, Any] = {}
        """Of keys that hold what they must, those of the architecture without its name."""

    def keys(self, *, whole: bool) -> None:
        """Check each key; those of the model must be there if the file is `whole`."""
        named = self.header.values.get("general.architecture")
        arch = named.value if named and named.kind == "string" else None
        if arch not in ARCHITECTURES:
            self.faults.append(
                f"general.architecture is {arch!r}, and only {', '.join(ARCHITECTURES)} are known"
            )
            return
        self.values["architecture"] = arch
        model = _MODEL | (_WINDOW if arch == "cohere2" else {})
        rules = _GENERAL | _VOCABULARY | {
            f"{arch}.{key}": rule if whole else rule._replace(needed=False) for key, rule in model.items()
        }  # fmt: skip
        for key in self.header.values:
            if key not in rules and key != "general.architecture":
                self.faults.append(f"{key!r} is none of its keys")
        for key, rule in rules.items():
            self._key(key, rule, key.removeprefix(f"{arch}."))

    def _key(self, key: str, rule: Rule, name: str) -> None:
        found = self.header.values.get(key)
        if found is None:
            if rule.needed:
                self.faults.append(f"{key} is missing")
        elif found.kind != rule.kind:
            self.faults.append(f"{key} has the wrong type: {found.kind} instead of {rule.kind}")
        elif not rule.holds(found.value):
            self.faults.append(f"{key} is {found.value!r:.80}, it must be {rule.words}")
        else:
            self.values[name] = found.value

    def vocabulary(self) -> None:
        """Check tokens, their types, merges and special ids."""
        tokens: Strings | None = self.values.get(f"{_TOKENIZER}.tokens")
        merges: Strings | None = self.values.get(f"{_TOKENIZER}.merges")
        if merges is not None:
            self.faults += _merge_faults(merges)
        if tokens is None:
            return
        self.faults += _token_faults(tokens)
        types: NDArray[np.int32] | None = self.values.get(f"{_TOKENIZER}.token_type")
        if types is not None and (len(types) != len(tokens) or not np.isin(types, _TOKEN_TYPES).all()):
            self.faults.append(
                f"{_TOKENIZER}.token_type must be one of {_TOKEN_TYPES} for each of {len(tokens)} tokens"
            )
        for name in ("bos", "eos", "padding"):
            index = self.values.get(f"{_TOKENIZER}.{name}_token_id", 0)
            if index >= len(tokens):
                self.faults.append(
                    f"{_TOKENIZER}.{name}_token_id is {index}, and there are {len(tokens)} tokens"
                )
        if self.values.get("vocab_size", len(tokens)) != len(tokens):
            self.faults.append(
                f"there are {len(tokens)} tokens, but the vocabulary's size is {self.values['vocab_size']}"
            )

    def shapes(self) -> None:
        """Check how the figures go together, and all tensors, if each figure alone is right."""
        if not self.values.keys() >= _MODEL.keys():
            return
        layers, hidden, heads = (
            self.values[key] for key in ("block_count", "embedding_length", "attention.head_count")
        )
        kv_heads, rotated = self.values["attention.head_count_kv"], self.values["rope.dimension_count"]
        if hidden % heads or heads % kv_heads or rotated != hidden // heads or rotated % 2:
            self.faults.append(
                f"{heads} heads, {kv_heads} of them for keys, and {rotated} rotated values cannot share "
                f"{hidden} columns"
            )
            return
        pattern = self.values.get("attention.sliding_window_pattern")
        if pattern is not None and (len(pattern) != layers or pattern.max(initial=0) != 1):
            self.faults.append(
                f"the pattern of sliding blocks must hold a flag for each of {layers}, and one must be set"
            )
        self.faults += _tensor_faults(self.header, expected_tensors(self.values))


def _token_faults(tokens: Strings) -> list[str]:
    """What is wrong with the tokens, which must be different texts."""
    if fault := tokens.fault():
        return [f"{_TOKENIZER}.tokens: {fault}"]
    if not len(tokens) or not tokens.lengths.all():
        return [f"{_TOKENIZER}.tokens is empty, or holds an empty token"]
    if same := tokens.doubled():
        return [f"token {tokens[same[0]].decode()!r:.80} stands there twice, as {same[0]} and {same[1]}"]
    return []


def _merge_faults(merges: Strings) -> list[str]:
    """What is wrong with merges, which must be two texts with one blank between them."""
    if fault := merges.fault():
        return [f"{_TOKENIZER}.merges: {fault}"]
    blanks = merges.places(_BLANK)
    if not len(merges) or len(blanks) != len(merges):
        return [
            f"{_TOKENIZER}.merges holds {len(blanks)} blanks in {len(merges)} merges, and each must have one"
        ]
    wrong = np.flatnonzero((blanks <= merges.starts) | (blanks >= merges.starts + merges.lengths - 1))
    return [f"{_TOKENIZER}.merges: number {number} is no pair of tokens" for number in wrong[:1]]


def expected_tensors(values: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a decoder's tensors, from the values of its keys."""
    hidden, inner, heads = (
        values[key] for key in ("embedding_length", "feed_forward_length", "attention.head_count")
    )
    head, kv_heads = hidden // heads, values["attention.head_count_kv"]
    block: dict[str, tuple[int, ...]] = {
        "attn_norm": (hidden,), "attn_q": (hidden, hidden), "attn_k": (kv_heads * head, hidden),
        "attn_v": (kv_heads * head, hidden), "attn_output": (hidden, hidden), "ffn_gate": (inner, hidden),
        "ffn_up": (inner, hidden), "ffn_down": (hidden, inner),
    }  # fmt: skip
    if values["architecture"] == "command-r" and values["block_count"] >= _QK_NORM_LAYERS:
        block |= {"attn_q_norm": (heads, head), "attn_k_norm": (kv_heads, head)}
    shapes = {"token_embd.weight": (values["vocab_size"], hidden), "output_norm.weight": (hidden,)}
    for layer in range(values["block_count"]):
        shapes |= {f"blk.{layer}.{name}.weight": shape for name, shape in block.items()}
    return shapes


def _tensor_faults(header: Header, expected: dict[str, tuple[int, ...]]) -> list[str]:
    """What is wrong with the tensors, which must lie one behind the other inside the file."""
    faults = [
        f"{tensor.name!r} is none of its tensors" for tensor in header.tensors if tensor.name not in expected
    ]
    missing = expected.keys() - {tensor.name for tensor in header.tensors}
    faults += [f"the tensor {name} is missing" for name in sorted(missing)]
    end = 0
    for tensor in header.tensors:
        if fault := _tensor_fault(tensor, expected.get(tensor.name, tensor.shape)):
            return [*faults, fault]  # where those behind it must lie is not known
        if tensor.offset != end:
            return [*faults, f"{tensor.name} begins at {tensor.offset} instead of {end}"]
        end += tensor.nbytes or 0
        if header.data_start + end > header.file_bytes:
            return [*faults, f"{tensor.name} ends behind the end of the file"]
        end += -end % ALIGNMENT
    return faults


def _tensor_fault(tensor: Tensor, shape: tuple[int, ...]) -> str | None:
    name = tensor.name
    if tensor.shape != shape:
        return f"{name} has the shape {tensor.shape}, it must have {shape}"
    stored = STORAGE_TYPES.get(tensor.kind)
    if stored is None or (name.endswith("_norm.weight") and stored.name != "F32"):
        return (
            f"{name} is stored as type {stored.name if stored else tensor.kind}, which is not written for it"
        )
    if tensor.nbytes is None:
        return f"{name} has rows of {shape[-1] if shape else 0} weights, which {stored.name} cannot hold"
    return None


def _mismatches(checked: _Checked, manifest: Manifest) -> list[str]:
    """Where the file says something else than the manifest: the weights of another checkpoint."""
    decoder, values = manifest.decoder, checked.values
    pairs = {
        "architecture": (values["architecture"], decoder.architecture),
        "hidden size": (values["embedding_length"], decoder.hidden_size),
        "vocabulary": (values["vocab_size"], decoder.vocab_size),
        "number of layers": (values["block_count"], decoder.num_layers),
        "context": (values["context_length"], decoder.context_length),
        "sliding window": (values.get("attention.sliding_window"), decoder.sliding_window),
    }
    faults = [
        f"its {what} is {found}, the manifest says {said}"
        for what, (found, said) in pairs.items()
        if found != said
    ]
    scale = decoder.logit_scale
    if scale is not None and not math.isclose(values["logit_scale"], scale, rel_tol=1e-6):
        faults.append(f"its logit scale is {values['logit_scale']:g}, the manifest says {scale:g}")
    return faults or _other_places(checked, manifest)


def _other_places(checked: _Checked, manifest: Manifest) -> list[str]:
    """Where tokens and embeddings stand elsewhere than the manifest says."""
    header, table = checked.header, manifest.decoder.embeddings
    tokens: Strings = checked.values[f"{_TOKENIZER}.tokens"]
    faults = []
    (found,) = (tensor for tensor in header.tensors if tensor.name == "token_embd.weight")
    stored = STORAGE_TYPES[found.kind]
    row = found.shape[-1] // stored.weights * stored.block_bytes
    place = header.data_start + found.offset
    if (stored.name, place, row) != (table.type, table.offset, table.row_bytes):
        faults.append(
            f"it cannot hold the embeddings that the manifest describes: {table}; those in it are rows of {row} bytes "
            f"of {stored.name} from byte {place} on"
        )
    for text, index in manifest.tokens.added.items():
        spelled = tokens[index].decode()
        if spelled != text:
            faults.append(f"its token {index} is {spelled!r}, the manifest says {text!r}")
    return faults
