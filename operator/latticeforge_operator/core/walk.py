"""The walk along the line of steps, to the first one that is not done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

from latticeforge_operator.api import GPUPool, StackedTraining, Stage
from latticeforge_operator.api.base import parse_duration
from latticeforge_operator.api.status import StepStatus
from latticeforge_operator.api.training import OnGateFailure
from latticeforge_operator.core.outlook import Facts
from latticeforge_operator.core.planning import Placement, place
from latticeforge_operator.core.policies import gate
from latticeforge_operator.core.settle import DONE, Settlement
from latticeforge_operator.core.steps import Step, expand
from latticeforge_operator.core.values import Event, JobView, Observed
from latticeforge_trainer.contract import EvaluateResult, PrepareResult, StepKind, StepResult

APPROVE_ANNOTATION = "latticeforge.dev/approve"
"""Set by a user to the name of a stage (or several, by commas) whose gate failed, to go on."""


class Walk:
    """One pass along the line of one stack.

    Args:
        training: The stack.
        known: The records of its steps, charged for their pods.
        observed: Its part of the cluster.
        pool: The pool that it is on.
        now: The time.
    """

    def __init__(
        self,
        training: StackedTraining,
        known: Sequence[StepStatus],
        observed: Observed,
        pool: GPUPool,
        now: datetime,
    ) -> None:
        self.steps: list[Step] = []
        self.records: dict[str, StepStatus] = {}
        self.prepared: dict[str, PrepareResult] = {}
        self.gate_failures: list[str] = []
        """Why the gate of the step where the walk ended holds."""
        self.events: list[Event] = []
        self.wake_at: datetime | None = None
        self._training, self._observed, self._pool, self._now = training, observed, pool, now
        self._known = {record.name: record for record in known}
        self._stall_timeout = parse_duration(training.spec.failure.stall_timeout)

    def prepare(self) -> Step | None:
        """Settle the prepare steps in order; returns the first that is not done."""
        spec = self._training.spec
        self.steps = expand(spec, {})
        steps = (step for step in self.steps if step.kind is StepKind.PREPARE)
        undone = next((step for step in steps if not self._prepared(step)), None)
        if self.prepared:  # whether there is something to merge, and every digest, follow from them
            self.steps = expand(spec, self.prepared)
        return undone

    def _prepared(self, step: Step) -> bool:
        """Whether a prepare step is done; its result is noted."""
        record = self._settle(step, place(self._training.spec, step.stage, step.kind, self._pool))
        if record.phase not in DONE:
            return False
        self.prepared[step.name] = PrepareResult.model_validate(record.result)
        return True

    def work(self, placement: Callable[[Step], Placement]) -> Step | None:
        """Settle the others in order; returns the first that is not done or whose gate holds.

        Args:
            placement: Where a step runs.
        """
        for step in self.steps[len(self.prepared) :]:
            record = self._settle(step, placement(step))
            if record.phase not in DONE:
                return step
            if step.kind is StepKind.EVALUATE and self._gate_holds(step):
                return step
        return None

    def facts(self) -> Facts:
        """What a plan is made from, as far as the walk has come."""
        records = {s.name: r for s in self.steps if (r := self._record(s)) is not None}
        reports = (self._observed.progress.get((s.name, s.digest)) for s in self.steps)
        reported = next((report.base for report in reports if report and report.base), None)
        seen = self._observed
        return Facts(
            steps=self.steps,
            records=records,
            found=frozenset(self._found()),
            reported=reported,
            public_base=seen.public_base,
            history=seen.history,
        )

    def _record(self, step: Step) -> StepStatus | None:
        """A step's record; of one that is not reached, unless its digest has changed."""
        if step.name in self.records:
            return self.records[step.name]
        known = self._known.get(step.name)
        return known if known is not None and step.digest in {"", known.digest} else None

    def _settle(self, step: Step, placement: Placement) -> StepStatus:
        known = self._known.get(step.name)
        if known is None or known.digest != step.digest:
            known = StepStatus(name=step.name, digest=step.digest)
        record = self.records[step.name] = self._up_to_date(step, known, placement)
        return record

    def _up_to_date(self, step: Step, known: StepStatus, placement: Placement) -> StepStatus:
        if known.phase in DONE:
            return known
        settlement = Settlement(
            step,
            known,
            self._observed,
            placement,
            stall_timeout=self._stall_timeout,
            now=self._now,
        )
        record = settlement.settle(self._found())
        self.events += settlement.events
        self.wake_at = settlement.wake_at
        return record

    def _found(self) -> dict[str, StepResult]:
        return {
            digest: result
            for prepared in self.prepared.values()
            for digest, result in prepared.found.items()
        }

    # --- gates

    def _gate_holds(self, step: Step) -> bool:
        """Whether the stage's gates keep the line from going on."""
        stage, record = step.stage, self.records[step.name]
        if stage is None:
            return False
        failed = gate.failures(stage.evaluate, EvaluateResult.model_validate(record.result))
        if not failed or stage.on_gate_failure is OnGateFailure.WARN:
            self._tell_gate(stage, record, failed)
            return False
        if stage.on_gate_failure is OnGateFailure.REQUIRE_APPROVAL and self._approved(stage):
            return False
        self.gate_failures = failed
        return True

    def _tell_gate(self, stage: Stage, record: StepStatus, failed: list[str]) -> None:
        known = self._known.get(record.name)
        if known is not None and known.digest == record.digest and known.phase in DONE:
            return
        if failed:
            message = f"{stage.name}: {'; '.join(failed)}"
            self.events.append(Event("GateWarning", message, warning=True))
        else:
            self.events.append(Event("GatePassed", f"{stage.name} passed its gates"))

    def _approved(self, stage: Stage) -> bool:
        names = self._training.annotations.get(APPROVE_ANNOTATION, "")
        return stage.name in {name.strip() for name in names.split(",")}

    # --- what the line has left behind

    def strays(self) -> list[JobView]:
        """Jobs of steps that are not in the line any more, ended ones too, and Jobs being deleted.

        What such a step has cost can only be closed when its Jobs are gone, and a step may only
        start when no earlier life of it still writes.
        """
        return [job for job in self._observed.jobs if job.deleting or not self._in_line(job)]

    def orphans(self) -> list[str]:
        """Pods that outlive their Job."""
        jobs = {job.name for job in self._observed.jobs}
        return [pod.name for pod in self._observed.pods if pod.active and pod.job not in jobs]

    def _in_line(self, job: JobView) -> bool:
        """Whether its step is in the line; of a step without a digest yet, that is not excluded."""
        return any(s.name == job.step and s.digest in {"", job.digest} for s in self.steps)
