"""A tokenizer as large as Aya Vision's, for bundles without released files, and a chat template of the same length.

Special tokens, bytes and the first merges are those of the demo bundle, which were trained in this project. All other
tokens are two of its words joined, each with its merge, so that loading and tokenizing cost what they cost with the
released vocabulary, and every row of the embeddings is a piece of text.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import as_file, files
from itertools import product

import gguf

from ayaedge.bundle import read_manifest
from ayaedge.manifest import DECODER, Manifest
from ayaedge_export.checkpoint.tokenizer import Tokenizer

_SPACE = "Ġ"
"""A space in byte-level spelling."""
_PREAMBLE = (
    "Look at the picture with care, and answer the question about it in the language of the question. "
)
_TEMPLATE = """\
{{- bos_token -}}
<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>PREAMBLE<|END_OF_TURN_TOKEN|>
{%- for turn in messages -%}
    {%- set opening = {'system': '<|SYSTEM_TOKEN|>', 'user': '<|USER_TOKEN|>'} -%}
    {{- '<|START_OF_TURN_TOKEN|>' + opening.get(turn.role, '<|CHATBOT_TOKEN|>') -}}
    {%- if turn.content is string -%}
        {{- turn.content -}}
    {%- else -%}
        {%- for part in turn.content if part.type == 'image' -%}{{- '<image>' -}}{%- endfor -%}
        {%- for part in turn.content if part.type == 'text' -%}{{- part.text -}}{%- endfor -%}
    {%- endif -%}
    {{- '<|END_OF_TURN_TOKEN|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' -}}{%- endif -%}
"""


def read_demo() -> tuple[Manifest, Tokenizer]:
    """The manifest and the tokenizer of the bundle that is installed with the package."""
    with as_file(files("ayaedge") / "demo") as directory:
        manifest = read_manifest(directory)
        fields = gguf.GGUFReader(directory / DECODER).fields
    tokens, merges, kinds = (
        fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "merges", "token_type")
    )
    ordinary = {
        token: index
        for index, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind == gguf.TokenType.NORMAL
    }
    special = manifest.tokens
    tokenizer = Tokenizer(
        ordinary,
        tuple(merges),
        special.added,
        special.hidden,
        special.named,
        adds_bos=True,
        texts=special.texts,
    )
    return manifest, tokenizer


def fill_vocabulary(tokenizer: Tokenizer, size: int) -> Tokenizer:
    """The same tokenizer with as many joined words as it takes to have `size` tokens; ids that are taken stay."""
    vocab, merges = dict(tokenizer.vocab), list(tokenizer.merges)
    taken = {*vocab.values(), *tokenizer.added.values()}
    free = (index for index in range(size) if index not in taken)
    for index, (left, right) in zip(free, _joined_words(tokenizer), strict=False):
        vocab[left + right] = index
        merges.append(f"{left} {right}")
    return replace(tokenizer, vocab=vocab, merges=tuple(merges))


def chat_template(repeats: int) -> str:
    """A template whose fixed preamble is one sentence, so many times."""
    return _TEMPLATE.replace("PREAMBLE", (_PREAMBLE * repeats).strip())


def _joined_words(tokenizer: Tokenizer) -> Iterator[tuple[str, str]]:
    """Pairs of Latin words, each of which gives a text that is no token yet."""
    bare = {token: token.removeprefix(_SPACE) for token in tokenizer.vocab}
    words = [token for token, text in bare.items() if text.isascii() and text.isalpha()]
    endings = [word for word in words if not word.startswith(_SPACE)]
    seen = set(tokenizer.vocab)
    for left, right in product(words, endings):
        if left + right not in seen:
            seen.add(left + right)
            yield left, right
