"""Lanes: each has the numbers that its answer would have alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from ayaedge import BackendError, DecoderOptions
from ayaedge.bundle import Bundle, demo_bundle, read_bundle
from ayaedge.decoder.acceleration import usable_kernels
from ayaedge.decoder.decoder import Decoder
from ayaedge.decoder.kv_state import read_state, spread_state, write_state
from ayaedge.decoder.lanes import Lane, Lanes, lanes_agree
from ayaedge.decoder.options import ATTENTION_KERNELS, Kernel

LARGEST = 0.02
"""Difference of a logit between the same row alone and in a lane: llama.cpp chooses other kernels for several columns
of some types and processors, and keys of a cache that was moved are summed in another order behind the window. Zero,
or the last bit, on x86 with 4-bit weights. Other rows' logits differ by more than ten times that."""
STEPS = 8
NAN = 0x7E00
"""As a 16-bit float."""


@pytest.fixture(scope="module")
def demo() -> Bundle:
    return read_bundle(demo_bundle())


@pytest.fixture
def decoder(demo: Bundle) -> Iterator[Decoder]:
    with Decoder(demo.decoder_path, demo.manifest) as opened:
        yield opened


@pytest.fixture
def precise(exact_bundle: Bundle) -> Iterator[Decoder]:
    with Decoder(exact_bundle.decoder_path, exact_bundle.manifest) as opened:
        yield opened


def prompt(length: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(length).integers(300, 2000, length)]


def alone(decoder: Decoder, length: int, count: int = STEPS) -> tuple[list[int], list[NDArray[np.float32]]]:
    """The likeliest tokens behind a prompt, and the logits behind each; the decoder holds the prompt then."""
    decoder.clear()
    decoder.decode_tokens(prompt(length))
    tokens, logits = [], []
    for _ in range(count):
        tokens.append(decoder.likeliest()[-1])
        decoder.decode_tokens(tokens[-1:])
        logits.append(decoder.last_logits())
    decoder.cut(length)
    return tokens, logits


