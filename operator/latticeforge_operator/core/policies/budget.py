"""What the budget still allows, in money and in seconds of a Job."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from latticeforge_operator.api.training import Budget, OnExceed

SECONDS_PER_HOUR = 3600
LONGEST_SECONDS = 2**31 - 1
"""The most that fits a Job's `activeDeadlineSeconds` on every API server."""
WARNING_SHARES = (50, 80, 100)
"""Percentages of the limit at which a warning is given."""
LEAST_SECONDS = 60
"""A budget that pays for less than this is spent: a Job would end before it has begun."""


@dataclass(frozen=True)
class Allowance:
    """What may still be spent."""

    exceeded: bool
    action: OnExceed
    deadline_seconds: int | None = None
    """Seconds until the limit at the burn rate; None when nothing bounds it."""

    @property
    def stops(self) -> bool:
        """Whether nothing more may run."""
        return self.exceeded and self.action is not OnExceed.WARN


def allowance(budget: Budget | None, spent: Decimal, price_per_hour: Decimal) -> Allowance:
    """What `budget` still allows after `spent`, at a burn rate."""
    if budget is None:
        return Allowance(exceeded=False, action=OnExceed.WARN)
    remaining = Decimal(budget.limit) - spent
    if remaining <= 0:
        return Allowance(exceeded=True, action=budget.on_exceed)
    if price_per_hour == 0 or budget.on_exceed is OnExceed.WARN:
        return Allowance(exceeded=False, action=budget.on_exceed)
    seconds = int(min(remaining / price_per_hour * SECONDS_PER_HOUR, Decimal(LONGEST_SECONDS)))
    return Allowance(
        exceeded=seconds < LEAST_SECONDS, action=budget.on_exceed, deadline_seconds=seconds
    )


def unaffordable(
    budget: Budget | None, spent: Decimal, expected: Decimal, low: Decimal, currency: str
) -> str | None:
    """Why what is left of the budget cannot pay for what is left to do; None: it may.

    Args:
        budget: The stack's.
        spent: Money so far.
        expected: Predicted money for the rest.
        low: The least that it may cost, by the error of the prediction.
        currency: What is paid in.
    """
    if budget is None or budget.on_exceed is OnExceed.WARN:
        return None
    left = Decimal(budget.limit) - spent
    if low <= left:
        return None
    return (
        f"the rest is predicted to cost {expected:.2f} {currency}, at least {low:.2f}, and "
        f"{left:.2f} are left of budget.limit {budget.limit}; raise it to {spent + expected:.2f}"
    )


def crossed(budget: Budget | None, before: Decimal, after: Decimal) -> list[int]:
    """The warning percentages that lie between two amounts spent."""
    if budget is None or Decimal(budget.limit) == 0:
        return []
    limit = Decimal(budget.limit)
    return [share for share in WARNING_SHARES if before * 100 < share * limit <= after * 100]
