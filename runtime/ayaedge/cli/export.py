"""The commands that make and measure bundles; each needs the optional exporting package, found when it is called."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table

from ayaedge.bundle import MANIFEST, check_hashes, read_bundle
from ayaedge.checks import check_options
from ayaedge.cli.console import (
    JsonFlag,
    announce,
    byte_progress,
    count_progress,
    print_table,
    show_messages,
    size_text,
    write,
)
from ayaedge.errors import BundleError, InvalidOptionError, MissingExtraError, list_faults
from ayaedge.hardware.machine import processor
from ayaedge.model import AyaVision

if TYPE_CHECKING:
    from ayaedge_export.evaluation.verify import Report

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
BundleArgument = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle directory.")]


def export(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="A Hugging Face checkpoint directory.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Bundle directory; by default named after the checkpoint."),
    ] = None,
    quant: Annotated[DecoderFormat, typer.Option(help="Number format of the decoder.")] = "q4_k_m",
    vision: Annotated[
        VisionFormat | None,
        typer.Option(help="Number format of the vision tower. [default: int8, or int8-block without VNNI]"),
    ] = None,
    trace: Annotated[
        bool, typer.Option("--trace", help="Trace the vision tower with PyTorch (fp32; extra: trace).")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing bundle.")] = False,
    effort: Annotated[
        Effort | None,
        typer.Option(help="Work put into the decoder's bits; best is recommended, and slow. [default: fast]"),
    ] = None,
    target_size: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="With best: most bytes of the decoder's file, like 4.6GB."),
    ] = None,
    target_bpw: Annotated[
        float | None, typer.Option(metavar="BITS", help="With best: most bits per weight of the decoder.")
    ] = None,
    feedback_block: Annotated[
        int | None,
        typer.Option(
            metavar="COLUMNS",
            help="With best: columns that make up for each other; 0 is all. [default: 1024]",
        ),
    ] = None,
    calibrate: Annotated[
        str | None,
        typer.Option("--calibrate", help="What calibrated and best look at: a text file, or builtin."),
    ] = None,
    imatrix: Annotated[
        Path | None,
        typer.Option("--imatrix", help="Weigh columns by this importance matrix of llama.cpp's form."),
    ] = None,
    tensor_type: TensorTypes = None,
    output_type: OutputType = None,
    logit_scale: Annotated[
        float | None,
        typer.Option(
            "--logit-scale",
            metavar="FLOAT",
            help="What logits are multiplied with; for models trained by transformers 4.52 or newer, "
            "which leave it out, 1. [default: the checkpoint's]",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option(help="Go on where the same export was interrupted, or begin anew.")
    ] = True,
    threads: Annotated[int | None, typer.Option("-t", "--threads", help="Processor threads.")] = None,
) -> None:
    """Turn a Hugging Face checkpoint of Aya Vision into a bundle."""
    show_messages(logging.WARNING)
    exporter = require_exporter("ayaedge export")
    from ayaedge_export.best.prediction import predict_seconds
    from ayaedge_export.best.rounding import FeedbackOptions
    from ayaedge_export.calibration.imatrix import load_importance
    from ayaedge_export.calibration.text import read_calibration_text
    from ayaedge_export.effort import Budget, effort_faults
    from ayaedge_export.plan import make_recipe, plan_decoder
    from ayaedge_quant.blocks import SUPER_BLOCK

    if calibrate and imatrix:
        raise InvalidOptionError("--calibrate and --imatrix exclude each other")
    if vision is None:
        vision = "fp32" if trace else best_vision_format()
    opened = exporter.open_checkpoint(checkpoint)
    recipe = make_recipe(quant, tensor_type or [], output_type)
    budget = Budget(parse_size(target_size) if target_size else None, target_bpw)
    check_options(
        *effort_faults(effort, quant, budget, importance=imatrix is not None, text=calibrate is not None),
        None
        if feedback_block is None or effort == "best"
        else "only the effort best has columns that make up for each other (--feedback-block)",
    )
    widest = max(opened.config.text.hidden_size, opened.config.text.intermediate_size)
    feedback = FeedbackOptions()
    if feedback_block is not None:
        feedback = FeedbackOptions(block=feedback_block or -(-widest // SUPER_BLOCK) * SUPER_BLOCK)
    plan_decoder(opened.config.text, recipe)  # says at once what cannot be followed
    target = output or Path(exporter.default_name(opened, quant, vision))
    exporter.check_target(target, force=force)
    importance = load_importance(imatrix, opened.config.text) if imatrix else None
    text = read_calibration_text(calibrate) if calibrate else None
    if effort in ("calibrated", "best"):
        announce("expected", f"about {_minutes(predict_seconds(opened, effort))} for the decoder's weights")
    try:
        even = effort not in ("calibrated", "best")  # these say themselves what is left
        with byte_progress(exporter.work_bytes(opened), even=even) as advance:
            bundle = exporter.export_checkpoint(
                opened, target, quant=recipe, vision=vision, importance=importance, calibrate=text,
                effort=effort, budget=budget, feedback=feedback, logit_scale=logit_scale, trace=trace,
                force=force, resume=resume, threads=threads, advance=advance,
            )  # fmt: skip
    except (KeyboardInterrupt, SystemExit):
        announce("stopped:", exporter.what_is_left(target, resume=resume))
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
    image_weight: Annotated[float, typer.Option(help="Weight of a position inside a picture.")] = 0.2,
    max_tokens: Annotated[int, typer.Option(help="Most positions to look at.")] = 12288,
) -> None:
    """Measure how much each column of the decoder's weights matters, for `export --imatrix`."""
    show_messages(logging.WARNING)
    require_exporter("ayaedge calibrate")
    from ayaedge_export.calibration.imatrix import collect, collect_from_bundle
    from ayaedge_export.calibration.text import read_calibration_text
    from ayaedge_export.checkpoint.checkpoint import open_checkpoint
    from ayaedge_quant.imatrix import write_imatrix

    passages = read_calibration_text(text)
    with count_progress("calibrating") as on_step:
        if (source / MANIFEST).is_file():
            matrix = collect_from_bundle(
                read_bundle(source),
                passages,
                image_weight=image_weight,
                max_tokens=max_tokens,
                on_step=on_step,
            )
        else:
            matrix = collect(
                open_checkpoint(source),
                passages,
                image_weight=image_weight,
                max_tokens=max_tokens,
                on_step=on_step,
            )
    write_imatrix(output, matrix)
    announce("measured", f"{len(matrix.entries)} matrices: {output}")


