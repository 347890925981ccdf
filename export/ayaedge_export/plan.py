"""What an export will write, before any work: each tensor's type and bytes, and the disk that the bundle needs.

Reads the checkpoint's headers only. Which type a tensor gets is decided in `ayaedge_quant.recipes`.
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import gguf
from rich.table import Table

from ayaedge.errors import ExportError, InvalidOptionError
from ayaedge_export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from ayaedge_export.checkpoint.config import TextConfig, VisionConfig
from ayaedge_export.checkpoint.spec import UNUSED_TENSORS, vision_tensors
from ayaedge_export.checkpoint.tokenizer import Tokenizer
from ayaedge_export.decoder.gguf_writer import plan_tensors
from ayaedge_export.vision.int8 import BLOCK_LINEAR, BLOCK_SIZE, MLP_GROUPS
from ayaedge_quant.int8 import group_slices
from ayaedge_quant.recipes import DecoderFormat, Recipe

Part = Literal["decoder", "vision"]
VisionFormat = Literal["int8", "int8-block", "fp16", "fp32"]

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
    """Everything that an export with these options writes."""

    checkpoint: str
    quant: DecoderFormat
    vision: VisionFormat
    overrides: tuple[str, ...]
    weights: tuple[PlannedWeight, ...]
    metadata_bytes: int
    """Vocabulary, merges and headers of the decoder's file, and the vision graph's nodes; an estimate within 1 MB."""
    free_bytes: int
    """Free on the disk that the bundle will be written to."""

    def part(self, part: Part) -> Group:
        """The sum over one half."""
        return _sum(part, "all", "", [w for w in self.weights if w.part == part])

    @property
    def disk_bytes(self) -> int:
        """What the finished bundle takes; an export needs no more than that at any time."""
        return sum(weight.nbytes for weight in self.weights) + self.metadata_bytes

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
            "checkpoint": self.checkpoint,
            "quant": self.quant,
            "vision": self.vision,
            "overrides": list(self.overrides),
            "totals": totals,
            "metadata_bytes": self.metadata_bytes,
            "disk_bytes": self.disk_bytes,
            "free_bytes": self.free_bytes,
            "tensors": [_tensor_dict(weight) for weight in self.weights],
        }


def plan_export(
    checkpoint: Checkpoint | str | Path,
    *,
    quant: DecoderFormat = "q4_k_m",
    vision: VisionFormat = "int8",
    tensor_types: Sequence[str] = (),
    output_type: str | None = None,
    target: str | Path = ".",
) -> ExportPlan:
    """What an export of `checkpoint` with these options writes, and the free space where `target` would lie.

    `tensor_types` are overrides `REGEX=TYPE`, of which the first that matches counts. Raises CheckpointError, and
    InvalidOptionError for an override that cannot be followed.
    """
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = open_checkpoint(checkpoint)
    return plan_recipe(checkpoint, make_recipe(quant, tensor_types, output_type), vision, Path(target))


def plan_recipe(
    checkpoint: Checkpoint, recipe: Recipe, vision: VisionFormat, target: Path = Path()
) -> ExportPlan:
    """`plan_export` for a recipe; InvalidOptionError for an override that does not fit or match."""
    decoder = plan_decoder(checkpoint.config.text, recipe)
    metadata = (
        gguf_metadata_bytes(checkpoint.tokenizer, checkpoint.chat_template, decoder, checkpoint.config.text)
        + _GRAPH_BYTES
        + _LAYER_GRAPH_BYTES[vision] * checkpoint.config.vision.num_layers
    )
    return ExportPlan(
        checkpoint.name,
        recipe.format,
        vision,
        recipe.adjustments,
        (*decoder, *plan_vision(checkpoint.config.vision, vision)),
        metadata,
        shutil.disk_usage(_existing(target)).free,
    )


def check_disk(plan: ExportPlan, target: Path, *, present: int = 0, extra: int = 0) -> None:
    """Raise ExportError, with both figures, if the disk of `target` cannot hold what is missing of the bundle.

    `present` bytes of it are there already; `extra` ones are needed until it is complete.
    """
    missing = plan.disk_bytes - present + extra
    free = shutil.disk_usage(_existing(target)).free
    if missing > free:
        raise ExportError(
            f"{'the rest of ' * (present > 0)}the bundle takes {_megabytes(missing)} MB and the disk of {target} has "
            f"{_megabytes(free)} MB free: make room or choose another place with -o"
        )


def make_recipe(quant: DecoderFormat, tensor_types: Sequence[str], output_type: str | None) -> Recipe:
    """The recipe of a format and a user's overrides; InvalidOptionError says what is wrong with them."""
    return _option(lambda: Recipe.parse(quant, tensor_types, output_type))


def plan_decoder(text: TextConfig, recipe: Recipe) -> tuple[PlannedWeight, ...]:
    """Every tensor of the decoder's file; InvalidOptionError for an override that does not fit or match."""
    plan = _option(lambda: plan_tensors(text, recipe))
    _option(lambda: recipe.check_used(tensor.name for tensor in plan))
    return tuple(
        PlannedWeight("decoder", t.name, kind_of(t.name, t.shape), t.kind.name, t.shape, t.nbytes)
        for t in plan
    )


def plan_vision(config: VisionConfig, fmt: VisionFormat) -> tuple[PlannedWeight, ...]:
    """Every weight of the vision graph."""
    plan = []
    for name, shape in vision_tensors(config).items():
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
    tokenizer: Tokenizer, template: str, plan: Sequence[PlannedWeight], text: TextConfig
) -> int:
    """Bytes of a decoder file in front of and between its tensors: vocabulary, merges, template, names."""
    names = [token or f"[PAD{index}]" for index, token in enumerate(tokenizer.token_list(text.vocab_size))]
    strings = sum(8 + len(string.encode()) for string in (*names, *tokenizer.merges, template))
    infos = sum(24 + len(weight.name) + 8 * len(weight.shape) for weight in plan)
    padding = sum(-weight.nbytes % int(gguf.GGUF_DEFAULT_ALIGNMENT) for weight in plan)
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
