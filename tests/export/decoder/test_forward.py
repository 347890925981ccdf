"""The decoder's numpy twin against transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ayaedge_export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from ayaedge_export.decoder import forward as twin
from ayaedge_export.decoder.forward import EMBEDDINGS, decoder_forward, head_logits
from ayaedge_export.evaluation.reference import Reference
from random_checkpoint import Shape, write_random_checkpoint

LOGIT_ERROR = 2e-4
"""Largest difference over largest logit: float32 in another order, through up to 64 layers."""
INPUT_ERROR = 2e-4
LENGTHS = (130, 1, 57)
"""Sequences that go through together: longer than the window of 48, a single token, and one in between."""
SHAPES = {
    "cohere2": Shape(),
    "cohere": Shape(text_type="cohere", seed=1),
    "cohere with query and key norms": Shape(
        text_type="cohere", text={"num_hidden_layers": 64, "use_qk_norm": True, "initializer_range": 0.05}, seed=2
    ),
    "another window pattern, one key head": Shape(
        text={"layer_types": ["full_attention"] + ["sliding_attention"] * 3 + ["full_attention"] * 2,
              "num_key_value_heads": 1}, seed=3,
    ),
    "cohere without grouped heads, bf16": Shape(
        text_type="cohere", text={"num_key_value_heads": 4}, dtype="bfloat16", seed=4
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=SHAPES)
def pair(
    request: pytest.FixtureRequest, tiny: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Checkpoint, Reference]:
    path = tmp_path_factory.mktemp("random") / "c"
    write_random_checkpoint(path, tiny, SHAPES[request.param])
    return open_checkpoint(path), Reference(path)


def token_ids(checkpoint: Checkpoint) -> list[list[int]]:
    rng = np.random.default_rng(5)
    most = checkpoint.config.text.vocab_size - 100
    return [rng.integers(300, most, length).tolist() for length in LENGTHS]


def embedded(checkpoint: Checkpoint, sequences: list[list[int]]) -> list[NDArray[np.float32]]:
    table = checkpoint.tensors.read(f"{EMBEDDINGS}.weight")
    return [table[ids] for ids in sequences]


def relative_error(expected: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    assert expected.shape == found.shape
    return float(np.abs(expected - found).max() / np.abs(expected).max())


def test_logits_and_every_linear_s_input_are_the_reference_s(pair: tuple[Checkpoint, Reference]) -> None:
    checkpoint, reference = pair
    config, sequences = checkpoint.config.text, token_ids(checkpoint)
    seen: dict[str, list[NDArray[np.float32]]] = {}

    def observe(name: str, column: int, x: NDArray[np.float32]) -> None:
        assert column == sum(part.shape[1] for part in seen.get(name, []))
        seen.setdefault(name, []).append(x.copy())

    hidden = decoder_forward(config, checkpoint.tensors, embedded(checkpoint, sequences), observe)
    ours = head_logits(config, checkpoint.tensors, hidden)
    inputs, theirs = reference_inputs(reference, sequences)
    assert relative_error(theirs, ours) <= LOGIT_ERROR
    assert seen.keys() == inputs.keys()
    for name, expected in inputs.items():
        assert relative_error(expected, np.concatenate(seen[name], axis=1)) <= INPUT_ERROR, name


def reference_inputs(
    reference: Reference, sequences: list[list[int]]
) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.float32]]:
    """The input of every linear under its name on the hub, and all logits, over all sequences."""
    inputs: dict[str, list[NDArray[np.float32]]] = {}

    def keep(name: str) -> Any:
        return lambda _module, given: inputs.setdefault(name, []).append(given[0][0].numpy().copy())

    linears = {
        name: module
        for name, module in reference.model.named_modules()
        if name.endswith(("_proj", "lm_head")) and "vision" not in name
    }
    handles = []
    for name, module in linears.items():
        hub = "language_model.model." + name.removeprefix("model.language_model.")
        handles.append(module.register_forward_pre_hook(keep(EMBEDDINGS if name == "lm_head" else hub)))
    logits = [reference.logits(ids) for ids in sequences]
    for handle in handles:
        handle.remove()
    return {name: np.concatenate(parts) for name, parts in inputs.items()}, np.concatenate(logits)


def test_parts_and_blocks_change_nothing(
    pair: tuple[Checkpoint, Reference], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, _ = pair
    config, sequences = checkpoint.config.text, token_ids(checkpoint)
    whole = decoder_forward(config, checkpoint.tensors, embedded(checkpoint, sequences))
    monkeypatch.setattr(twin, "PART", 24)
    monkeypatch.setattr(twin, "_QUERIES", 16)
    parted = decoder_forward(config, checkpoint.tensors, embedded(checkpoint, sequences))
    assert relative_error(whole, parted) <= LOGIT_ERROR


def test_sequences_do_not_see_one_another(pair: tuple[Checkpoint, Reference]) -> None:
    checkpoint, _ = pair
    config = checkpoint.config.text
    first, *others = embedded(checkpoint, token_ids(checkpoint))
    together = decoder_forward(config, checkpoint.tensors, [first, *others])
    alone = decoder_forward(config, checkpoint.tensors, [first])
    assert relative_error(alone, together[: len(first)]) <= LOGIT_ERROR


class CountingWeights:
    """Counts the rows of each tensor that are read, and remembers the largest array."""

    def __init__(self, checkpoint: Checkpoint):
        self._tensors = checkpoint.tensors
        self.rows: dict[str, int] = {}
        self.whole: set[str] = set()

    def read(self, name: str) -> NDArray[np.float32]:
        self.whole.add(name)
        return self.read_rows(name, 0, self._tensors.entries[name].shape[0])

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        self.rows[name] = self.rows.get(name, 0) + stop - start
        return self._tensors.read_rows(name, start, stop)


def test_every_weight_is_read_once_and_only_one_matrix_as_a_whole(tiny: Path) -> None:
    checkpoint = open_checkpoint(tiny)
    weights = CountingWeights(checkpoint)
    decoder_forward(checkpoint.config.text, weights, embedded(checkpoint, [[400, 401], [402]]))
    shapes = {name: entry.shape for name, entry in checkpoint.tensors.entries.items() if "layers" in name}
    decoder = {name: shape[0] for name, shape in shapes.items() if name.startswith("language_model.")}
    assert weights.rows == {**decoder, "language_model.model.norm.weight": 256}
    assert {name for name in weights.whole if len(checkpoint.tensors.entries[name].shape) == 2} == {
        name for name in decoder if name.endswith("down_proj.weight")
    }


def test_progress_counts_the_layers(tiny: Path) -> None:
    checkpoint = open_checkpoint(tiny)
    steps: list[int] = []
    decoder_forward(
        checkpoint.config.text, checkpoint.tensors, embedded(checkpoint, [[400]]), advance=steps.append
    )
    assert steps == [1] * checkpoint.config.text.num_layers
