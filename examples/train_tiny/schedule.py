"""Stages of training: learning rates by step, and the two optimizers that follow them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn


@dataclass(frozen=True)
class Stage:
    """Rates of one stage of training; the learning rates are multiplied by a function of the step."""

    name: str
    knots: tuple[tuple[int, float], ...]
    """(step, factor of the learning rates); straight lines between, the last step ends the stage."""
    muon_rate: float
    muon_decay: float
    adam_rate: float
    clip: float
    """Largest norm of the gradients of a step."""
    floor: float = 0.02
    """Smallest factor after the rise to the second knot."""

    @property
    def steps(self) -> int:
        """How many steps the stage has."""
        return self.knots[-1][0]

    def rate_factor(self, step: int) -> float:
        """What the learning rates are multiplied by in step `step`, counted from 0."""
        steps, factors = zip(*self.knots, strict=True)
        factor = float(np.interp(step, steps, factors))
        return factor if step < self.knots[1][0] else max(self.floor, factor)


class Optimizers:
    """Muon for the matrices, AdamW for everything else, one schedule for both."""

    def __init__(self, model: nn.Module, stage: Stage, *, only: tuple[str, ...] = ()) -> None:
        """Trains the parameters whose name contains one of `only`; all of them if that is empty."""
        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad or (only and not any(part in name for part in only)):
                continue
            is_table = any(part in name for part in ("embed", "lm_head", "heads"))
            (matrices if parameter.ndim == 2 and not is_table else others).append(parameter)
        self._stage = stage
        self._parameters = matrices + others
        self._muon = torch.optim.Muon(
            matrices, lr=stage.muon_rate, weight_decay=stage.muon_decay, adjust_lr_fn="match_rms_adamw"
        )
        self._adam = torch.optim.AdamW(others, lr=stage.adam_rate, weight_decay=0.0, betas=(0.9, 0.98))

    def step(self, number: int) -> None:
        """Apply the gradients that have been collected and clear them; `number` counts from 0."""
        factor = self._stage.rate_factor(number)
        nn.utils.clip_grad_norm_(self._parameters, self._stage.clip)
        for optimizer, rate in ((self._muon, self._stage.muon_rate), (self._adam, self._stage.adam_rate)):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        return {"muon": self._muon.state_dict(), "adam": self._adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._muon.load_state_dict(state["muon"])
        self._adam.load_state_dict(state["adam"])
