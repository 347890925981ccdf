"""What an export will write, before any work: each tensor's type and bytes, and the disk that the bundle needs.

The plan is made once, after the checkpoint is opened, and handed to all that work on the export. Reads the checkpoint's
headers only. Which type a tensor gets is decided in `ayaedge_quant.recipes`.
"""

from __future__ import annotations

import itertools
import logging
import math
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args

import gguf
from rich.table import Table

from ayaedge.checks import check_options, instance, one_of
from ayaedge.errors import ExportError, InvalidOptionError
from ayaedge.hardware.machine import processor
from ayaedge.manifest import ON_PROCESSORS_ONLY
from ayaedge_export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from ayaedge_export.checkpoint.config import TextConfig, VisionConfig
from ayaedge_export.checkpoint.logit_scale import choose_scale, scale_fault
from ayaedge_export.checkpoint.spec import UNUSED_TENSORS
from ayaedge_export.checkpoint.tokenizer import Tokenizer
from ayaedge_export.decoder.gguf_writer import PlannedTensor, header_bytes, plan_tensors
from ayaedge_export.merge.merge import MergedCheckpoint, MergeOptions, merge_checkpoint, merge_facts
from ayaedge_export.vision.int8 import BLOCK_LINEAR, BLOCK_SIZE, MLP_GROUPS
from ayaedge_quant.int8 import group_slices
from ayaedge_quant.number_formats import GgmlType
from ayaedge_quant.recipes import DecoderFormat, Recipe, as_recipe

logger = logging.getLogger("ayaedge.export")

Part = Literal["decoder", "vision"]
VisionFormat = Literal["int8", "int8-block", "fp16", "fp32"]
VISION_FORMATS: tuple[VisionFormat, ...] = get_args(VisionFormat)

