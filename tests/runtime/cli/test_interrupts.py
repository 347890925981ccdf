from __future__ import annotations

import signal
import threading

import pytest

from ayaedge.cli.interrupts import Interrupts, signals_deferred

pytestmark = pytest.mark.usefixtures("all_processors")


def press() -> None:
    signal.raise_signal(signal.SIGINT)


def test_an_interrupt_comes_where_it_is_expected_and_once() -> None:
    with Interrupts() as interrupts:
        with pytest.raises(KeyboardInterrupt), interrupts.expected():
            press()
        press()
        with interrupts.expected():
            press()


def test_an_early_one_waits() -> None:
    with Interrupts() as interrupts:
        press()
        with pytest.raises(KeyboardInterrupt), interrupts.expected():
            pytest.fail("it should have been raised before")


def test_whoever_keeps_pressing_is_heard() -> None:
    with Interrupts(), pytest.raises(KeyboardInterrupt):
        for _ in range(4):
            press()


def test_signals_wait_for_the_end() -> None:
    presses: list[int] = []
    with pytest.raises(KeyboardInterrupt), signals_deferred(lambda: presses.append(1)):
        for _ in range(9):
            press()
    assert len(presses) == 9
    with signals_deferred(lambda: presses.append(1)):
        pass
    assert len(presses) == 9


def test_afterwards_and_where_it_is_switched_off_all_is_as_usual() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interrupts():
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before
    with Interrupts(enabled=False) as interrupts, pytest.raises(KeyboardInterrupt):
        press()
    with interrupts.expected():
        pass


def test_another_thread_needs_none() -> None:
    errors: list[BaseException] = []

    def work() -> None:
        try:
            with Interrupts() as interrupts, interrupts.expected():
                pass
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not errors
