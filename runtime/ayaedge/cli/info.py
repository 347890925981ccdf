"""`ayaedge info`: what a bundle is, and what it holds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from ayaedge.bundle import Bundle, read_bundle
from ayaedge.cli.console import JsonFlag, size_text, write_json_text, write_line

BundleArgument = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle directory.")]


def info(bundle: BundleArgument, as_json: JsonFlag = False) -> None:
    """Show what a bundle is and what it holds."""
    opened = read_bundle(bundle)
    if as_json:
        write_json_text(opened.manifest.to_json())
        return
    for name, value in _facts(opened):
        write_line(f"{name:<13} {value}")


def _facts(bundle: Bundle) -> Iterator[tuple[str, str]]:
    manifest = bundle.manifest
    tiling, decoder = manifest.tiling, manifest.decoder
    yield "bundle", f"{bundle.name} (format {manifest.format_version}, {size_text(bundle.size)})"
    yield "made from", f"{manifest.source.name}: {manifest.source.parameters / 1e6:,.1f} M parameters"
    yield "licence", manifest.source.license
    if merge := manifest.source.merge:
        yield "merged with", merge.text
        for model in filter(None, (merge.base, merge.ancestor)):
            yield "licence", f"{model.license} ({model.name})"
    yield (
        "vision",
        f"{manifest.formats.vision}, tiles of {tiling.tile_size} px, at most {tiling.max_tiles} and a thumbnail",
    )
    yield "image tokens", f"{manifest.image_prompt.tokens_per_tile} for each tile"
    layers = f"{decoder.num_layers} layers of {decoder.hidden_size}"
    window = f", window {decoder.sliding_window}" if decoder.sliding_window else ""
    yield "decoder", f"{manifest.formats.decoder}, {decoder.architecture}, {layers}{window}"
    if decoder.logit_scale is not None:
        yield "logit scale", f"{decoder.logit_scale:g}"
    if manifest.formats.adjustments:
        yield "adjusted by", ", ".join(manifest.formats.adjustments)
    for name, value in manifest.parity.items():
        yield "figure", f"{name}: {value:.3g}"
    yield "context", f"{decoder.context_length} tokens"
    for name, info in manifest.files.items():
        yield name, f"{size_text(info.size)}, SHA-256 {info.sha256}"
    yield "written by", ", ".join(f"{name} {version}" for name, version in manifest.created_by.items())