def apart(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """The largest difference of a logit."""
    return float(np.abs(one - other).max())


def test_lanes_of_any_length_have_the_logits_of_one_by_one(decoder: Decoder) -> None:
    """Prompts within the window of 64, on its edge, behind it and far behind; one lane ends before the others."""
    lengths = (20, 60, 100, 300)
    lanes = Lanes(decoder, len(lengths), 320)
    expected: dict[Lane, tuple[list[int], list[NDArray[np.float32]]]] = {}
    for length in lengths:
        found = alone(decoder, length)
        lane = lanes.take_over()
        assert lane is not None
        expected[lane] = found
    first, *others = expected
    for step in range(STEPS):
        if step == 3:
            lanes.drop(first)  # the last one moves to its place
        lanes.decode([(lane, expected[lane][0][step]) for lane in lanes.live])
        for lane in lanes.live:
            assert apart(expected[lane][1][step], lane.last_logits()) < LARGEST
            assert lane.likeliest() == [int(expected[lane][1][step].argmax())]
    assert {lane.number for lane in lanes.live} == {0, 1, 2}
    assert set(lanes.live) == set(others)
    assert not first.has_logits
    one, other = lanes.live[:2]
    assert (
        apart(one.last_logits(), other.last_logits()) > 10 * LARGEST
    )  # the bar catches another lane's numbers
    lanes.close()


@pytest.mark.parametrize("kernel", ATTENTION_KERNELS)
def test_lanes_have_the_logits_of_one_by_one_with_attention_of_ours(demo: Bundle, kernel: Kernel) -> None:
    """Next to longer ones too, and behind 512 keys, where llama.cpp computes one token otherwise than several."""
    if kernel not in usable_kernels():
        pytest.skip(f"this processor does not run {kernel}")
    lengths = (40, 100, 300, 600)
    with Decoder(demo.decoder_path, demo.manifest, DecoderOptions(acceleration=kernel)) as decoder:
        assert decoder.uses_flash
        lanes = Lanes(decoder, len(lengths), 620)
        expected = []
        for length in lengths:
            expected.append(alone(decoder, length))
            assert lanes.take_over() is not None
        for step in range(STEPS):
            lanes.decode([(lane, expected[lane.number][0][step]) for lane in lanes.live])
            found = [apart(expected[lane.number][1][step], lane.last_logits()) for lane in lanes.live]
            assert found[0] == 0  # within the window
            assert max(found) < LARGEST
        lanes.close()


def test_tokens_of_one_lane_are_decoded_as_alone_and_lanes_grow(decoder: Decoder) -> None:
    tokens, logits = alone(decoder, 250)
    lanes = Lanes(decoder, 2, 251)
    assert lanes.capacity == 256
    lane, other = lanes.take_over(), lanes.take_over()
    assert lane is not None
    assert other is not None
    decoder.decode_tokens(tokens)
    together = decoder.last_logits()
    lane.decode_tokens(tokens)
    assert lanes.capacity > 256
    assert apart(together, lane.last_logits()) < LARGEST
    assert not other.has_logits
    with pytest.raises(BackendError, match="no logits"):
        other.likeliest()
    lanes.decode([(other, tokens[0])])
    assert apart(logits[0], other.last_logits()) < LARGEST
    lanes.close()


def test_numbers_that_are_none_stay_in_their_lane_and_go_when_it_is_renewed(precise: Decoder) -> None:
    decoder = precise  # quantized weights make zeros of NaN
    tokens, logits = alone(decoder, 100)
    lanes = Lanes(decoder, 2, 128)
    good, bad = lanes.take_over(), lanes.take_over()
    assert good is not None
    assert bad is not None
    state = read_state(lanes.handle, bad.number)
    state[-16384:] = np.full(8192, NAN, "<u2").view(np.uint8)  # values of the last layer
    assert write_state(lanes.handle, state, bad.number) == state.nbytes
    lanes.decode([(good, tokens[0]), (bad, tokens[0])])
    assert apart(logits[0], good.last_logits()) < LARGEST
    with pytest.raises(BackendError, match="of no use"):
        bad.check_logits()
    lanes.drop(bad)
    lanes.renew()
    again = lanes.take_over()
    assert again is not None
    lanes.decode([(good, tokens[1]), (again, tokens[0])])
    assert apart(logits[1], good.last_logits()) < LARGEST
    assert apart(logits[0], again.last_logits()) < LARGEST
    lanes.close()


def test_whether_lanes_agree_to_the_bit_is_tried(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = lanes_agree(decoder, 4)
    assert decoder.position == 0
    assert isinstance(tried, bool)
    exact = Lane.last_logits
    monkeypatch.setattr(Lane, "last_logits", lambda lane: np.nextafter(exact(lane), np.float32(np.inf)))
    assert not lanes_agree(decoder, 4)


def test_lanes_agree_with_four_bit_weights_on_x86(decoder: Decoder) -> None:
    import platform

    if platform.machine().lower() not in ("x86_64", "amd64"):
        pytest.skip("other processors have kernels of their own for several columns")
    assert lanes_agree(decoder, 4)


def test_flash_attention_of_llama_cpp_is_not_taken_for_equal(demo: Bundle) -> None:
    """A few tokens agree with it; behind 512 keys it computes one token otherwise than several."""
    flash = DecoderOptions(flash_attention=True, acceleration="off")
    with Decoder(demo.decoder_path, demo.manifest, flash) as opened:
        assert not lanes_agree(opened, 4)


def test_a_state_that_is_not_as_expected_is_not_taken_over(decoder: Decoder) -> None:
    decoder.decode_tokens(prompt(20))
    state = read_state(decoder.handle)
    assert spread_state(decoder.handle, state, 3) is not None
    state[8] = 2
    assert spread_state(decoder.handle, state, 3) is None


@pytest.mark.parametrize("shrunk_release", ["aya-vision-32b"], indirect=True)
def test_a_model_without_a_sliding_window_has_lanes(shrunk_release_bundle: Bundle) -> None:
    with Decoder(shrunk_release_bundle.decoder_path, shrunk_release_bundle.manifest) as decoder:
        tokens, logits = alone(decoder, 30, 1)
        lanes = Lanes(decoder, 3, 64)
        for _ in range(3):
            assert lanes.take_over() is not None
        lanes.decode([(lane, tokens[0]) for lane in lanes.live])
        for lane in lanes.live:
            assert apart(logits[0], lane.last_logits()) < LARGEST * float(np.abs(logits[0]).max())
        lanes.close()
