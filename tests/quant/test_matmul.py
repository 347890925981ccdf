"""Products through PyTorch against numpy's. Its processor stands in for a GPU; a GPU is compared where there is one."""

from __future__ import annotations

import logging
import sys
from importlib import metadata
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ayaedge_quant import matmul as products
from ayaedge_quant.matmul import Multiplier, find_gpu, is_exact, is_worth_sending

ALMOST = 1e-5
"""Of the largest product: both sum a thousand float32 products, in another order."""


@pytest.fixture(scope="module")
def torch() -> Any:
    return pytest.importorskip("torch", reason="needs the extra trace")


def drawn(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def assert_multiplies(multiply: Multiplier, device_is_used: bool = True) -> None:
    wide, narrow = drawn(700, 1024), drawn(600, 1024, seed=1)
    cases = [
        (wide, narrow.T),
        (wide[:, ::2], np.ascontiguousarray(narrow[:, ::2]).T),  # rows that do not lie in one piece
        (wide.T, drawn(700, 640)),
        (wide.reshape(7, 100, 1024), narrow.T),
    ]
    for x, weights in cases:
        expected = x @ weights
        out = np.full((*x.shape[:-1], weights.shape[1]), np.nan, np.float32)
        assert multiply(x, weights, out) is out
        for found in (out, multiply(x, weights)):
            assert found.shape == expected.shape
            assert np.abs(found - expected).max() < ALMOST * np.abs(expected).max()
    assert (multiply.device is not None) == device_is_used


def test_a_device_gives_the_products(torch: Any) -> None:
    assert_multiplies(Multiplier(torch.device("cpu")))


def test_rows_go_to_the_device_in_parts(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_PART_BYTES", 100 * 4 * 1024)
    assert_multiplies(Multiplier(torch.device("cpu")))


def test_without_a_device_it_is_numpys_product() -> None:
    x, weights = drawn(300, 400), drawn(400, 500)
    assert np.array_equal(Multiplier(None)(x, weights), x @ weights)


def test_small_products_stay_here(torch: Any) -> None:
    x, weights = drawn(3, 400), drawn(400, 500)
    nowhere = Multiplier(torch.device("meta"))  # which has no values
    assert np.array_equal(nowhere(x, weights), x @ weights)
    assert nowhere.device is not None
    assert not is_worth_sending(3, 400, 500)
    assert is_worth_sending(12288, 4096, 1024)


def test_a_device_that_fails_is_given_up_with_a_warning(torch: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "ayaedge.matmul")
    failing = Multiplier(torch.device("meta"))
    assert_multiplies(failing, device_is_used=False)
    (record,) = caplog.records
    assert record.getMessage().startswith("PyTorch's meta failed, the processor takes over: ")


@pytest.mark.skipif(find_gpu() is None, reason="PyTorch has no GPU here")
def test_the_gpu_gives_the_products() -> None:
    assert_multiplies(Multiplier(find_gpu()))


def test_a_build_of_pytorch_for_processors_is_not_even_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(_name: str) -> str:
        return "2.13.0+cpu"

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it would fail
    assert find_gpu() is None


@pytest.mark.parametrize("available", [True, False])
def test_any_pytorch_that_knows_accelerators_is_asked(
    torch: Any, monkeypatch: pytest.MonkeyPatch, available: bool
) -> None:
    class Accelerator:  # of PyTorch 2.6, whose function takes no arguments
        def is_available(self) -> bool:
            return available

        def current_accelerator(self) -> str:
            return "a device"

    def version(_name: str) -> str:
        return "2.6.0+cu124"

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(torch, "accelerator", Accelerator())
    assert find_gpu() == ("a device" if available else None)


def test_a_device_that_does_not_multiply_in_float32_is_told_apart(torch: Any) -> None:
    class Half(Multiplier):
        def __call__(self, x: Any, weights: Any, out: Any = None) -> NDArray[np.float32]:
            return (x.astype(np.float16) @ weights.astype(np.float16)).astype(np.float32)

    assert is_exact(Multiplier(torch.device("cpu")))
    assert not is_exact(Half(None))


def test_without_pytorch_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> Any:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    assert find_gpu() is None