NORMS = "norms and biases"
_LAYER_PREFIX = re.compile(
    r"^(blk\.\d+\.|vision_tower\.vision_model\.(encoder\.layers\.\d+\.|embeddings\.)?|multi_modal_projector\.)"
)
_FLOAT_BYTES: dict[VisionFormat, int] = {"fp32": 4, "fp16": 2}
_GRAPH_BYTES = 10_000
"""Nodes of the vision graph outside its layers."""
_LAYER_GRAPH_BYTES: dict[VisionFormat, int] = {
    "int8": 31_000,
    "int8-block": 7_000,
    "fp16": 7_000,
    "fp32": 7_000,
}
"""Nodes of one layer, measured; int8 has its groups and rounds activations itself."""
_GGUF_KEYS = 2_000
"""The keys of a GGUF file but for the vocabulary and the chat template."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class PlannedWeight:
    """One tensor of the bundle."""

    part: Part
    name: str
    kind: str
    """What it is called in every layer."""
    type: str
    shape: tuple[int, ...]
    nbytes: int
    """Scales and padding of blocks included."""

    @property
    def weights(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def bits(self) -> float:
        """Bits per weight."""
        return 8 * self.nbytes / self.weights


@dataclass(frozen=True)
class Group:
    """Tensors of one kind and one type."""

    part: Part
    kind: str
    type: str
    count: int
    weights: int
    nbytes: int

    @property
    def bits(self) -> float:
        """Bits per weight."""
        return 8 * self.nbytes / self.weights


@dataclass(frozen=True)
class ExportPlan:
    """Everything that an export writes, and where."""

    checkpoint: Checkpoint
    target: Path
    recipe: Recipe
    vision: VisionFormat
    """Of the graph for processors."""
    vision_for_gpus: tuple[VisionFormat, ...]
    """Of further graphs."""
    trace: bool
    """Whether the vision graph is traced instead of built."""
    tensors: tuple[PlannedTensor, ...]
    """All of the decoder's file, in its order."""

    @cached_property
    def weights(self) -> tuple[PlannedWeight, ...]:
        """Every tensor of both halves."""
        decoder = (
            PlannedWeight("decoder", t.name, kind_of(t.name, t.shape), t.kind.name, t.shape, t.nbytes)
            for t in self.tensors
        )
        config = self.checkpoint.config.vision
        graphs = (plan_vision(config, form) for form in (self.vision, *self.vision_for_gpus))
        return (*decoder, *itertools.chain.from_iterable(graphs))

    @cached_property
    def metadata_bytes(self) -> int:
        """Vocabulary, merges and headers of the decoder's file, and the graph's nodes; an estimate within 1 MB."""
        config = self.checkpoint.config
        graph = sum(
            _GRAPH_BYTES + _LAYER_GRAPH_BYTES[form] * config.vision.num_layers
            for form in (self.vision, *self.vision_for_gpus)
        )
        tokenizer, template = self.checkpoint.tokenizer, self.checkpoint.chat_template
        return graph + gguf_metadata_bytes(tokenizer, template, self.tensors, config.text)

    @cached_property
    def header_bytes(self) -> int:
        """What the decoder's file holds in front of its first tensor, exactly."""
        return header_bytes(self)

    @property
    def disk_bytes(self) -> int:
        """What the finished bundle takes; an export needs no more than that at any time."""
        return sum(weight.nbytes for weight in self.weights) + self.metadata_bytes

    @property
    def free_bytes(self) -> int:
        """Free on the disk that the bundle will be written to."""
        return shutil.disk_usage(_existing(self.target)).free

    @property
    def check_bytes(self) -> int:
        """Bytes of weights that are checked before any work; a merge has several models."""
        return sum(weights.nbytes for weights in self.checkpoint.sources)

    @property
    def work_bytes(self) -> int:
        """Bytes of weights that an export deals with: all are checked, then those of the checkpoint are written."""
        return self.check_bytes + self.checkpoint.sources[0].nbytes

    def with_types(self, kinds: Mapping[str, GgmlType]) -> ExportPlan:
        """The same with types that were chosen for tensors of the decoder, by their GGUF names."""
        tensors = (replace(tensor, kind=kinds.get(tensor.name, tensor.kind)) for tensor in self.tensors)
        return replace(self, recipe=replace(self.recipe, chosen=kinds), tensors=tuple(tensors))

    def part(self, part: Part) -> Group:
        """The sum over one half."""
        return _sum(part, "all", "", [w for w in self.weights if w.part == part])

    def groups(self) -> list[Group]:
        """Tensors of one kind and type together, kinds in the order of the file."""
        together: dict[tuple[Part, str], dict[str, list[PlannedWeight]]] = {}
        for weight in self.weights:
            types = together.setdefault((weight.part, weight.kind), {})
            types.setdefault(weight.type, []).append(weight)
        return [
            _sum(part, kind, name, weights)
            for (part, kind), types in together.items()
            for name, weights in types.items()
        ]

    def to_dict(self) -> dict[str, object]:
        """For JSON: every tensor and the totals."""
        totals = {
            name: {"weights": total.weights, "bytes": total.nbytes, "bits_per_weight": total.bits}
            for name, total in (("decoder", self.part("decoder")), ("vision", self.part("vision")))
        }
        return {
            "checkpoint": self.checkpoint.name,
            "quant": self.recipe.format,
            "vision": self.vision,
            **({"vision_for_gpus": list(self.vision_for_gpus)} if self.vision_for_gpus else {}),
            "overrides": list(self.recipe.adjustments),
            **merge_facts(self.checkpoint),
            "totals": totals,
            "metadata_bytes": self.metadata_bytes,
            "disk_bytes": self.disk_bytes,
            "free_bytes": self.free_bytes,
            "tensors": [_tensor_dict(weight) for weight in self.weights],
        }


