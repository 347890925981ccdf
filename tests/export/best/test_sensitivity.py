"""Sensitivities against the same figures computed directly, one group at a time; and measurements that go on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ayaedge_export.best.passages import Passages
from ayaedge_export.best.sensitivity import KINDS, PROBE, Sensitivity, group_of, measure_sensitivity
from ayaedge_export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from ayaedge_export.decoder.forward import EMBEDDINGS, decoder_forward, head_logits
from ayaedge_export.decoder.gguf_writer import gguf_name
from ayaedge_export.resume.state_file import StateFile
from ayaedge_quant.gptq import GptqEncoder
from ayaedge_quant.hessian import Hessian
from ayaedge_quant.kl_divergence import kl_divergence
from ayaedge_quant.number_formats import decode, encode
from random_checkpoint import Shape, write_random_checkpoint

FloatArray = NDArray[np.float32]
LAYERS = 3
GROUPS = (
    "head",
    "q, first third", "v, middle third", "o, last third",
    "gate, middle third", "up, last third",
    "down, first third", "down, middle third", "down, last third",
)  # fmt: skip
AGREEMENT = 2e-2
"""Hessians summed in another order move a few weights to the next code."""
SENSITIVITY_AGREEMENT = 1e-1
"""Two scales of a super-block that are equally good for the loss differ in what they do to the answers: importances
that differ by 1e-6 moved one of the sensitivities by 5 %.
"""


def wide(text_type: str) -> Shape:
    """More inner columns than the 1024 that go through the MLP at a time, and an uneven rest."""
    text = {
        "hidden_size": 256,
        "intermediate_size": 1280,
        "num_hidden_layers": LAYERS,
        "initializer_range": 0.05,
    }
    return Shape(text_type=text_type, text=text, seed=7)


@pytest.fixture(scope="module", params=["cohere2", "cohere"])
def checkpoint(
    request: pytest.FixtureRequest, tiny: Path, tmp_path_factory: pytest.TempPathFactory
) -> Checkpoint:
    path = tmp_path_factory.mktemp("sensitivity") / "c"
    return open_checkpoint(write_random_checkpoint(path, tiny, wide(str(request.param))))


def passages(checkpoint: Checkpoint, lengths: tuple[int, ...], seed: int) -> Passages:
    """Random tokens that weigh differently."""
    rng = np.random.default_rng(seed)
    table = checkpoint.tensors.read(f"{EMBEDDINGS}.weight")
    ids = [rng.integers(300, checkpoint.config.text.vocab_size - 100, length) for length in lengths]
    weights = rng.uniform(0.2, 2, sum(lengths)).astype(np.float32)
    return Passages([table[part] for part in ids], np.concatenate(ids).astype(np.int64), weights)


@pytest.fixture(scope="module")
def text(checkpoint: Checkpoint) -> Passages:
    return passages(checkpoint, (40, 1, 69), seed=1)


@pytest.fixture(scope="module")
def probes(checkpoint: Checkpoint) -> Passages:
    return passages(checkpoint, (12, 20), seed=2)


@pytest.fixture(scope="module")
def found(checkpoint: Checkpoint, text: Passages, probes: Passages) -> Sensitivity:
    return measure_sensitivity(checkpoint, text, probes)


@pytest.fixture(scope="module")
def hessian(checkpoint: Checkpoint, text: Passages) -> dict[tuple[str, int], Hessian]:
    """Of each linear's input in the exact model, and the column where it begins."""
    seen = {}

    def observe(name: str, column: int, x: FloatArray) -> None:
        seen[name, column] = Hessian(x.shape[1])
        seen[name, column].add(x, text.weights)

    decoder_forward(checkpoint.config.text, checkpoint.tensors, text.rows, observe)
    return seen


class OtherWeights:
    """The checkpoint with some tensors in the place of its own."""

    def __init__(self, checkpoint: Checkpoint, others: dict[str, FloatArray]):
        self._stored, self._others = checkpoint.tensors, others

    def read(self, name: str) -> FloatArray:
        return self._others[name] if name in self._others else self._stored.read(name)

    def read_rows(self, name: str, start: int, stop: int) -> FloatArray:
        return self.read(name)[start:stop]