def plan_export(
    checkpoint: Path,
    *,
    output: Path,
    quant: DecoderFormat,
    vision: VisionFormat,
    tensor_type: list[str] | None,
    output_type: str | None,
    as_json: bool,
) -> None:
    """Show what an export would write: types, bytes and bits per weight, and the disk needed."""
    require_exporter("ayaedge plan --export")
    from ayaedge_export import plan
    from ayaedge_export.best.prediction import predict_seconds
    from ayaedge_export.checkpoint.checkpoint import open_checkpoint
    from ayaedge_export.effort import EFFORTS

    planned = plan.plan_export(
        checkpoint,
        quant=quant,
        vision=vision,
        tensor_types=tensor_type or (),
        output_type=output_type,
        target=output,
    )
    opened = open_checkpoint(checkpoint)
    seconds = {name: predict_seconds(opened, name) for name in EFFORTS}
    if as_json:
        figures = {**planned.to_dict(), "decoder_seconds": seconds}
        write(json.dumps(figures, indent=2, ensure_ascii=False) + "\n")
    else:
        print_table(plan.plan_table(planned))
        times = ", ".join(f"{name} {_minutes(value)}" for name, value in seconds.items())
        announce("expected", f"for the decoder's weights, by effort: {times}")


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
    images: Annotated[bool, typer.Option(help="Compare behind a picture as well.")] = True,
    window: Annotated[int, typer.Option(help="Most tokens that are read at a stretch.")] = 512,
    record: Annotated[
        bool, typer.Option("--record", help="Write the totals into the bundle's manifest.")
    ] = False,
    threads: Annotated[int | None, typer.Option("-t", "--threads", help="Processor threads.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Measure how far a bundle's predictions are from its checkpoint's, in each language."""
    opened = read_bundle(bundle)
    show_messages(logging.WARNING)
    require_exporter("ayaedge eval")
    from ayaedge_export.evaluation.evaluate import evaluate_bundle
    from ayaedge_export.evaluation.report import draw_evaluation, evaluation_table, record_figures

    journal = output.with_name(f"{output.stem}.windows.jsonl") if output else None
    with count_progress("windows:") as advance:
        result = evaluate_bundle(
            opened, against, text=text, pictures=images, window=window, through=through, journal=journal,
            threads=threads, advance=advance,
        )  # fmt: skip
    figures = json.dumps(result.to_dict(), indent=2, ensure_ascii=False) + "\n"
    if output:
        output.write_text(figures, "utf-8")
    if plot:
        draw_evaluation(plot, result)
    if record:
        record_figures(opened, result)
    if as_json:
        write(figures)
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
    as_json: JsonFlag = False,
) -> None:
    """Check a bundle's files, and with a checkpoint its numbers; exit code 1 if anything is not as it should be."""
    show_messages(logging.WARNING)
    opened = read_bundle(bundle)
    if faults := check_hashes(opened):
        raise BundleError(list_faults(f"the bundle {bundle}", faults))
    AyaVision.load(bundle).close()  # both halves load and belong together
    if against is None:
        if trace:
            raise typer.BadParameter("--trace needs --against CHECKPOINT")
        if as_json:
            write(json.dumps({"files": "intact", "passed": True}) + "\n")
        else:
            announce("intact:", "every file has the hash that was written, and both halves load")
        return
    require_exporter("ayaedge verify --against")
    from ayaedge_export.evaluation.verify import verify_bundle

    report = verify_bundle(opened, against, trace=trace)
    if as_json:
        write(json.dumps(report.to_dict(), indent=2) + "\n")
    else:
        _print_report(report)
    if not report.passed:
        raise typer.Exit(1)


def _print_report(report: Report) -> None:
    table = Table("figure", "measured", "bar", "")
    for check in report.checks:
        verdict = "[green]ok[/]" if check.passed else "[red]missed[/]"
        table.add_row(check.name, f"{check.value:.3g}", check.bar, verdict)
    print_table(table)


def require_exporter(purpose: str) -> Any:
    """The exporting package, which is optional."""
    try:
        import ayaedge_export
        import ayaedge_export.exporter
    except ImportError as error:
        if error.name in ("onnx", "gguf", "safetensors", "filelock", "ayaedge_export", "ayaedge_quant"):
            raise MissingExtraError(purpose, "export") from error
        raise
    return ayaedge_export.exporter


def best_vision_format() -> VisionFormat:
    """int8, unless products of bytes saturate on this processor, where the bundle will probably run."""
    if not processor().saturates:
        return "int8"
    announce(
        "note:", "this processor cannot multiply bytes without saturating, so the vision tower is int8-block"
    )
    return "int8-block"