def plan_export(
    checkpoint: Checkpoint | str | Path,
    target: str | Path | None = None,
    *,
    quant: DecoderFormat | Recipe = "q4_k_m",
    vision: str | Sequence[str] | None = None,
    logit_scale: float | None = None,
    merge: MergeOptions | None = None,
    trace: bool = False,
) -> ExportPlan:
    """Return what `exporter.export_checkpoint` with these options writes.

    Of several formats of the vision tower, the 8-bit one is for processors, or else the first; the others are further
    graphs for GPUs. With `merge` the decoder is merged with a language model.

    Raises CheckpointError, ExportError for a traced graph in another format than fp32, and InvalidOptionError for an
    override in `quant` that does not fit its tensor or matches none.
    """
    recipe = as_recipe(quant)
    check_options(scale_fault(logit_scale), instance("trace", trace, bool))
    vision, *further = _vision_formats(vision, trace=trace)
    if trace and vision != "fp32":
        raise ExportError(
            f'a traced vision graph is fp32, not {vision}: ask for vision="fp32" or leave out trace'
        )
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = open_checkpoint(checkpoint)
    checkpoint = merge_checkpoint(checkpoint, merge) if merge else checkpoint
    checkpoint = choose_scale(checkpoint, logit_scale)
    text = checkpoint.config.text
    tensors = tuple(_option(lambda: plan_tensors(text, recipe)))
    _option(lambda: recipe.check_used(tensor.name for tensor in tensors))
    name = default_name(checkpoint, recipe.format, vision, *further)
    target = Path(target if target is not None else name)
    return ExportPlan(checkpoint, target, recipe, vision, tuple(further), trace, tensors)


def _vision_formats(asked: str | Sequence[str] | None, *, trace: bool) -> list[VisionFormat]:
    """The format for processors and those of further graphs; InvalidOptionError for what no machine would run."""
    if not asked:
        return ["fp32" if trace else default_vision_format()]
    words = [asked] if isinstance(asked, str) else list(dict.fromkeys(asked))
    check_options(*(one_of("vision", word, VISION_FORMATS) for word in words))
    formats = sorted(cast("list[VisionFormat]", words), key=lambda form: form not in ON_PROCESSORS_ONLY)
    if len(formats) > 1 and formats[1] in ON_PROCESSORS_ONLY:
        raise InvalidOptionError(
            f"vision is {', '.join(formats)}: {formats[0]} and {formats[1]} are both for processors, give one of them"
        )
    if trace and len(formats) > 1:
        raise ExportError('a traced vision graph is the only one of its bundle: ask for vision="fp32"')
    return formats


def default_name(checkpoint: Checkpoint, quant: DecoderFormat, *vision: VisionFormat) -> str:
    """The bundle's name, after the checkpoint's directory, its merge and the formats of both halves."""
    merge = (checkpoint.label,) if isinstance(checkpoint, MergedCheckpoint) else ()
    return "-".join((checkpoint.name, *merge, quant, *vision))


def default_vision_format() -> VisionFormat:
    """int8, unless its sums saturate on this processor, where the bundle will probably run; then a warning says so."""
    if not processor().saturates:
        return "int8"
    logger.warning(
        "this processor cannot multiply bytes without saturating, so the vision tower is int8-block"
    )
    return "int8-block"


def check_disk(plan: ExportPlan, *, present: int = 0, extra: int = 0) -> None:
    """Raise ExportError, with both figures, if the target's disk cannot hold what is missing of the bundle.

    `present` bytes of it are there already; `extra` ones are needed until it is complete.
    """
    missing, free = plan.disk_bytes - present + extra, plan.free_bytes
    if missing > free:
        raise ExportError(
            f"{'the rest of ' * (present > 0)}the bundle takes {_megabytes(missing)} MB and the disk of {plan.target} "
            f"has {_megabytes(free)} MB free: make room or choose another target"
        )


def make_recipe(
    quant: DecoderFormat, tensor_types: Sequence[str] = (), output_type: str | None = None
) -> Recipe:
    """The recipe of a format and a user's overrides `REGEX=TYPE`, of which the first that matches counts.

    Raises InvalidOptionError for overrides that are not written so or name no type.
    """
    return _option(lambda: Recipe.parse(quant, tensor_types, output_type))


def plan_vision(config: VisionConfig, fmt: VisionFormat) -> tuple[PlannedWeight, ...]:
    """Every weight of the vision graph."""
    plan = []
    for name, shape in config.tensors.items():
        if name not in UNUSED_TENSORS:
            kind, nbytes = _vision_type(name, shape, fmt)
            plan.append(PlannedWeight("vision", name, kind_of(name, shape), kind, shape, nbytes))
    return tuple(plan)


