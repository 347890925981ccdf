"""The commands that make and measure bundles; each needs the optional exporting package, found when it is called."""

from __future__ import annotations

import json
import logging
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import typer
from rich.table import Table
from rich.text import Text

from ayaedge.bundle import check_hashes, read_bundle
from ayaedge.cli.console import (
    JsonFlag,
    announce,
    byte_progress,
    count_progress,
    print_table,
    show_messages,
    size_text,
    with_flags,
    write_json,
    write_json_text,
)
from ayaedge.cli.info import BundleArgument
from ayaedge.cli.merging import MergeAncestor, MergeBase, MergeFlags, compared_with
from ayaedge.cli.options import takes_flags
from ayaedge.errors import BundleError, InvalidOptionError, MissingExtraError, list_faults
from ayaedge.model import AyaVision

if TYPE_CHECKING:
    from ayaedge_export import DecoderEffort, ExportPlan, Report

DecoderFormat = Literal["q4_k_m", "q5_k_m", "q6_k", "q8_0", "f16", "f32"]
Effort = Literal["fast", "calibrated", "best"]
VisionFormat = Literal["int8", "int8-block", "fp16", "fp32"]

TensorTypes = Annotated[
    list[str] | None,
    typer.Option(
        "--tensor-type", metavar="REGEX=TYPE", help="Type of the tensors whose name matches; repeatable."
    ),
]
OutputType = Annotated[
    str | None, typer.Option("--output-type", help="Type of the embeddings, which are the output head too.")
]


Checkpoint = Annotated[
    Path, typer.Argument(metavar="CHECKPOINT", help="A Hugging Face checkpoint directory.")
]
Output = Annotated[
    Path | None,
    typer.Option("-o", "--output", help="Bundle directory; by default named after the checkpoint."),
]
Quant = Annotated[DecoderFormat, typer.Option(help="Number format of the decoder.")]
VisionFormats = Annotated[
    list[str] | None,
    typer.Option(
        metavar="|".join(get_args(VisionFormat)),
        help="Number format of the vision tower; repeat it with a float format for GPUs. "
        "[default: int8, or int8-block without VNNI]",
    ),
]
Trace = Annotated[
    bool, typer.Option("--trace", help="Trace the vision tower with PyTorch (fp32; extra: trace).")
]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing bundle.")]
EffortOption = Annotated[
    Effort | None,
    typer.Option(help="Work put into the decoder's bits; best is recommended, and slow. [default: fast]"),
]
TargetSize = Annotated[
    str | None, typer.Option(metavar="SIZE", help="With best: most bytes of the decoder's file, like 4.6GB.")
]
TargetBits = Annotated[
    float | None, typer.Option(metavar="BITS", help="With best: most bits per weight of the decoder.")
]
FeedbackBlock = Annotated[
    int | None,
    typer.Option(
        metavar="COLUMNS", help="With best: columns that compensate each other; 0 is all. [default: 1024]"
    ),
]
Calibrate = Annotated[
    str | None,
    typer.Option("--calibrate", help="What calibrated and best look at: a text file, or builtin."),
]
Imatrix = Annotated[
    Path | None,
    typer.Option("--imatrix", help="Weigh columns by this importance matrix of llama.cpp's form."),
]
LogitScale = Annotated[
    float | None,
    typer.Option(
        "--logit-scale",
        metavar="FLOAT",
        help="What logits are multiplied with; for models trained by transformers 4.52 or newer, "
        "which leave it out, 1. [default: the checkpoint's]",
    ),
]
Resume = Annotated[bool, typer.Option(help="Go on where the same export was interrupted, or begin anew.")]
Threads = Annotated[int | None, typer.Option("-t", "--threads", help="Processor threads.")]


@takes_flags
def export(
    checkpoint: Checkpoint,
    output: Output = None,
    quant: Quant = "q4_k_m",
    vision: VisionFormats = None,
    trace: Trace = False,
    force: Force = False,
    effort: EffortOption = None,
    target_size: TargetSize = None,
    target_bpw: TargetBits = None,
    feedback_block: FeedbackBlock = None,
    calibrate: Calibrate = None,
    imatrix: Imatrix = None,
    tensor_type: TensorTypes = None,
    output_type: OutputType = None,
    logit_scale: LogitScale = None,
    resume: Resume = True,
    threads: Threads = None,
    *,
    merging: MergeFlags,
) -> None:
    """Turn a Hugging Face checkpoint of Aya Vision into a bundle."""
    show_messages(logging.WARNING)
    require_exporter("ayaedge export")
    import ayaedge_export as exporter

    if calibrate and imatrix:
        raise InvalidOptionError("--calibrate and --imatrix exclude each other")
    plan = exporter.plan_export(
        checkpoint, output, quant=exporter.make_recipe(quant, tensor_type or (), output_type),
        vision=vision or None, logit_scale=logit_scale, merge=merging.options(), trace=trace,
    )  # fmt: skip
    plans = merging.plans(plan, output)
    choose = partial(
        exporter.choose_effort, effort=effort,
        importance=exporter.load_importance(imatrix, plan.checkpoint) if imatrix else None,
        calibrate=exporter.read_calibration_text(calibrate) if calibrate else None,
        budget=exporter.Budget(parse_size(target_size) if target_size else None, target_bpw),
        gptq=None if feedback_block is None else exporter.GptqOptions(block=feedback_block),
    )  # fmt: skip
    chosen = [choose(plan) for plan in plans]
    exporter.check_plans(plans, force=force)
    for plan, how in zip(plans, chosen, strict=True):
        _write(plan, how, force=force, resume=resume, threads=threads)