def parts_of(name: str, hessian: dict[tuple[str, int], Hessian]) -> list[tuple[slice, Hessian]]:
    """The columns of a linear as they come through the layers."""
    return [
        (slice(column, column + part.columns), part) for (of, column), part in hessian.items() if of == name
    ]


@pytest.mark.parametrize("group", GROUPS)
def test_a_sensitivity_is_what_rounding_this_group_alone_does(
    checkpoint: Checkpoint,
    probes: Passages,
    found: Sensitivity,
    hessian: dict[tuple[str, int], Hessian],
    group: str,
) -> None:
    rounded, loss = {}, 0.0
    for name in {name for name, _ in hessian if group_of(name, LAYERS) == group}:
        weights = checkpoint.tensors.read(f"{name}.weight")
        columns = []
        for span, part in parts_of(name, hessian):
            columns.append(decode(encode(weights[:, span], PROBE, part.mean_squares), PROBE))
            loss += part.loss(columns[-1] - weights[:, span])
        rounded[f"{name}.weight"] = np.concatenate(columns, axis=1)
    rows = list(probes.rows)
    if group == "head":  # the same table embeds
        rows = [decode(encode(part, PROBE), PROBE) for part in rows]
    config, changed = checkpoint.config.text, OtherWeights(checkpoint, rounded)
    logits = [
        head_logits(config, weights, decoder_forward(config, weights, given))
        for weights, given in ((checkpoint.tensors, probes.rows), (changed, rows))
    ]
    expected = kl_divergence(*logits).kl.mean() / loss
    assert rounded
    assert found.sensitivities[group] == pytest.approx(expected, rel=SENSITIVITY_AGREEMENT)


def test_every_linear_is_in_a_group_and_has_a_loss_for_each_type(
    checkpoint: Checkpoint, found: Sensitivity, hessian: dict[tuple[str, int], Hessian]
) -> None:
    names = {name for name, _ in hessian}
    assert set(found.losses) == {gguf_name(f"{name}.weight") for name in names}
    assert set(found.sensitivities) == {group_of(name, LAYERS) for name in names}
    assert len(found.sensitivities) == 3 * 7 + 1
    for losses in found.losses.values():
        assert tuple(losses) == KINDS
        assert losses[KINDS[-1]] < losses[KINDS[1]]
    assert all(value > 0 for value in found.sensitivities.values())


@pytest.mark.parametrize("linear", ["self_attn.k_proj", "self_attn.o_proj", "mlp.down_proj"])
def test_losses_are_the_traces_of_what_each_type_does(
    checkpoint: Checkpoint, found: Sensitivity, hessian: dict[tuple[str, int], Hessian], linear: str
) -> None:
    name = f"language_model.model.layers.1.{linear}"  # its up to 256 rows are all looked at
    weights = checkpoint.tensors.read(f"{name}.weight")
    assert len(weights) <= 256
    for kind in KINDS:
        expected = 0.0
        for span, part in parts_of(name, hessian):
            part_weights = np.ascontiguousarray(weights[:, span])
            error = (decode(GptqEncoder(part).encode(part_weights, kind), kind) - part_weights).astype(
                np.float64
            )
            for number, block in enumerate(part.spans):
                expected += np.trace(error[:, block] @ part.inputs(number) @ error[:, block].T)
        nats = expected * found.sensitivities[group_of(name, LAYERS)]
        assert found.losses[gguf_name(f"{name}.weight")][kind] == pytest.approx(nats, rel=AGREEMENT)


def test_losses_of_large_tensors_are_extrapolated_from_some_rows(
    checkpoint: Checkpoint, found: Sensitivity, hessian: dict[tuple[str, int], Hessian]
) -> None:
    for name in (EMBEDDINGS, "language_model.model.layers.1.mlp.gate_proj"):
        weights, part = checkpoint.tensors.read(f"{name}.weight"), hessian[name, 0]
        error = decode(GptqEncoder(part).encode(weights, PROBE), PROBE) - weights
        nats = part.loss(error) * found.sensitivities[group_of(name, LAYERS)]
        assert found.losses[gguf_name(f"{name}.weight")][PROBE] == pytest.approx(nats, rel=0.15)


