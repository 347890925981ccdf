from __future__ import annotations

from collections.abc import Iterator

import pytest

from ayaedge_export.resume.eta import Eta


def eta(total: float, *moments: float) -> Eta:
    """With a clock that says these seconds, one after the other."""
    clock: Iterator[float] = iter(moments)
    return Eta(total, lambda: next(clock))


def test_time_is_left_in_proportion_to_the_work() -> None:
    counting = eta(10, 0, 60, 180)
    assert counting.label("one", 1) == "one"  # how long it took is not known
    assert counting.label("two", 2) == "two, 8 min left"
    assert counting.label("four", 4) == "four, 6 min left"


def test_a_run_that_goes_on_counts_its_own_steps_alone() -> None:
    counting = eta(10, 1000, 1060)
    assert counting.label("eight", 8) == "eight"
    assert counting.label("nine", 9) == "nine, 1 min left"


@pytest.mark.parametrize(
    ("seconds", "left"),
    [(0, ""), (59, ""), (60, ", 1 min left"), (3599, ", 1 h 0 min left"), (7500, ", 2 h 5 min left")],
)
def test_less_than_a_minute_is_not_worth_a_word(seconds: float, left: str) -> None:
    counting = eta(3, 0, seconds)
    counting.label("one", 1)
    assert counting.label("two", 2) == f"two{left}"


def test_a_step_without_work_says_nothing_of_time() -> None:
    counting = eta(3, 0, 100)
    counting.label("one", 1)
    assert counting.label("again", 1) == "again"
