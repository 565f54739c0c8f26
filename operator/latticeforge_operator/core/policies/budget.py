"""What the budget still allows."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from latticeforge_operator.api.training import Budget, OnExceed

SECONDS_PER_HOUR = 3600
WARNING_SHARES = (50, 80, 100)
"""Percentages of the limit at which a warning is given."""


@dataclass(frozen=True)
class Allowance:
    """What may still be spent."""

    exceeded: bool
    action: OnExceed
    remaining: Decimal | None
    """None without a budget."""

    @property
    def stops(self) -> bool:
        """Whether nothing more may run."""
        return self.exceeded and self.action is not OnExceed.WARN

    def deadline_seconds(self, price_per_hour: Decimal) -> int | None:
        """Seconds until the limit at a burn rate; None when nothing bounds it."""
        if self.remaining is None or price_per_hour == 0 or self.action is OnExceed.WARN:
            return None
        return max(1, int(self.remaining / price_per_hour * SECONDS_PER_HOUR))


def allowance(budget: Budget | None, spent: Decimal) -> Allowance:
    """What `budget` still allows after `spent`."""
    if budget is None:
        return Allowance(exceeded=False, action=OnExceed.WARN, remaining=None)
    remaining = Decimal(budget.limit) - spent
    return Allowance(
        exceeded=remaining <= 0, action=budget.on_exceed, remaining=max(remaining, Decimal(0))
    )


def crossed(budget: Budget | None, before: Decimal, after: Decimal) -> list[int]:
    """The warning percentages that lie between two amounts spent."""
    if budget is None or Decimal(budget.limit) == 0:
        return []
    limit = Decimal(budget.limit)
    return [share for share in WARNING_SHARES if before * 100 < share * limit <= after * 100]
