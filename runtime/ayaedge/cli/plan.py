"""The commands that look ahead: what a question or an export will take, and which settings are fastest here."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, cast

import typer
from rich.table import Table

from ayaedge.bundle import Bundle, demo_bundle, read_bundle
from ayaedge.cache.options import CacheOptions
from ayaedge.cli import export as exporting
from ayaedge.cli.console import JsonFlag, announce, print_table, size_text, stderr, with_flags, write_json
from ayaedge.cli.export import DecoderFormat, OutputType, TensorTypes, VisionFormats
from ayaedge.cli.merging import MergeFlags
from ayaedge.cli.options import (
    ContextOption,
    DecoderFlags,
    DeviceOption,
    ImageOption,
    LayersOption,
    ModelOption,
    TileFlags,
    gpu_layers,
    takes_flags,
)
from ayaedge.decoder.kernel_trial import verdict_of
from ayaedge.decoder.options import Acceleration, DecoderOptions
from ayaedge.errors import InvalidOptionError
from ayaedge.images.load import image_size, list_images
from ayaedge.planning.costs import QuestionCost
from ayaedge.planning.profile import Profile, Settings, profile_path, save_profile
from ayaedge.planning.question_plan import plan_question
from ayaedge.planning.tuning import Trial
from ayaedge.planning.tuning import tune as tune_bundle
from ayaedge.vision.session import VisionOptions


@takes_flags
def plan(
    model: ModelOption = None,
    image: ImageOption = None,
    question: Annotated[str, typer.Option("-p", "--prompt", help="What will be asked.")] = "",
    *,
    tiles: TileFlags,
    loading: DecoderFlags,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--export", metavar="CHECKPOINT", rich_help_panel="Export", help="Plan its export instead."
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", rich_help_panel="Export", help="Where the bundle would lie.")
    ] = Path(),
    quant: Annotated[
        DecoderFormat, typer.Option(rich_help_panel="Export", help="Number format of the decoder.")
    ] = "q4_k_m",
    vision: VisionFormats = None,
    tensor_type: TensorTypes = None,
    output_type: OutputType = None,
    merging: MergeFlags,
    as_json: JsonFlag = False,
) -> None:
    """Show what a question about images will take, or what an export would write, before any work.

    Exit code 1 if the question cannot run here: the table ends with what to change. Seconds are known where the bundle
    was measured on this machine (`ayaedge tune`, or one question with --tiles auto).
    """
    if checkpoint is not None:
        if model or image:
            raise InvalidOptionError("--export plans an export: it goes without -m and --image")
        exporting.plan_export(
            checkpoint, output=output, quant=quant, vision=vision,
            tensor_type=tensor_type, output_type=output_type, merging=merging,
            as_json=as_json,
        )  # fmt: skip
        return
    if tensor_type or output_type or vision or merging != MergeFlags():
        raise InvalidOptionError(
            "--tensor-type, --output-type, --vision and --merge plan an export: add --export CHECKPOINT"
        )
    sizes = [image_size(one) for one in list_images(image)]
    cost = plan_question(
        _open(model), sizes, question, choice=tiles.choice(), device=loading.device, decoder=loading.decoder(),
        vision=VisionOptions(device=loading.vision_device),
    )  # fmt: skip
    if as_json:
        write_json(cost.to_dict())
    else:
        print_table(_cost_table(cost))
    for fault in cost.faults:
        stderr.print(with_flags(fault), style="red")
    if cost.faults:
        raise typer.Exit(1)


def tune(
    model: ModelOption = None,
    ctx_size: ContextOption = None,
    device: DeviceOption = "auto",
    n_gpu_layers: LayersOption = "auto",
    as_json: JsonFlag = False,
) -> None:
    """Measure a bundle on this machine: find the fastest settings of its decoder and remember them."""
    bundle = _open(model)
    options = DecoderOptions(context_size=ctx_size, gpu_layers=gpu_layers(n_gpu_layers))
    cache = CacheOptions().settled()
    with stderr.status("measuring: a minute or two for an 8B"):
        profile, trials = tune_bundle(
            bundle, options, device=device, cache=cache,
            on_trial=lambda trial: stderr.print(_line(trial), style="dim"),
        )  # fmt: skip
    if cache.root:
        save_profile(profile_path(cache.root, bundle), profile)
    kernel = verdict_of(
        dataclasses.replace(options, acceleration=cast("Acceleration", profile.acceleration)), cache.root
    )
    announce("acceleration", kernel.text)
    if as_json:
        values = {
            "profile": dataclasses.asdict(profile),
            "acceleration": dataclasses.asdict(kernel),
            "trials": [dataclasses.asdict(trial) for trial in trials],
        }
        write_json(values)
        return
    print_table(_trial_table(trials, profile))
    if cache.root:
        announce("remembered", f"for {bundle.name} on this machine")


def _open(model: Path | None) -> Bundle:
    return read_bundle(model if model is not None else demo_bundle())


def _cost_table(cost: QuestionCost) -> Table:
    table = Table("what", "amount", show_header=False)
    for number, image in enumerate(cost.images, 1):
        table.add_row(f"image {number}", str(image))
    table.add_row("prompt", f"{cost.prompt_tokens} of {cost.context} tokens of context")
    if cost.gpu is not None:
        kind = ", main memory" if cost.gpu.shared else ""
        table.add_row("graphics memory", f"{cost.gpu.reason}; {size_text(cost.gpu.bytes_used)} used{kind}")
    for tried in cost.devices:
        table.add_row("tried here", tried)
    memory = cost.memory
    for name, size in (
        ("decoder's weights", memory.decoder), ("KV cache", memory.kv_cache), ("decoder's work space", memory.work),
        ("vision tower", memory.vision), ("memory in all", cost.needed_bytes),
        ("memory that is free", cost.available_bytes),
    ):  # fmt: skip
        table.add_row(name, size_text(size))
    for name, seconds in (
        ("vision", cost.vision_seconds), ("prefill", cost.prefill_seconds), ("first token", cost.first_token_seconds),
    ):  # fmt: skip
        table.add_row(name, "not measured here yet (ayaedge tune)" if seconds is None else f"{seconds:.1f} s")
    if cost.answer_tokens_per_second is not None:
        table.add_row("then", f"{cost.answer_tokens_per_second:.1f} tokens/s")
    return table


def _trial_table(trials: Sequence[Trial], profile: Profile) -> Table:
    table = Table("settings")
    for column in ("prompt, tokens/s", "answer, tokens/s", "an image and 200 tokens, s"):
        table.add_column(column, justify="right")
    for trial in trials:
        style = "bold" if trial.settings == profile.settings else None
        table.add_row(
            _settings_text(trial),
            _rate(trial.prompt_token),
            _rate(trial.answer_token),
            _outcome(trial),
            style=style,
        )
    return table


def _rate(seconds: float | None) -> str:
    return "" if seconds is None else f"{1 / seconds:.1f}"


def _outcome(trial: Trial) -> str:
    if trial.fault:
        return f"left alone: {trial.fault}"
    return f"died: {trial.death}" if trial.work_seconds is None else f"{trial.work_seconds:.1f}"


def _line(trial: Trial) -> str:
    return f"{_settings_text(trial)}: {_outcome(trial)}{'' if trial.work_seconds is None else ' s'}"


def _settings_text(trial: Trial) -> str:
    settings = trial.settings
    where = ""
    if settings.device is not None:
        where = f"{_place_text(settings)}, "
    return where + (
        f"{'repacked' if settings.repack else 'mapped'}, {settings.threads}/{settings.threads_batch} threads, "
        f"ubatch {settings.ubatch_size}"
    )


def _place_text(settings: Settings) -> str:
    """Where the decoder runs, as `--device` and `--n-gpu-layers` say it."""
    if settings.gpu_layers:
        return f"{settings.device}, {settings.gpu_layers} layers"
    return f"cpu, prompts on {settings.device}" if settings.offload_prompts else "cpu"
