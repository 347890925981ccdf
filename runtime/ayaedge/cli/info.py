"""`ayaedge info`: what a bundle is, and what it holds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from ayaedge.bundle import Bundle, read_bundle
from ayaedge.cache.options import CacheOptions
from ayaedge.cli.console import JsonFlag, size_text, write_json, write_json_text, write_line
from ayaedge.decoder.kernel_trial import Verdict, settle_acceleration, verdict_of
from ayaedge.planning.placement import resolve

BundleArgument = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle directory.")]


def info(
    bundle: BundleArgument,
    verbose: Annotated[
        bool,
        typer.Option("-v", "--verbose", help="Show what its prefill runs with here, and what that gains."),
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Show what a bundle is and what it holds."""
    opened = read_bundle(bundle)
    if as_json and not verbose:
        write_json_text(opened.manifest.to_json())
        return
    kernel = _kernel(opened) if verbose else None
    if as_json:
        manifest: dict[str, Any] = json.loads(opened.manifest.to_json())
        write_json({**manifest, "acceleration": asdict(kernel) if kernel else None})
        return
    for name, value in _facts(opened):
        write_line(f"{name:<13} {value}")
    if kernel:
        write_line(f"{'acceleration':<13} {kernel.text}")


def _kernel(bundle: Bundle) -> Verdict:
    """Of those that a prefill runs with, as `AyaVision.load` chooses; tried first where nothing is known of it."""
    cache = CacheOptions().settled()
    placed = resolve(bundle, cache=cache)
    return verdict_of(settle_acceleration(placed.decoder, cache.root), cache.root)


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
