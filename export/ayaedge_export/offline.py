"""Hugging Face's libraries without a network: every module that imports one of them calls `stay_offline` first."""

from __future__ import annotations

import os

_SWITCHES = (
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "HF_HUB_DISABLE_TELEMETRY",
    "HF_HUB_DISABLE_UPDATE_CHECK",
)


def stay_offline() -> None:
    """Set the variables that keep transformers, optimum and huggingface_hub from downloads and telemetry.

    They are read when those libraries are imported. A program that imported them earlier keeps its own settings:
    whatever is loaded here is a local directory, and is asked for with `local_files_only`.
    """
    os.environ.update(dict.fromkeys(_SWITCHES, "1"))