def _write(
    plan: ExportPlan, chosen: DecoderEffort, *, force: bool, resume: bool, threads: int | None
) -> None:
    """Write a bundle, and say what it is, how long it will take, and where it lies."""
    import ayaedge_export as exporter

    if isinstance(plan.checkpoint, exporter.MergedCheckpoint):
        announce("merging", plan.checkpoint.text)
    measures = chosen.effort != "fast"  # such an effort says itself what is left
    if measures:
        seconds = exporter.predict_seconds(plan.checkpoint, chosen.effort)
        announce("expected", f"about {_minutes(seconds)} for the decoder's weights")
    try:
        with byte_progress(plan.work_bytes, even=not measures) as advance:
            bundle = exporter.write_bundle(
                plan, chosen, force=force, resume=resume, threads=threads, advance=advance
            )
    except (KeyboardInterrupt, SystemExit):
        announce("stopped:", with_flags(exporter.what_is_left(plan.target, resume=resume)))
        raise
    announce("exported", f"{bundle.directory} ({size_text(bundle.size)})")


def parse_size(text: str) -> int:
    """Bytes, from a number with or without a decimal unit; InvalidOptionError says how it is written."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(|[kMGT])B?", text.strip(), re.IGNORECASE)
    if not found:
        raise InvalidOptionError(f"a size is written like 4.6GB or 850MB, not {text!r}")
    return int(float(found[1]) * 1000 ** " kmgt".index(found[2].lower() or " "))


def _minutes(seconds: float) -> str:
    return "a minute" if seconds < 90 else f"{seconds / 60:,.0f} minutes"


def calibrate(
    source: Annotated[Path, typer.Argument(metavar="CHECKPOINT|BUNDLE", help="What to watch.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The importance matrix, in llama.cpp's form.")
    ],
    text: Annotated[
        str, typer.Option(help="A text file, JSON lines with languages, or builtin.")
    ] = "builtin",
    image_weight: Annotated[float, typer.Option(help="Weight of a position inside an image.")] = 0.2,
    max_tokens: Annotated[int, typer.Option(help="Most positions to look at.")] = 12288,
) -> None:
    """Measure how much each column of the decoder's weights matters, for `export --imatrix`."""
    show_messages(logging.WARNING)
    require_exporter("ayaedge calibrate")
    import ayaedge_export as exporter

    passages = exporter.read_calibration_text(text)
    with count_progress("calibrating") as on_step:
        matrix = exporter.calibrate(
            source, passages, image_weight=image_weight, max_tokens=max_tokens, on_step=on_step
        )
    exporter.write_imatrix(output, matrix)
    announce("measured", f"{len(matrix.entries)} matrices: {output}")


def plan_export(
    checkpoint: Path,
    *,
    output: Path,
    quant: DecoderFormat,
    vision: list[str] | None,
    tensor_type: list[str] | None,
    output_type: str | None,
    merging: MergeFlags,
    as_json: bool,
) -> None:
    """Show what an export would write: types, bytes and bits per weight, and the disk needed."""
    show_messages(logging.WARNING)
    require_exporter("ayaedge plan --export")
    import ayaedge_export as exporter
    from ayaedge_export.effort import EFFORTS
    from ayaedge_export.plan import plan_table

    recipe = exporter.make_recipe(quant, tensor_type or (), output_type)
    plan = exporter.plan_export(checkpoint, output, quant=recipe, vision=vision, merge=merging.options())
    bundles = len(merging.plans(plan, output))
    seconds = {name: exporter.predict_seconds(plan.checkpoint, name) for name in EFFORTS}
    if as_json:
        figures = {
            **plan.to_dict(),
            "decoder_seconds": seconds,
            **({"bundles": bundles} if bundles > 1 else {}),
        }
        write_json(figures, indent=2)
    else:
        print_table(plan_table(plan))
        times = ", ".join(f"{name} {_minutes(value)}" for name, value in seconds.items())
        announce("expected", f"for the decoder's weights, by effort: {times}")
        if isinstance(plan.checkpoint, exporter.MergedCheckpoint):
            announce("merging", plan.checkpoint.text)
        if bundles > 1:
            announce("in all", f"{bundles} bundles, {size_text(bundles * plan.disk_bytes)}")


