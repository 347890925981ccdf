"""The manifest of a bundle, from its checkpoint."""

from __future__ import annotations

import platform
from importlib import metadata

from ayaedge import __version__
from ayaedge.manifest import DecoderInfo, EmbeddingTable, Formats, Manifest, Source, Tokens
from ayaedge_export.checkpoint.checkpoint import Checkpoint
from ayaedge_export.decoder.gguf_writer import ARCHITECTURES

_WRITERS = ("onnx", "gguf", "llama-cpp-python", "numpy")
"""Packages, next to ayaedge itself, whose versions decide about the bytes of a bundle."""


def describe(checkpoint: Checkpoint, embeddings: EmbeddingTable, formats: Formats) -> Manifest:
    """The manifest of a bundle made from `checkpoint`; files are added when they are written."""
    text, tokenizer = checkpoint.config.text, checkpoint.tokenizer
    return Manifest(
        source=Source(checkpoint.name, text.model_type, checkpoint.parameters, checkpoint.license),
        formats=formats,
        tiling=checkpoint.tiling,
        image_prompt=checkpoint.image_prompt,
        tokens=Tokens(
            special=tokenizer.markers,
            named=tokenizer.named,
            image_patch=checkpoint.config.image_token_id,
            bos=tokenizer.added[tokenizer.bos],
            stop=checkpoint.stop_ids,
            hidden=tokenizer.hidden,
            texts=tokenizer.texts,
        ),
        decoder=DecoderInfo(
            architecture=ARCHITECTURES[text.model_type],
            hidden_size=text.hidden_size,
            vocab_size=text.vocab_size,
            num_layers=text.num_layers,
            context_length=text.context_length,
            embeddings=embeddings,
            sliding_window=text.sliding_window,
            logit_scale=text.logit_scale,
        ),
        chat_template=checkpoint.chat_template,
        created_by=describe_writers(),
    )


def describe_writers() -> dict[str, str]:
    """Versions of everything that decides about the bytes of a bundle."""
    versions = {"ayaedge": __version__} | {name: _version_of(name) for name in _WRITERS}
    return versions | {"machine": platform.machine()}


def _version_of(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:  # in a frozen program
        return "unknown"
