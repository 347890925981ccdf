"""What a training run leaves behind while it runs: a file to go on from, and lines to read."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import torch
from schedule import Optimizers, Stage
from torch import nn

LOG_EVERY = 25


class Checkpoints:
    """The file a run is taken up again from: weights, optimizers, random generators, step."""

    def __init__(self, path: Path, model: nn.Module, rng: random.Random) -> None:
        self._path, self._model, self._rng = path, model, rng
        self._state: dict[str, Any] | None = None
        if path.exists():
            self._state = torch.load(path, weights_only=False)
            model.load_state_dict(self._state["model"])

    def first_step(self, stage: Stage, optimizers: Optimizers) -> int:
        """The step `stage` begins with: 0, or what an interrupted run has left to do."""
        state = self._state
        if state is None or stage.name not in state["steps"]:
            return 0
        if stage.name == state["stage"]:
            optimizers.load_state_dict(state["optimizers"])
            self._rng.setstate(state["python"])
            torch.set_rng_state(state["torch"])
        return int(state["steps"][stage.name])

    def save(self, stage: Stage, step: int, optimizers: Optimizers) -> None:
        """Write the state after `step` steps of `stage`."""
        steps = dict(self._state["steps"]) if self._state else {}
        steps[stage.name] = step
        self._state = {
            "model": self._model.state_dict(),
            "optimizers": optimizers.state_dict(),
            "python": self._rng.getstate(),
            "torch": torch.get_rng_state(),
            "stage": stage.name,
            "steps": steps,
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix(".partial")
        torch.save(self._state, partial)
        partial.replace(self._path)


class Log:
    """Means of the figures since the last line, printed every `LOG_EVERY` steps."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._figures: list[dict[str, float]] = []

    def add(self, **figures: float) -> None:
        """Take in the figures of one batch."""
        self._figures.append(figures)

    def end_step(self, stage: str, step: int) -> None:
        """Print a line if it is time for one; `step` counts from 1."""
        if step % LOG_EVERY:
            return
        means = []
        for name in sorted({name for entry in self._figures for name in entry}):
            values = [entry[name] for entry in self._figures if name in entry]
            means.append(f"{name} {sum(values) / len(values):.3f}")
        print(f"{stage} {step} {time.monotonic() - self._start:.0f}s  " + "  ".join(means), flush=True)
        self._figures.clear()