def evaluate(
    bundle: BundleArgument,
    against: Annotated[
        Path, typer.Option(help="The checkpoint that it was made from, or another bundle of it.")
    ],
    text: Annotated[
        str,
        typer.Option(metavar="FILE|builtin", help='JSON lines with "language" and "text", or paragraphs.'),
    ] = "builtin",
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="Write the figures as JSON; a run that was interrupted then goes on."
        ),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw a chart of all languages (PNG).")] = None,
    through: Annotated[
        Literal["layers", "transformers"],
        typer.Option(help="A checkpoint: layer by layer, or wholly in memory (extra: trace)."),
    ] = "layers",
    images: Annotated[bool, typer.Option(help="Compare behind an image as well.")] = True,
    window: Annotated[int, typer.Option(help="Most tokens that are read at a stretch.")] = 512,
    record: Annotated[
        bool, typer.Option("--record", help="Write the totals into the bundle's manifest.")
    ] = False,
    merge: MergeBase = None,
    merge_ancestor: MergeAncestor = None,
    threads: Annotated[int | None, typer.Option("-t", "--threads", help="Processor threads.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Measure how far a bundle's predictions are from its checkpoint's, in each language."""
    opened = read_bundle(bundle)
    show_messages(logging.WARNING)
    require_exporter("ayaedge eval")
    from ayaedge_export import evaluate_bundle
    from ayaedge_export.evaluation.report import draw_evaluation, evaluation_table, record_figures

    journal = output.with_name(f"{output.stem}.windows.jsonl") if output else None
    with count_progress("windows:") as advance:
        result = evaluate_bundle(
            opened, compared_with(opened, against, merge, merge_ancestor), text=text, images=images,
            window=window, through=through, journal=journal, threads=threads, advance=advance,
        )  # fmt: skip
    figures = json.dumps(result.to_dict(), indent=2, ensure_ascii=False) + "\n"
    if output:
        output.write_text(figures, "utf-8")
    if plot:
        draw_evaluation(plot, result)
    if record:
        record_figures(opened, result)
    if as_json:
        write_json_text(figures)
    else:
        print_table(evaluation_table(result))


def verify(
    bundle: BundleArgument,
    against: Annotated[
        Path | None, typer.Option(help="The checkpoint that it was made from: measures how near it is.")
    ] = None,
    trace: Annotated[
        bool, typer.Option("--trace", help="With --against: also compare both routes to the vision graph.")
    ] = False,
    merge: MergeBase = None,
    merge_ancestor: MergeAncestor = None,
    as_json: JsonFlag = False,
) -> None:
    """Check a bundle's files, and with a checkpoint its numbers; exit code 1 if anything is not as it should be."""
    show_messages(logging.WARNING)
    opened = read_bundle(bundle)
    if faults := check_hashes(opened):
        raise BundleError(list_faults(f"the bundle {bundle}", faults))
    AyaVision.load(bundle).close()  # both halves load and belong together
    if against is None:
        if trace or merge or merge_ancestor:
            raise typer.BadParameter("--trace and --merge need --against CHECKPOINT")
        if as_json:
            write_json({"files": "intact", "passed": True})
        else:
            announce("intact:", "every file has the hash that was written, and both halves load")
        return
    require_exporter("ayaedge verify --against")
    from ayaedge_export import verify_bundle

    report = verify_bundle(opened, compared_with(opened, against, merge, merge_ancestor), trace=trace)
    if as_json:
        write_json(report.to_dict(), indent=2)
    else:
        _print_report(report)
    if not report.passed:
        raise typer.Exit(1)


def _print_report(report: Report) -> None:
    table = Table("figure", "measured", "bar", "")
    for check in report.checks:
        verdict = Text("ok", "green") if check.passed else Text("missed", "red")
        table.add_row(check.name, f"{check.value:.3g}", check.bar, verdict)
    print_table(table)


def require_exporter(purpose: str) -> None:
    """Raise MissingExtraError unless the exporting package, which is optional, can be imported."""
    try:
        import ayaedge_export.exporter  # noqa: F401
    except ImportError as error:
        if error.name in ("onnx", "gguf", "safetensors", "filelock", "ayaedge_export", "ayaedge_quant"):
            raise MissingExtraError(purpose, "export") from error
        raise
