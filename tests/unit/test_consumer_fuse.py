"""The fuse by itself: when it blows, and what it counts."""

from uuid import UUID

import pytest

from streams.consumer.fuse import Fuse, FuseBlown
from streams.consumer.limits import FuseLimits

LIMITS = FuseLimits(window=100, max_ratio=0.5, least=10, max_consecutive=20, probe=3)


def case(number: int) -> UUID:
    return UUID(int=number)


def test_it_blows_once_most_cases_fail() -> None:
    """Below `least` it holds; above half of them it blows, and says how many."""
    fuse = Fuse(LIMITS)
    for number in range(4):
        fuse.passed(case(number))
    for number in range(4, 8):
        fuse.check([case(number)])
    with pytest.raises(FuseBlown, match="6 of the last 10 cases failed"):
        fuse.check([case(8), case(9)])


def test_a_case_counts_once() -> None:
    """One case that is parked again and again blows nothing; one that goes through later counts as that."""
    fuse = Fuse(LIMITS)
    for _ in range(100):
        fuse.check([case(1)])
    for number in range(2, 9):
        fuse.check([case(number)])
    for number in range(2, 9):
        fuse.passed(case(number))
    fuse.check([case(number) for number in range(9, 12)])


def test_a_run_of_failures_blows_it_whatever_went_before() -> None:
    """A window full of cases that went through does not hide that none does any more."""
    fuse = Fuse(LIMITS)
    for number in range(80):
        fuse.passed(case(number))
    fuse.check([case(number) for number in range(100, 119)])
    with pytest.raises(FuseBlown):
        fuse.check([case(119)])


def test_old_cases_leave_the_window() -> None:
    """Only the last cases count."""
    fuse = Fuse(FuseLimits(window=10, least=10, max_consecutive=1000))
    for number in range(5):
        fuse.check([case(number)])
    for number in range(5, 100):
        fuse.passed(case(number))
    fuse.check([case(number) for number in range(100, 105)])
    with pytest.raises(FuseBlown, match="6 of the last 10"):
        fuse.check([case(105)])


def test_after_it_has_blown_few_cases_are_enough() -> None:
    """Resumed, it blows again at the probe; once the probe goes through it is as before."""
    fuse = Fuse(LIMITS)
    for _ in range(2):
        with pytest.raises(FuseBlown):
            fuse.check([case(number) for number in range(10)])
    with pytest.raises(FuseBlown, match="3 of the last 3"):
        fuse.check([case(number) for number in range(3)])
    for number in range(3):
        fuse.passed(case(number))
    fuse.check([case(number) for number in range(3, 9)])
