"""What a plan of a stack is made from, and what is told and done by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from latticeforge_operator.api import GPUPool, StackedTrainingSpec
from latticeforge_operator.api.status import PlanStatus, StagePlanStatus, StepPhase, StepStatus
from latticeforge_operator.core.planning import (
    History,
    Placement,
    StageData,
    data_of,
    is_on_pool,
    place,
)
from latticeforge_operator.core.steps import Step, kind_of
from latticeforge_operator.core.values import Event, PublicBase
from latticeforge_trainer.contract import ModelFacts, PrepareResult, StepKind

CONDITION = "Planned"
"""Type of the condition that says whether there is a plan."""

BASE_AWAITED = "BaseAwaited"
"""Its reason while the Hub is asked what the base is."""

_TRAINED = frozenset({StepPhase.DONE, StepPhase.REUSED})


@dataclass(frozen=True)
class Verdict:
    """The condition `Planned`."""

    value: Literal["True", "False", "Unknown"]
    reason: str
    message: str


@dataclass(frozen=True)
class Facts:
    """What is known of a stack when it is planned."""

    steps: Sequence[Step]
    records: Mapping[str, StepStatus]
    """Of the steps of the line, by name."""
    found: frozenset[str]
    """Digests of results that are in the store already."""
    reported: ModelFacts | None
    """What a running `prepare` has said of the base."""
    public_base: PublicBase
    history: History

    @property
    def is_read(self) -> bool:
        """Whether `prepare` has read the base."""
        return self.reported is not None or bool(self._prepared)

    @property
    def config(self) -> Mapping[str, Any] | None:
        """What the base's sizes follow from, by whoever knows best; None: nobody does."""
        done = (result.base.config for result in self._prepared.values())
        reported = self.reported.config if self.reported else None
        known = (*done, reported, self.public_base.config)
        return next((config for config in known if config is not None), None)

    @property
    def data(self) -> dict[str, StageData]:
        """What was counted, by stage."""
        return {stage: data_of(result) for stage, result in self._prepared.items()}

    @property
    def begun(self) -> frozenset[str]:
        """Stages of which an attempt at training was made."""
        return frozenset(stage for stage, record in self._of(StepKind.TRAIN) if record.attempts)

    @property
    def on_pool(self) -> bool:
        """Whether an attempt at anything was made on a pool."""
        return any(r.attempts and is_on_pool(kind_of(name)) for name, r in self.records.items())

    @property
    def trained(self) -> frozenset[str]:
        """Stages whose training is done."""
        done = (s for s, record in self._of(StepKind.TRAIN) if record.phase in _TRAINED)
        found = (s.stage.name for s in self.steps if s.stage and _trains(s, self.found))
        return frozenset((*done, *found))

    @cached_property
    def _prepared(self) -> dict[str, PrepareResult]:
        return {
            stage: PrepareResult.model_validate(record.result)
            for stage, record in self._of(StepKind.PREPARE)
            if record.phase in _TRAINED
        }

    def _of(self, kind: StepKind) -> list[tuple[str, StepStatus]]:
        """The records of a kind of step, by stage."""
        return [
            (step.stage.name, self.records[step.name])
            for step in self.steps
            if step.kind is kind and step.stage is not None and step.name in self.records
        ]


def _trains(step: Step, digests: frozenset[str]) -> bool:
    return step.kind is StepKind.TRAIN and step.digest in digests


@dataclass(frozen=True)
class Outlook:
    """Where the steps of a stack run, and what they are expected to take."""

    spec: StackedTrainingSpec
    pool: GPUPool
    plan: PlanStatus
    verdict: Verdict
    events: tuple[Event, ...] = ()
    """What a new plan gives reason to tell."""

    @property
    def refusal(self) -> str | None:
        """Why what has not started cannot run."""
        return self.verdict.message if self.verdict.value == "False" else None

    def placement(self, step: Step) -> Placement:
        """The pods of a step.

        Raises:
            PlanError: The pool does not serve it.
        """
        strategy = _stage_of(self.plan, step).planned
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
        if written is None or (written.pool, written.gpus) != (self.plan.pool, self.plan.gpus):
            return False
        return _stage_of(written, step).strategy == _stage_of(self.plan, step).strategy


def _stage_of(plan: PlanStatus, step: Step) -> StagePlanStatus:
    name = step.stage.name if step.stage else ""
    return next((s for s in plan.stages if s.name == name), StagePlanStatus(name=name))
