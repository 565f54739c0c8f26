"""The plan of a stack from pass to pass: made once its base is known, kept where it is acted on.

It lives in `status.plan`, and a step on the pool starts only as it is written there: whoever decides
next, after whatever crash, finds the same. A stage that has started keeps its strategy, because
checkpoints are cut for it, and its stack keeps the pool. The others are planned anew when the spec,
the pools, what `prepare` has counted or memory that ran out give a reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from latticeforge_operator.api import GPUPool, StackedTraining, StackedTrainingSpec, TrainingStatus
from latticeforge_operator.api.status import PlanStatus, StagePlanStatus, StepStatus
from latticeforge_operator.api.training import OnExceed
from latticeforge_operator.core import ledger
from latticeforge_operator.core.planning import (
    History,
    Placement,
    PlanError,
    StageData,
    choose_pool,
    place,
    plan_stack,
    plan_status,
)
from latticeforge_operator.core.policies import remedy
from latticeforge_operator.core.steps import Step
from latticeforge_trainer.contract import ModelFacts, StepKind, digest_of
from latticeforge_trainer.estimate.base_model import BaseModel, read_base_model
from latticeforge_trainer.estimate.errors import EstimateError

CONDITION = "Planned"


@dataclass(frozen=True)
class Facts:
    """What is known of a stack when it is planned."""

    steps: Sequence[Step]
    records: Mapping[str, StepStatus]
    """Of the line's steps, by name."""
    base: ModelFacts | None
    """None: `prepare` has not read it yet."""
    data: Mapping[str, StageData]
    """By stage, of those that are prepared."""
    history: History

    @property
    def started(self) -> frozenset[str]:
        """The stages that train or have trained."""
        trains = [step for step in self.steps if step.kind is StepKind.TRAIN and step.stage]
        begun = (step for step in trains if _has_begun(self.records.get(step.name)))
        return frozenset(step.stage.name for step in begun if step.stage)


@dataclass(frozen=True)
class Verdict:
    """The condition `Planned`."""

    value: Literal["True", "False", "Unknown"]
    reason: str
    message: str


@dataclass(frozen=True)
class Outlook:
    """Where the steps of a stack run, and what they are expected to take."""

    spec: StackedTrainingSpec
    pool: GPUPool
    plan: PlanStatus
    verdict: Verdict

    @property
    def refusal(self) -> str | None:
        """Why what has not started cannot run."""
        return self.verdict.message if self.verdict.value == "False" else None

    def placement(self, step: Step) -> Placement:
        """The pods of a step.

        Raises:
            PlanError: The pool does not serve it.
        """
        strategy = self._stage(step).planned
        if step.kind is not StepKind.TRAIN or strategy is None:
            return place(self.spec, step.stage, step.kind, self.pool)
        return Placement(
            self.pool,
            pods=strategy.nodes,
            gpus_per_pod=strategy.processes,
            on_pool=True,
            strategy=strategy,
            queue=self.spec.compute.queue,
        )

    def is_recorded(self, step: Step, written: PlanStatus | None) -> bool:
        """Whether what a step needs of this plan has been written."""
        if written is None:
            return False
        before = Outlook(self.spec, self.pool, written, self.verdict)
        same_place = (written.pool, written.gpus) == (self.plan.pool, self.plan.gpus)
        return same_place and before._stage(step).strategy == self._stage(step).strategy

    def _stage(self, step: Step) -> StagePlanStatus:
        name = step.stage.name if step.stage else ""
        unplanned = StagePlanStatus(name=name)
        return next((stage for stage in self.plan.stages if stage.name == name), unplanned)
