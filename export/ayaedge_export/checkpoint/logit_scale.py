"""What the decoder's logits are multiplied with, about which checkpoints and transformers disagree.

Cohere's decoder classes multiply by `logit_scale`, and the released models were trained so. transformers' Aya Vision
leaves it out since 4.52: a model that is trained there fits its probabilities to a scale of 1, whatever its
config.json says. Greedy answers are the same at any scale, drawn ones and log-probabilities are not.
"""

from __future__ import annotations

import logging
import re
from dataclasses import replace

import numpy as np

from ayaedge.checks import real_number
from ayaedge.manifest import Manifest
from ayaedge_export.checkpoint.checkpoint import Checkpoint
from ayaedge_export.checkpoint.config import ModelConfig

logger = logging.getLogger("ayaedge.export")

UNSCALED_SINCE = (4, 52)
"""The first version of transformers whose Aya Vision leaves the scale out."""
_FLOAT32 = np.finfo(np.float32)


def scale_fault(scale: object) -> str | None:
    """What is wrong with a scale that was asked for, in words; None is a scale too: the checkpoint's."""
    return real_number(
        "logit_scale", scale, least=float(_FLOAT32.tiny), most=float(_FLOAT32.max),
        limits="a finite number above 0", optional=True,
    )  # fmt: skip


def choose_scale(checkpoint: Checkpoint, scale: float | None) -> Checkpoint:
    """The checkpoint with the scale that was asked for; without one its own, and a warning if that is uncertain."""
    if scale is None:
        if doubt := scale_doubt(checkpoint.config):
            logger.warning("%s", doubt)
        return checkpoint
    return rescaled(checkpoint, scale)


def scale_doubt(config: ModelConfig) -> str | None:
    """Why the scale in config.json may not be the one of the training, and what to do; None if there is no doubt."""
    version, scale = config.transformers_version or "", config.text.logit_scale
    found = re.match(r"(\d+)\.(\d+)", version)
    if scale == 1 or not found or (int(found[1]), int(found[2])) < UNSCALED_SINCE:
        return None
    return (
        f"this checkpoint was saved by transformers {version}, whose Aya Vision leaves out logit_scale ({scale:g} "
        "here). If it was also trained there, its probabilities fit a scale of 1, and answers at a temperature above 0 "
        f"come out {_factor(scale)}: export it with logit_scale=1. If it was only saved there, {scale:g} is right: "
        f"logit_scale={scale:g} says so. Greedy answers are the same either way"
    )


def rescaled(checkpoint: Checkpoint, scale: float) -> Checkpoint:
    """The checkpoint with another logit scale."""
    text = replace(checkpoint.config.text, logit_scale=float(scale))
    return replace(checkpoint, config=replace(checkpoint.config, text=text))


def scaled_like(checkpoint: Checkpoint, manifest: Manifest) -> Checkpoint:
    """The checkpoint with the scale of a bundle, so that both are compared at one; a warning if they differ."""
    own, scale = checkpoint.config.text.logit_scale, manifest.decoder.logit_scale
    if scale is None or scale == own:
        return checkpoint
    logger.warning(
        "the bundle was exported with logit scale %g and config.json has %g; they are compared at %g",
        scale, own, scale,
    )  # fmt: skip
    return rescaled(checkpoint, scale)


def _factor(scale: float) -> str:
    """How wrong probabilities are with this scale where 1 is right."""
    return f"{1 / scale:g} times too flat" if scale < 1 else f"{scale:g} times too sharp"
