"""How far a stack is, when it ends and what the rest costs: by what ran, until then by its plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from latticeforge_operator.api.status import PlanStatus, StepPhase, StepStatus
from latticeforge_operator.core import ledger
from latticeforge_operator.core.planning import is_on_pool
from latticeforge_operator.core.steps import Step
from latticeforge_trainer.contract import StepKind

SHARE = {
    StepKind.PREPARE: 1,
    StepKind.TRAIN: 10,
    StepKind.MERGE: 1,
    StepKind.EVALUATE: 5,
    StepKind.PUBLISH: 1,
}
"""How much of the whole a step of a kind is taken for."""

_FEW_PERCENT = 0.05
"""Of the work; before so much has run, its rate tells nothing."""

_SECONDS_PER_HOUR = 3600


@dataclass(frozen=True)
class Standing:
    """The steps of a stack as they stand."""

    steps: Sequence[Step]
    records: Mapping[str, StepStatus]
    """Of the steps that were reached, by name."""
    plan: PlanStatus

    @property
    def share(self) -> float:
        """The part of the work that is done, from 0 to 1."""
        return sum(SHARE[s.kind] * self._done(s) for s in self.steps) / _work(self.steps)

    def seconds_left(self, now: datetime) -> float | None:
        """Seconds that the rest takes if it goes as fast as the steps that really ran.

        Until something has run on the pool, the plan says more, where there is one.
        """
        planned = self._planned_seconds_left(self.steps)
        if planned is not None and self._worked(self._paid) < _FEW_PERCENT:
            return planned
        worked = self._worked(self.steps)
        if worked < _FEW_PERCENT:
            return None
        ran = sum(_seconds(record, now) for _, record in self._ran(self.steps))
        return ran * (1 - self.share) / worked

    def cost_left(self, price_per_unit_hour: Decimal) -> Decimal | None:
        """Money that the rest costs if it costs what those steps did that really ran.

        Only steps on the pool cost anything.
        """
        paid = self._paid
        if not paid or self._worked(paid) < _FEW_PERCENT:
            return self.planned_cost_left(price_per_unit_hour)
        ran = self._ran(paid)
        worked = sum((Decimal(SHARE[s.kind] * r.fraction) for s, r in ran), start=Decimal(0))
        left = sum((Decimal(SHARE[s.kind] * (1 - self._done(s))) for s in paid), start=Decimal(0))
        return ledger.total([record for _, record in ran], Decimal(0)) * left / worked

    def planned_cost_left(self, price_per_unit_hour: Decimal) -> Decimal | None:
        """Money that the rest costs by the plan alone; None where it does not say."""
        if not self.plan.seconds:
            return None
        train, evaluate = (
            self._planned_seconds_left([s for s in self.steps if s.kind is kind]) or 0.0
            for kind in (StepKind.TRAIN, StepKind.EVALUATE)
        )
        units = Decimal(train * max(1, self.plan.gpus) + evaluate)
        return units * price_per_unit_hour / _SECONDS_PER_HOUR

    @property
    def _paid(self) -> list[Step]:
        return [step for step in self.steps if is_on_pool(step.kind)]

    def _worked(self, steps: Sequence[Step]) -> float:
        """The part of their work that really ran, from 0 to 1."""
        ran = sum(SHARE[s.kind] * record.fraction for s, record in self._ran(steps))
        return ran / _work(steps)

    def _planned_seconds_left(self, steps: Sequence[Step]) -> float | None:
        seconds = self.plan.seconds
        return sum(seconds.get(s.name, 0) * (1 - self._done(s)) for s in steps) if seconds else None

    def _done(self, step: Step) -> float:
        record = self.records.get(step.name)
        return record.fraction if record is not None else 0.0

    def _ran(self, steps: Sequence[Step]) -> list[tuple[Step, StepStatus]]:
        """The steps that were reached and had to be run."""
        pairs = ((step, self.records.get(step.name)) for step in steps)
        return [(s, r) for s, r in pairs if r is not None and r.phase is not StepPhase.REUSED]


def _work(steps: Sequence[Step]) -> int:
    return sum(SHARE[step.kind] for step in steps)


def _seconds(record: StepStatus, now: datetime) -> float:
    """How long a step has taken so far."""
    if record.started_at is None:
        return 0.0
    end = datetime.fromisoformat(record.finished_at) if record.finished_at else now
    return (end - datetime.fromisoformat(record.started_at)).total_seconds()
