"""Checkpoints to bundles: reading weights, building the vision graph, writing the decoder, proving both.

    from ayaedge_export import export_checkpoint

    export_checkpoint("aya-vision-8b", "bundle", quant="q4_k_m", effort="best")

A name is imported when it is first used: the modules behind some of them take seconds to load.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ayaedge.bundle import Bundle
    from ayaedge_export.best.prediction import predict_seconds
    from ayaedge_export.calibration.imatrix import OnStep, calibrate, load_importance
    from ayaedge_export.calibration.text import CalibrationText, read_calibration_text
    from ayaedge_export.checkpoint.checkpoint import Checkpoint, open_checkpoint
    from ayaedge_export.decoder.gguf_writer import Advance
    from ayaedge_export.effort import Budget, DecoderEffort, Effort, ExportRun, GptqOptions, PreparedDecoder
    from ayaedge_export.evaluation.evaluate import Evaluation, OnWindow, Through, evaluate_bundle
    from ayaedge_export.evaluation.verify import Report, verify_bundle
    from ayaedge_export.exporter import (
        check_plans,
        choose_effort,
        export_checkpoint,
        plan_sweep,
        write_bundle,
    )
    from ayaedge_export.merge.merge import (
        MergedCheckpoint,
        MergeOptions,
        merge_checkpoint,
        merge_like,
    )
    from ayaedge_export.merge.methods import MergeMethod
    from ayaedge_export.plan import ExportPlan, Group, Part, VisionFormat, make_recipe, plan_export
    from ayaedge_export.resume.staged_bundle import check_target, what_is_left
    from ayaedge_quant.imatrix import ImportanceMatrix, write_imatrix
    from ayaedge_quant.number_formats import GgmlType
    from ayaedge_quant.recipes import DecoderFormat, Recipe

_PLACES = {
    "ayaedge.bundle": ("Bundle",),
    "ayaedge_export.best.prediction": ("predict_seconds",),
    "ayaedge_export.calibration.imatrix": ("OnStep", "calibrate", "load_importance"),
    "ayaedge_export.calibration.text": ("CalibrationText", "read_calibration_text"),
    "ayaedge_export.checkpoint.checkpoint": ("Checkpoint", "open_checkpoint"),
    "ayaedge_export.decoder.gguf_writer": ("Advance",),
    "ayaedge_export.effort": (
        "Budget", "DecoderEffort", "Effort", "ExportRun", "GptqOptions", "PreparedDecoder",
    ),
    "ayaedge_export.evaluation.evaluate": ("Evaluation", "OnWindow", "Through", "evaluate_bundle"),
    "ayaedge_export.evaluation.verify": ("Report", "verify_bundle"),
    "ayaedge_export.exporter": (
        "check_plans", "choose_effort", "export_checkpoint", "plan_sweep", "write_bundle",
    ),
    "ayaedge_export.merge.merge": ("MergeOptions", "MergedCheckpoint", "merge_checkpoint", "merge_like"),
    "ayaedge_export.merge.methods": ("MergeMethod",),
    "ayaedge_export.plan": ("ExportPlan", "Group", "Part", "VisionFormat", "make_recipe", "plan_export"),
    "ayaedge_export.resume.staged_bundle": ("check_target", "what_is_left"),
    "ayaedge_quant.number_formats": ("GgmlType",),
    "ayaedge_quant.imatrix": ("ImportanceMatrix", "write_imatrix"),
    "ayaedge_quant.recipes": ("DecoderFormat", "Recipe"),
}  # fmt: skip
_PLACE_OF = {name: place for place, names in _PLACES.items() for name in names}

__all__ = [
    "Advance",
    "Budget",
    "Bundle",
    "CalibrationText",
    "Checkpoint",
    "DecoderEffort",
    "DecoderFormat",
    "Effort",
    "Evaluation",
    "ExportPlan",
    "ExportRun",
    "GgmlType",
    "GptqOptions",
    "Group",
    "ImportanceMatrix",
    "MergeMethod",
    "MergeOptions",
    "MergedCheckpoint",
    "OnStep",
    "OnWindow",
    "Part",
    "PreparedDecoder",
    "Recipe",
    "Report",
    "Through",
    "VisionFormat",
    "calibrate",
    "check_plans",
    "check_target",
    "choose_effort",
    "evaluate_bundle",
    "export_checkpoint",
    "load_importance",
    "make_recipe",
    "merge_checkpoint",
    "merge_like",
    "open_checkpoint",
    "plan_export",
    "plan_sweep",
    "predict_seconds",
    "read_calibration_text",
    "verify_bundle",
    "what_is_left",
    "write_bundle",
    "write_imatrix",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_PLACE_OF[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
