"""The flags of a merge: what is merged with a checkpoint's decoder, and at which weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ayaedge.errors import InvalidOptionError

if TYPE_CHECKING:
    from ayaedge.bundle import Bundle
    from ayaedge_export import ExportPlan, MergedCheckpoint, MergeOptions

MergeMethod = Literal["linear", "slerp", "task-arithmetic"]
_PANEL = "Merge"

MergeBase = Annotated[
    Path | None,
    typer.Option(
        "--merge",
        metavar="BASE",
        rich_help_panel=_PANEL,
        help="A language model of the decoder's shape, to merge the decoder with.",
    ),
]
MergeAncestor = Annotated[
    Path | None,
    typer.Option(
        "--merge-ancestor",
        metavar="DIR",
        rich_help_panel=_PANEL,
        help="With task-arithmetic: the language model that the checkpoint was trained from.",
    ),
]


@dataclass(frozen=True)
class MergeFlags:
    """What the decoder is merged with."""

    merge: MergeBase = None
    merge_weight: Annotated[
        list[str] | None,
        typer.Option(
            "--merge-weight",
            metavar="W[,W...]",
            rich_help_panel=_PANEL,
            help="Weight of the checkpoint, from 0 (BASE) to 1; several make a bundle each.",
        ),
    ] = None
    merge_method: Annotated[
        MergeMethod | None,
        typer.Option(
            "--merge-method", rich_help_panel=_PANEL, help="How they are combined. [default: linear]"
        ),
    ] = None
    merge_ancestor: MergeAncestor = None

    @property
    def weights(self) -> list[float]:
        """All weights, each once."""
        words = [word for given in self.merge_weight or () for word in given.split(",")]
        return list(dict.fromkeys(map(_weight, words)))

    def plans(self, plan: ExportPlan, output: Path | None) -> list[ExportPlan]:
        """The plan at each weight; a single one has the name that was asked for."""
        if len(self.weights) <= 1:
            return [plan]
        from ayaedge_export import plan_sweep

        return plan_sweep(plan, self.weights, output)

    def options(self) -> MergeOptions | None:
        """The merge at the first weight; None without one."""
        if self.merge is None:
            if self.merge_weight or self.merge_method or self.merge_ancestor:
                raise InvalidOptionError(
                    "--merge-weight, --merge-method and --merge-ancestor need --merge BASE"
                )
            return None
        if not self.merge_weight:
            raise InvalidOptionError(
                "--merge needs --merge-weight: 0 is BASE, 1 the checkpoint, 0.6 is between both"
            )
        from ayaedge_export import MergeOptions

        return MergeOptions(self.merge, self.weights[0], self.merge_method or "linear", self.merge_ancestor)


def compared_with(
    bundle: Bundle, against: Path, merge: Path | None, ancestor: Path | None
) -> Path | MergedCheckpoint:
    """What --against and --merge name: a merged bundle's checkpoint is merged in the same way."""
    if merge is None:
        if ancestor:
            raise InvalidOptionError("--merge-ancestor needs --merge BASE")
        return against
    from ayaedge_export import merge_like, open_checkpoint

    return merge_like(bundle, open_checkpoint(against), merge, ancestor)


def _weight(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise InvalidOptionError(
            f"--merge-weight is a number from 0 to 1, or several, not {word!r}"
        ) from None
