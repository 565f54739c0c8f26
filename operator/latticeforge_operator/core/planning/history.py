"""What finished train steps have measured, and how it changes the next prediction."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from latticeforge_operator.api import StackedTrainingSpec, TrainingStatus
from latticeforge_operator.api.status import StagePlanStatus, StepPhase, StepStatus
from latticeforge_trainer.contract import Method, StepKind

FARTHEST = 3.0
"""A run this many times as fast or slow as predicted tells of something else: another job on the
node, a slow disk. It is left out."""


@dataclass(frozen=True)
class Measured:
    """How fast one finished train step was against its prediction."""

    base: str
    method: Method
    pool: str
    ratio: float
    """Measured by predicted tokens/s, the prediction as the model alone made it."""


@dataclass(frozen=True)
class Factor:
    """What measured runs change in predicted tokens/s."""

    value: float = 1.0
    runs: int = 0
    """Those that it was taken from; 0: none, and the value is 1."""


@dataclass(frozen=True)
class History:
    """Finished train steps of this stack and of others."""

    measured: tuple[Measured, ...] = ()

    def factor(self, base: str, method: Method, pool: str) -> Factor:
        """The median of runs of the same base, method and pool; else of method and pool alone."""
        alike = [m for m in self.measured if (m.method, m.pool) == (method, pool)]
        same = [m for m in alike if m.base == base]
        ratios = [m.ratio for m in same or alike]
        return Factor(median(ratios), len(ratios)) if ratios else Factor()


def measured_in(spec: StackedTrainingSpec, status: TrainingStatus) -> Iterable[Measured]:
    """What one stack's finished train steps say, as far as they had been planned and have run."""
    if status.plan is None:
        return
    plans = {plan.name: plan for plan in status.plan.stages}
    steps = {step.name: step for step in status.steps}
    for stage in spec.stages:
        step, plan = steps.get(f"{stage.name}/{StepKind.TRAIN}"), plans.get(stage.name)
        ran = step is not None and step.phase is StepPhase.DONE
        ratio = _ratio(step, plan) if step and plan and ran else None
        if ratio is not None:
            yield Measured(spec.base.model, stage.method, status.plan.pool, ratio)


def _ratio(step: StepStatus, plan: StagePlanStatus) -> float | None:
    measured = (step.result or {}).get("tokensPerSecond")
    if not measured or not plan.tokens_per_second:
        return None
    ratio: float = measured * plan.speed_factor / plan.tokens_per_second
    return ratio if 1 / FARTHEST <= ratio <= FARTHEST else None
