"""A plan as `status.plan`."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from latticeforge_operator.api.status import PlanStatus, SpreadStatus, StagePlanStatus
from latticeforge_operator.core.planning.plan import Plan, Spread, StagePlan

_SECONDS_PER_HOUR = 3600


def plan_status(plan: Plan, steps: Sequence[str]) -> PlanStatus:
    """What `status.plan` shows of a plan.

    Args:
        plan: One that has chosen.
        steps: Names of the stack's steps, in order.

    Raises:
        PlanError: Nothing was chosen.
    """
    option = plan.option
    return PlanStatus(
        pool=option.pool.name,
        gpus=option.gpus,
        steps=list(steps),
        stages=[_stage(stage) for stage in option.stages],
        hours=_hours(option.seconds) if option.predicted else None,
        cost=_money(option.cost) if option.predicted else None,
        currency=option.pool.spec.currency if option.predicted else None,
        tradeoff=plan.tradeoff,
        assumptions=list(plan.assumptions),
        seconds={w.step: w.seconds.expected for w in option.works} if option.predicted else {},
    )


def _stage(stage: StagePlan) -> StagePlanStatus:
    return StagePlanStatus(
        name=stage.stage,
        strategy=stage.strategy.to_json(),
        memory=f"{stage.memory.reserved / 2**30:.1f}",
        capacity=f"{stage.memory.capacity / 2**30:.1f}",
        tokens=stage.data.tokens,
        tokens_exact=stage.data.exact,
        tokens_per_second=round(stage.tokens_per_second, 1),
        speed_factor=round(stage.factor.value, 3),
    )


def _hours(seconds: Spread[int]) -> SpreadStatus:
    return SpreadStatus(
        low=f"{seconds.low / _SECONDS_PER_HOUR:.2f}",
        expected=f"{seconds.expected / _SECONDS_PER_HOUR:.2f}",
        high=f"{seconds.high / _SECONDS_PER_HOUR:.2f}",
    )


def _money(cost: Spread[Decimal]) -> SpreadStatus:
    return SpreadStatus(low=str(cost.low), expected=str(cost.expected), high=str(cost.high))
