"""Options that several commands share, and what they say about the two halves of a bundle."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from functools import update_wrapper
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any, cast, get_type_hints

import typer

from ayaedge.cache.options import NO_CACHE, CacheOptions
from ayaedge.decoder.kernel_trial import VARIABLE
from ayaedge.decoder.options import Acceleration, CacheType, DecoderOptions
from ayaedge.decoder.sampling import SamplingKeywords
from ayaedge.engine.loading import EngineOptions
from ayaedge.errors import InvalidOptionError
from ayaedge.files import read_text
from ayaedge.hardware.devices import Device
from ayaedge.images.tile_budget import TileChoice, TileKeywords
from ayaedge.images.tiling import TilePolicy
from ayaedge.model import AyaVision
from ayaedge.vision.session import VisionOptions

_DECODING, _DEVICES, _FORM = "Decoding", "Devices", "Form of the answer"

ModelOption = Annotated[
    Path | None, typer.Option("-m", "--model", help="Bundle directory; without it the demonstration model.")
]
ImageOption = Annotated[list[str] | None, typer.Option("--image", help="An image; repeatable.")]
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
ContextOption = Annotated[int | None, typer.Option("-c", "--ctx-size", help="Tokens of context.")]
DeviceOption = Annotated[
    Device, typer.Option("--device", rich_help_panel=_DEVICES, help="Where both halves run.")
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


@dataclass(frozen=True)
class SamplingFlags:
    """How the next token is chosen: the fields of `SamplingOptions`."""

    temperature: Annotated[float, typer.Option(help="0 is deterministic.")] = 0.0
    top_k: Annotated[int, typer.Option(help="Keep this many of the likeliest tokens; 0 keeps all.")] = 0
    top_p: Annotated[float, typer.Option(help="Keep the likeliest tokens up to this probability.")] = 1.0
    min_p: Annotated[
        float, typer.Option(help="Keep tokens of at least this share of the likeliest one's probability.")
    ] = 0.0
    seed: Annotated[int | None, typer.Option(help="Of the random numbers.")] = None

    def keywords(self) -> SamplingKeywords:
        """Keywords of every way to ask."""
        return cast("SamplingKeywords", asdict(self))


@dataclass(frozen=True)
class TileFlags:
    """How many tiles images get."""

    max_tiles: Annotated[
        int | None, typer.Option(help="Most tiles of an image, the thumbnail not counted: fewer are faster.")
    ] = None
    tiles: Annotated[
        TilePolicy | None,
        typer.Option(
            help="faithful: the reference's grid; native: never more than the image has pixels for; "
            "auto: as many as --budget allows on this machine. [default: faithful]"
        ),
    ] = None
    budget: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="To the first token; implies --tiles auto.")
    ] = None

    def choice(self) -> TileChoice:
        """What they say; without --tiles a budget means `auto`."""
        tiles = self.tiles or ("faithful" if self.budget is None else "auto")
        return TileChoice(tiles, self.max_tiles, self.budget)

    def keywords(self) -> TileKeywords:
        """Keywords of every way to ask."""
        choice = self.choice()
        return TileKeywords(tiles=choice.policy, max_tiles=choice.max_tiles, budget=choice.budget)


@dataclass(frozen=True)
class DecoderFlags:
    """How a bundle is loaded, as far as that decides about memory."""

    ctx_size: ContextOption = None
    batch_size: Annotated[
        int,
        typer.Option("-b", "--batch-size", rich_help_panel=_DECODING, help="Tokens of prompt in one call."),
    ] = 512
    ubatch_size: Annotated[
        int | None,
        typer.Option(
            "-ub", "--ubatch-size", rich_help_panel=_DECODING, help="Tokens that are computed at once."
        ),
    ] = None
    cache_type_k: Annotated[
        CacheType,
        typer.Option(
            "-ctk", "--cache-type-k", rich_help_panel=_DECODING, help="Format of keys in the KV cache."
        ),
    ] = "f16"
    cache_type_v: Annotated[
        CacheType | None,
        typer.Option(
            "-ctv", "--cache-type-v", rich_help_panel=_DECODING, help="Of values. [default: as the keys]"
        ),
    ] = None
    flash_attn: Annotated[
        bool | None,
        typer.Option(
            "--flash-attn/--no-flash-attn",
            rich_help_panel=_DECODING,
            help="[default: on for GPUs and quantized values]",
        ),
    ] = None
    device: DeviceOption = "auto"
    n_gpu_layers: LayersOption = "auto"
    vision_device: Annotated[
        str | None,
        typer.Option(
            "--vision-device",
            metavar="DEVICE[:N]",
            rich_help_panel=_DEVICES,
            help="Of the vision tower; webgpu:1 is the second of its kind in ayaedge doctor. [default: --device]",
        ),
    ] = None

    def decoder(self) -> DecoderOptions:
        """Options of the decoder."""
        return DecoderOptions(
            context_size=self.ctx_size, batch_size=self.batch_size, ubatch_size=self.ubatch_size,
            cache_type=self.cache_type_k, cache_type_v=self.cache_type_v, flash_attention=self.flash_attn,
            gpu_layers=gpu_layers(self.n_gpu_layers),
        )  # fmt: skip


@dataclass(frozen=True)
class LoadingFlags(DecoderFlags):
    """How a bundle is loaded."""

    threads: Annotated[
        int | None, typer.Option("-t", "--threads", help="Processor threads. [default: tuned, or all]")
    ] = None
    draft: Annotated[
        int,
        typer.Option(rich_help_panel=_DECODING, help="Most tokens to guess in a step when an answer copies."),
    ] = 0
    cache: Annotated[
        bool, typer.Option(help="Keep what was computed for images, in files that only you can read.")
    ] = True

    acceleration: Annotated[
        Acceleration,
        typer.Option(
            rich_help_panel=_DECODING,
            envvar=VARIABLE,
            help="Kernels of ours for the prefill on processors; auto tries the best one before the first use.",
        ),
    ] = "auto"

    def engine(self, *, verbose: bool) -> EngineOptions:
        """What they ask of whatever loads the bundle."""
        decoder = replace(
            self.decoder(), threads=self.threads, draft_tokens=self.draft, acceleration=self.acceleration
        )
        vision = VisionOptions(threads=self.threads, device=self.vision_device, verbose=verbose)
        return EngineOptions(self.device, decoder, vision, CacheOptions() if self.cache else NO_CACHE)

    def load(self, model: Path | None, *, verbose: bool, isolated: bool = False) -> AyaVision:
        """The bundle, loaded."""
        asked = self.engine(verbose=verbose)
        return AyaVision.load(
            model, device=asked.device, decoder=asked.decoder, vision=asked.vision, cache=asked.cache,
            isolated=isolated,
        )  # fmt: skip


def takes_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Let each parameter of a command that is one of the classes above come from the flags that are its fields."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    parameters = []
    for parameter in signature(command).parameters.values():
        group = groups.get(parameter.name)
        if group is None:
            parameters.append(parameter.replace(annotation=hints[parameter.name]))
            continue
        types = get_type_hints(group, include_extras=True)
        parameters += [
            Parameter(one.name, parameter.kind, default=one.default, annotation=types[one.name])
            for one in fields(group)
        ]

    def run(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = group(**{one.name: given.pop(one.name) for one in fields(group)})
        command(**given)

    update_wrapper(run, command)
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    return run


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
