"""What a budget still allows."""

from __future__ import annotations

from decimal import Decimal
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticeforge_operator.api.training import Budget, OnExceed
from latticeforge_operator.core.policies.budget import LEAST_SECONDS, allowance, crossed

MONEY = st.decimals(0, 1000, places=2)


def budget(limit: str, on_exceed: str = "Suspend") -> Budget:
    return Budget.model_validate({"limit": limit, "onExceed": on_exceed})


@pytest.mark.parametrize(
    ("limit", "spent", "price", "on_exceed", "outcome"),
    [
        ("10", "0", "3.6", "Suspend", (False, False, 10_000)),
        ("10", "10", "3.6", "Suspend", (True, True, None)),
        ("10", "10", "3.6", "Fail", (True, True, None)),
        ("10", "10", "3.6", "Warn", (True, False, None)),
        ("10", "9", "3.6", "Warn", (False, False, None)),
        ("10", "11", "0", "Suspend", (True, True, None)),
        ("10", "9.99", "0", "Suspend", (False, False, None)),
        ("10", "9.95", "3.6", "Suspend", (True, True, 50)),
        ("10", "9.94", "3.6", "Suspend", (False, False, 60)),
        ("0", "0", "0", "Suspend", (True, True, None)),
        ("999999999999", "0", "0.000001", "Suspend", (False, False, 2**31 - 1)),
    ],
)
def test_allowance(
    limit: str, spent: str, price: str, on_exceed: str, outcome: tuple[bool, bool, int | None]
) -> None:
    allowed = allowance(budget(limit, on_exceed), Decimal(spent), Decimal(price))
    assert (allowed.exceeded, allowed.stops, allowed.deadline_seconds) == outcome


def test_without_a_budget_everything_is_allowed() -> None:
    allowed = allowance(None, Decimal(10**9), Decimal(100))
    assert not allowed.stops
    assert allowed.deadline_seconds is None


@given(MONEY, MONEY, st.decimals("0.01", 100, places=2))
def test_a_job_never_outspends_what_is_left(limit: Decimal, spent: Decimal, price: Decimal) -> None:
    allowed = allowance(budget(str(limit)), spent, price)
    if not allowed.stops:
        assert allowed.deadline_seconds is not None
        assert allowed.deadline_seconds >= LEAST_SECONDS
        assert spent + price * allowed.deadline_seconds / 3600 <= limit


@pytest.mark.parametrize(
    ("before", "after", "shares"),
    [
        ("0", "4.99", []),
        ("4.99", "5", [50]),
        ("5", "5", []),
        ("5", "7.99", []),
        ("0", "8", [50, 80]),
        ("9", "12", [100]),
        ("0", "100", [50, 80, 100]),
        ("10", "11", []),
    ],
)
def test_warnings(before: str, after: str, shares: list[int]) -> None:
    assert crossed(budget("10"), Decimal(before), Decimal(after)) == shares


@given(st.lists(MONEY, min_size=1))
def test_each_share_is_told_once(amounts: list[Decimal]) -> None:
    rising = [Decimal(0), *sorted(amounts)]
    told = [s for a, b in pairwise(rising) for s in crossed(budget("500"), a, b)]
    assert len(told) == len(set(told))


def test_no_warnings_without_a_limit() -> None:
    assert crossed(None, Decimal(0), Decimal(5)) == []
    assert crossed(budget("0"), Decimal(0), Decimal(5)) == []


def test_on_exceed_is_told() -> None:
    assert allowance(budget("1", "Fail"), Decimal(2), Decimal(0)).action is OnExceed.FAIL
