"""A plan as `status.plan`, and as a document for programs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any

from latticeforge_operator.api.status import PlanStatus, SpreadStatus, StagePlanStatus
from latticeforge_operator.core.planning import words
from latticeforge_operator.core.planning.plan import Misfit, Option, Plan, Spread, StagePlan
from latticeforge_trainer.estimate.memory import Memory
from latticeforge_trainer.estimate.terms import GIB, Term

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
        stages=[_stage_status(stage, option) for stage in option.stages],
        hours=_hours(option.seconds) if option.predicted else None,
        cost=_money(option.cost) if option.predicted else None,
        currency=option.pool.spec.currency if option.predicted else None,
        tradeoff=plan.tradeoff,
        assumptions=list(plan.assumptions),
        seconds={w.step: w.seconds.expected for w in option.works} if option.predicted else {},
    )


def plan_document(plan: Plan) -> dict[str, Any]:
    """Everything that was looked at, as JSON-ready values."""
    chosen = plan.options.index(plan.chosen) if plan.chosen is not None else None
    return {
        "chosen": chosen,
        "refusal": plan.refusal,
        "options": [_option(option) for option in plan.options],
        "alternatives": [
            {"change": other.change, "lossy": other.lossy, "option": _option(other.option)}
            for other in plan.alternatives
        ],
        "tradeoff": plan.tradeoff,
        "assumptions": list(plan.assumptions),
        "warnings": list(plan.warnings),
    }


def _option(option: Option) -> dict[str, Any]:
    predicted = {
        "hours": _hours(option.seconds).to_json(),
        "cost": _money(option.cost).to_json(),
        "currency": option.pool.spec.currency,
        "perMillionTokens": option.per_million,
        "steps": [
            {
                "name": work.step,
                "gpus": work.units,
                "seconds": work.seconds.expected,
                "why": work.why,
            }
            for work in option.works
        ],
    }
    return {
        "pool": option.pool.name,
        "gpus": option.gpus,
        "refusal": option.refusal,
        "stages": [_stage(stage, option) for stage in option.stages],
        **(predicted if option.works else {}),
        **({"misfit": _misfit(option.misfit)} if option.misfit else {}),
        "mergeHostMemory": _terms(option.merge_host),
        "disk": _terms(option.disk),
    }


def _stage(stage: StagePlan, option: Option) -> dict[str, Any]:
    return {
        **_stage_status(stage, option).to_json(),
        "gpuMemory": _gpu_memory(stage.memory),
        "hostMemory": _terms(stage.host),
        "secondsPerStep": [
            {"name": term.name, "seconds": round(term.seconds, 4), "why": term.why}
            for term in stage.speed.terms
        ],
    }


def _misfit(misfit: Misfit) -> dict[str, Any]:
    return {
        "name": misfit.stage,
        "strategy": misfit.strategy.to_json(),
        "gpuMemory": _gpu_memory(misfit.memory),
        "hostMemory": _terms(misfit.host),
    }


def _gpu_memory(memory: Memory) -> dict[str, Any]:
    return {
        "allocatedBytes": memory.allocated,
        "reservedBytes": memory.reserved,
        "capacityBytes": memory.capacity,
        "terms": _terms(memory.terms),
    }


def _terms(terms: Iterable[Term]) -> list[dict[str, Any]]:
    return [{"name": term.name, "bytes": term.bytes, "why": term.why} for term in terms]


def _stage_status(stage: StagePlan, option: Option) -> StagePlanStatus:
    train = next((w for w in option.works if w.step == f"{stage.stage}/train"), None)
    return StagePlanStatus(
        name=stage.stage,
        strategy=stage.strategy.to_json(),
        words=words.strategy(stage),
        accumulation=stage.run.micro_batches,
        memory=f"{stage.memory.reserved / GIB:.1f}",
        capacity=f"{stage.memory.capacity / GIB:.1f}",
        tokens=stage.data.tokens,
        tokens_exact=stage.data.exact,
        tokens_per_second=round(stage.tokens_per_second, 1),
        speed_factor=round(stage.factor.value, 3),
        hours=_in_hours(train.seconds.expected) if train and option.predicted else None,
    )


def _hours(seconds: Spread[int]) -> SpreadStatus:
    figures = (seconds.low, seconds.expected, seconds.high)
    low, expected, high = (_in_hours(figure) for figure in figures)
    return SpreadStatus(low=low, expected=expected, high=high)


def _in_hours(seconds: int) -> str:
    return f"{seconds / _SECONDS_PER_HOUR:.2f}"


def _money(cost: Spread[Decimal]) -> SpreadStatus:
    return SpreadStatus(low=str(cost.low), expected=str(cost.expected), high=str(cost.high))
