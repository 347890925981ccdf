"""Options that several commands share, and what they say about the two halves of a bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ayaedge.decoder.options import CacheType, DecoderOptions
from ayaedge.errors import InvalidOptionError
from ayaedge.files import read_text
from ayaedge.hardware.devices import Device
from ayaedge.images.tiling import TilePolicy

_DECODING, _DEVICES, _FORM = "Decoding", "Devices", "Form of the answer"

ModelOption = Annotated[
    Path | None, typer.Option("-m", "--model", help="Bundle directory; without it the demonstration model.")
]
ImageOption = Annotated[list[str] | None, typer.Option("--image", help="A picture; repeatable.")]
StopOption = Annotated[
    list[str] | None,
    typer.Option("--stop", rich_help_panel=_FORM, help="End before this text; repeatable."),
]
JsonSchemaOption = Annotated[
    str | None,
    typer.Option(
        "-j",
        "--json-schema",
        metavar="JSON|FILE",
        rich_help_panel=_FORM,
        help="Answer in JSON that fits this schema; {} for any object.",
    ),
]
GrammarOption = Annotated[
    str | None,
    typer.Option(metavar="GBNF|FILE", rich_help_panel=_FORM, help="Answer as this grammar allows."),
]
ChoiceOption = Annotated[
    list[str] | None,
    typer.Option("--choice", rich_help_panel=_FORM, help="Answer with one of these; repeatable."),
]
CacheOption = Annotated[
    bool, typer.Option(help="Keep what was computed for pictures, in files that only you can read.")
]
MaxTilesOption = Annotated[
    int | None, typer.Option(help="Most tiles of a picture, the thumbnail not counted: fewer are faster.")
]
TilesOption = Annotated[
    TilePolicy | None,
    typer.Option(
        help="faithful: the reference's grid; native: never more than the picture has pixels for; "
        "auto: as many as --budget allows on this machine. [default: faithful]"
    ),
]
BudgetOption = Annotated[
    float | None, typer.Option(metavar="SECONDS", help="To the first token; implies --tiles auto.")
]
ContextOption = Annotated[int | None, typer.Option("-c", "--ctx-size", help="Tokens of context.")]
ThreadsOption = Annotated[
    int | None, typer.Option("-t", "--threads", help="Processor threads. [default: tuned, or all]")
]
BatchOption = Annotated[
    int, typer.Option("-b", "--batch-size", rich_help_panel=_DECODING, help="Tokens of prompt in one call.")
]
UbatchOption = Annotated[
    int | None,
    typer.Option("-ub", "--ubatch-size", rich_help_panel=_DECODING, help="Tokens that are computed at once."),
]
KeyTypeOption = Annotated[
    CacheType,
    typer.Option("-ctk", "--cache-type-k", rich_help_panel=_DECODING, help="Format of keys in the KV cache."),
]
ValueTypeOption = Annotated[
    CacheType | None,
    typer.Option(
        "-ctv", "--cache-type-v", rich_help_panel=_DECODING, help="Of values. [default: as the keys]"
    ),
]
FlashOption = Annotated[
    bool | None,
    typer.Option(
        "--flash-attn/--no-flash-attn",
        rich_help_panel=_DECODING,
        help="[default: on for GPUs and quantized values]",
    ),
]
DeviceOption = Annotated[
    Device, typer.Option("--device", rich_help_panel=_DEVICES, help="Where both halves run.")
]
VisionDeviceOption = Annotated[
    Device | None,
    typer.Option(
        "--vision-device", rich_help_panel=_DEVICES, help="Of the vision tower. [default: --device]"
    ),
]
LayersOption = Annotated[
    str,
    typer.Option(
        "-ngl",
        "--n-gpu-layers",
        metavar="N|auto",
        rich_help_panel=_DEVICES,
        help="Decoder layers on the GPU.",
    ),
]


def gpu_layers(text: str) -> int | None:
    """What -ngl says: a number of layers, or None for `auto`."""
    if text == "auto":
        return None
    try:
        return int(text)
    except ValueError:
        raise InvalidOptionError(f"-ngl must be a number of layers or auto, not {text!r}") from None


def schema_of(text: str | None) -> dict[str, Any] | None:
    """What -j says, itself or the name of a file that says it, as OpenAI's `response_format`."""
    if text is None:
        return None
    source = _itself_or_file(text, "{")
    try:
        schema = json.loads(source)
    except (ValueError, RecursionError) as error:
        raise InvalidOptionError(f"--json-schema is not valid JSON: {error}") from None
    if schema == {}:
        return {"type": "json_object"}
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


def grammar_of(text: str | None) -> str | None:
    """What --grammar says, itself or the name of a file that says it."""
    return None if text is None else _itself_or_file(text, "::=")


def _itself_or_file(text: str, sign: str) -> str:
    if sign in text:
        return text.removeprefix("\ufeff")  # "$(cat FILE)" passes it on
    try:
        return read_text(Path(text))
    except (OSError, ValueError) as error:
        raise InvalidOptionError(f"{text} cannot be read: {error}") from None


def tile_policy(tiles: TilePolicy | None, budget: float | None) -> TilePolicy:
    """What --tiles says; without it a budget means `auto`."""
    return tiles or ("faithful" if budget is None else "auto")


def decoder_options(
    *,
    context: int | None,
    threads: int | None,
    batch: int,
    ubatch: int | None,
    cache_type_k: CacheType,
    cache_type_v: CacheType | None,
    flash_attention: bool | None,
    layers: str = "auto",
    draft: int = 0,
) -> DecoderOptions:
    """The decoder's options from those of a command."""
    return DecoderOptions(
        context_size=context, threads=threads, batch_size=batch, ubatch_size=ubatch, cache_type=cache_type_k,
        cache_type_v=cache_type_v, flash_attention=flash_attention, gpu_layers=gpu_layers(layers),
        draft_tokens=draft,
    )  # fmt: skip