def test_the_heads_moments_are_those_of_the_final_states(
    found: Sensitivity, hessian: dict[tuple[str, int], Hessian]
) -> None:
    expected = hessian[EMBEDDINGS, 0]
    assert found.head.spans == expected.spans
    np.testing.assert_allclose(found.head.mean_squares, expected.mean_squares, rtol=1e-3)


@pytest.fixture(scope="module")
def small(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    text = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": LAYERS}
    return open_checkpoint(
        write_random_checkpoint(tmp_path_factory.mktemp("small") / "c", tiny, Shape(text=text))
    )


def measure_small(checkpoint: Checkpoint, **options: Any) -> Sensitivity:
    return measure_sensitivity(
        checkpoint, passages(checkpoint, (40, 9), 1), passages(checkpoint, (8,), 2), **options
    )


class StopError(Exception):
    """An interruption."""


def stop_at(step: int, steps: list[int]) -> Callable[[int, int], None]:
    def on_step(done: int, of: int) -> None:
        assert of == LAYERS + 1
        steps.append(done)
        if done == step:
            raise StopError

    return on_step


def assert_same(left: Sensitivity, right: Sensitivity) -> None:
    assert left.losses == right.losses
    assert left.sensitivities == right.sensitivities
    for one, other in zip(left.head.to_arrays().values(), right.head.to_arrays().values(), strict=True):
        assert np.array_equal(one, other)


def test_a_measurement_that_is_stopped_again_and_again_ends_as_an_undisturbed_one(
    small: Checkpoint, tmp_path: Path
) -> None:
    state, steps = StateFile(tmp_path / "state.npz", "mark"), []
    for step in range(1, LAYERS + 1):
        with pytest.raises(StopError):
            measure_small(small, state=state, on_step=stop_at(step, steps))
    assert_same(measure_small(small, state=state, on_step=stop_at(0, steps)), measure_small(small))
    assert steps == list(range(1, LAYERS + 2))  # no layer twice


@pytest.mark.parametrize("what", ["of another computation", "torn", "empty", "damaged"])
def test_a_state_that_is_not_whole_or_not_of_this_measurement_is_not_taken_up(
    small: Checkpoint, tmp_path: Path, what: str
) -> None:
    path, steps = tmp_path / "state.npz", []
    with pytest.raises(StopError):
        measure_small(small, state=StateFile(path, "mark"), on_step=stop_at(2, steps))
    data = bytearray(path.read_bytes())
    if what == "torn":
        del data[len(data) // 2 :]
    elif what == "empty":
        data.clear()
    elif what == "damaged":
        data[len(data) // 2] ^= 1
    path.write_bytes(data)
    steps.clear()
    state = StateFile(path, "mark" if what != "of another computation" else "other")
    assert state.read() is None
    with pytest.raises(StopError):
        measure_small(small, state=state, on_step=stop_at(1, steps))
    assert steps == [1]


def test_a_state_is_replaced_at_once(tmp_path: Path) -> None:
    state = StateFile(tmp_path / "state.npz", "mark")
    assert state.read() is None
    for number in range(2):
        state.write({"layer": number, "é": [1.5]}, {"x": np.full((2, 3), number, np.float32)})
        values, arrays = state.read() or ({}, {})
        assert values == {"layer": number, "é": [1.5]}
        assert np.array_equal(arrays["x"], np.full((2, 3), number))
    assert [path.name for path in tmp_path.iterdir()] == ["state.npz"]


def test_threads_do_not_matter(small: Checkpoint) -> None:
    assert_same(measure_small(small, threads=3), measure_small(small, threads=1))


def test_widths_that_are_no_whole_blocks_are_measured_for_the_types_that_fit(
    tiny: Path, tmp_path: Path
) -> None:
    text = {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 2}
    checkpoint = open_checkpoint(write_random_checkpoint(tmp_path / "c", tiny, Shape(text=text)))
    found = measure_sensitivity(checkpoint, passages(checkpoint, (40,), 1), passages(checkpoint, (8,), 2))
    assert {kind.name for kind in found.losses["blk.0.attn_q.weight"]} == {"Q8_0"}
    assert tuple(found.losses["blk.0.ffn_down.weight"]) == KINDS
    assert found.sensitivities["q, first third"] == 0.0
    assert found.sensitivities["down, first third"] > 0