def kind_of(name: str, shape: tuple[int, ...]) -> str:
    """What a tensor is called in every layer; all vectors are one kind."""
    if len(shape) == 1 or name.endswith("_norm.weight"):
        return NORMS
    return _LAYER_PREFIX.sub("", name).removesuffix(".weight")


def gguf_metadata_bytes(
    tokenizer: Tokenizer, template: str, tensors: Sequence[PlannedTensor], text: TextConfig
) -> int:
    """Bytes of a decoder file in front of and between its tensors: vocabulary, merges, template, names."""
    names = [token or f"[PAD{index}]" for index, token in enumerate(tokenizer.token_list(text.vocab_size))]
    strings = sum(8 + len(string.encode()) for string in (*names, *tokenizer.merges, template))
    infos = sum(24 + len(tensor.name) + 8 * len(tensor.shape) for tensor in tensors)
    padding = sum(-tensor.nbytes % int(gguf.GGUF_DEFAULT_ALIGNMENT) for tensor in tensors)
    return strings + 4 * text.vocab_size + infos + padding + _GGUF_KEYS


def plan_table(plan: ExportPlan) -> Table:
    """The plan for a terminal: a row for each kind and type, and totals."""
    table = Table("part", "tensors", "type")
    for column in ("count", "weights, M", "MB", "bits/weight"):
        table.add_column(column, justify="right")
    for part in ("decoder", "vision"):
        for group in plan.groups():
            if group.part == part:
                _add_row(table, group)
        _add_row(table, plan.part(part), style="bold")
        table.add_section()
    table.add_row("", "vocabulary, names, nodes", "", "", "", _megabytes(plan.metadata_bytes), "")
    table.add_row("disk needed", "", "", "", "", _megabytes(plan.disk_bytes), "", style="bold")
    table.add_row("disk free", "", "", "", "", _megabytes(plan.free_bytes), "")
    return table


def _add_row(table: Table, group: Group, style: str | None = None) -> None:
    table.add_row(
        group.part, group.kind, group.type, str(group.count), f"{group.weights / 1e6:,.1f}",
        _megabytes(group.nbytes), f"{group.bits:.2f}", style=style,
    )  # fmt: skip


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f}"


def _vision_type(name: str, shape: tuple[int, ...], fmt: VisionFormat) -> tuple[str, int]:
    """Type and bytes of a tensor in the vision graph; the rules are those of `ayaedge_export.vision.int8`."""
    if fmt in _FLOAT_BYTES:
        return fmt.upper(), math.prod(shape) * _FLOAT_BYTES[fmt]
    if len(shape) != 2 or name.endswith("position_embedding.weight"):
        return "FP32", 4 * math.prod(shape)
    rows, columns = shape
    if fmt == "int8-block" or name == f"{BLOCK_LINEAR}.weight":
        return f"INT8 in blocks of {BLOCK_SIZE}", rows * -(-columns // BLOCK_SIZE) * (BLOCK_SIZE + 4)
    groups = len(group_slices(columns, MLP_GROUPS)) if name.endswith(".fc2.weight") else 1
    return "INT8", rows * columns + 4 * rows * groups


def _tensor_dict(weight: PlannedWeight) -> dict[str, Any]:
    values = asdict(weight)
    values["bytes"] = values.pop("nbytes")
    return {**values, "shape": list(weight.shape), "bits_per_weight": weight.bits}


def _sum(part: Part, kind: str, type_name: str, weights: Sequence[PlannedWeight]) -> Group:
    return Group(
        part, kind, type_name, len(weights), sum(w.weights for w in weights), sum(w.nbytes for w in weights)
    )


def _option(compute: Callable[[], _T]) -> _T:
    """`compute()`, whose ValueError is about what a user has asked for."""
    try:
        return compute()
    except ValueError as error:
        raise InvalidOptionError(str(error)) from error


def _existing(path: Path) -> Path:
    """The nearest directory above `path` that exists."""
    return next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
