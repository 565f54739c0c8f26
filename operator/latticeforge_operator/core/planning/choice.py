"""Which of the options that fit is taken."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from latticeforge_operator.api import StackedTrainingSpec
from latticeforge_operator.core.planning import words
from latticeforge_operator.core.planning.plan import Option

NEARLY = Decimal("1.05")
"""Cheapest: of what costs up to this many times the least, the fastest is taken. GPUs share work so
well that one alone is the cheapest by a few cents, and many times as slow."""


def choose(spec: StackedTrainingSpec, options: Sequence[Option]) -> Option | None:
    """The option that the objective asks for; None: all are refused.

    Options within the budget come first. Where none is expected to be, the cheapest is taken, which
    its low estimate still allows: else it would have been refused.
    """
    able = [option for option in options if option.refusal is None]
    if not able:
        return None
    paid = [option for option in able if is_within_budget(spec, option)]
    if not paid:
        return min(able, key=_by_cost)
    if spec.compute.objective == "Fastest":
        return min(paid, key=_by_time)
    least = min(option.cost.expected for option in paid)
    return min((o for o in paid if o.cost.expected <= NEARLY * least), key=_by_time)


def closest(spec: StackedTrainingSpec, options: Sequence[Option]) -> Option:
    """The option that is worth explaining where all are refused.

    Of those that train, the cheapest if even that is too dear, else the fastest; where none trains,
    the one on the most GPUs.
    """
    trained = [option for option in options if option.works]
    if not trained:
        return max(options, key=lambda o: (len(o.stages), o.gpus))
    cheapest = min(trained, key=_by_cost)
    return cheapest if words.too_dear(spec, cheapest) else min(trained, key=_by_time)


def is_within_budget(spec: StackedTrainingSpec, option: Option) -> bool:
    """Whether an option is expected to cost no more than the budget; of the unknown, it is."""
    if spec.budget is None or not option.predicted:
        return True
    return option.cost.expected <= Decimal(spec.budget.limit)


def _by_cost(option: Option) -> tuple[Decimal, int, int, str]:
    return option.cost.expected, option.seconds.expected, option.gpus, option.pool.name


def _by_time(option: Option) -> tuple[int, Decimal, int, str]:
    return option.seconds.expected, option.cost.expected, option.gpus, option.pool.name
