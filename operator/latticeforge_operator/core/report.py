"""What status shows: built from the line of steps and their records."""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Decimal
from typing import Literal

from latticeforge_operator.api import GPUPool, Stage, TrainingStatus
from latticeforge_operator.api.status import (
    Condition,
    Phase,
    PlanStatus,
    ProgressStatus,
    PublishedStatus,
    ScoreStatus,
    StageStatus,
    StepPhase,
    StepStatus,
)
from latticeforge_operator.core import ledger
from latticeforge_operator.core.policies import gate
from latticeforge_operator.core.steps import PUBLISH, Step
from latticeforge_trainer.contract import EvaluateResult, PublishResult, StepKind

SHARE = {
    StepKind.PREPARE: 1,
    StepKind.TRAIN: 10,
    StepKind.MERGE: 1,
    StepKind.EVALUATE: 5,
    StepKind.PUBLISH: 1,
}
"""How much of the whole a step of a kind is taken for, before its time has been predicted."""

_FEW_PERCENT = 0.05


def timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC, as Kubernetes writes it."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


class Report:
    """The status in the making.

    Args:
        old: The status as last written.
        generation: The generation of the spec that is being looked at.
        now: The time.
    """

    def __init__(self, old: TrainingStatus, generation: int, now: datetime) -> None:
        self.status = old.model_copy(update={"observed_generation": generation})
        self._old, self._now, self._generation = old, now, generation
        self._steps: list[Step] = []
        self._records: dict[str, StepStatus] = {}
        self.spent = self.spent_before = ledger.total(old.steps, Decimal(old.cost.retired))

    def _set(self, **fields: object) -> None:
        self.status = self.status.model_copy(update=fields)

    def refused(self, message: str) -> None:
        """The spec is wrong."""
        self.condition("Accepted", "False", "Refused", message)
        self._set(phase=Phase.FAILED, message=message, finished_at=timestamp(self._now))

    def phase(self, phase: Phase, message: str, stage: str = "") -> None:
        """Where the stack stands, in one word and one sentence."""
        self.condition("Accepted", "True", "Accepted", "the spec is valid")
        progressing: Literal["True", "False"] = "True" if phase is Phase.RUNNING else "False"
        self.condition("Progressing", progressing, phase.value, message)
        if phase in {Phase.SUCCEEDED, Phase.FAILED}:
            succeeded: Literal["True", "False"] = "True" if phase is Phase.SUCCEEDED else "False"
            self.condition("Succeeded", succeeded, phase.value, message)
            self._set(finished_at=self._old.finished_at or timestamp(self._now))
        else:
            self._set(finished_at=None)
        self._set(
            phase=phase,
            message=message,
            stage=stage or self.status.stage,
            started_at=self._old.started_at or timestamp(self._now),
        )

    def condition(
        self, kind: str, value: Literal["True", "False"], reason: str, message: str
    ) -> None:
        """Set one condition; its transition time moves only when its value does."""
        old = next((c for c in self.status.conditions if c.type == kind), None)
        same = old is not None and old.status == value
        condition = Condition(
            type=kind,
            status=value,
            reason=reason,
            message=message,
            observed_generation=self._generation,
            last_transition_time=old.last_transition_time if old and same else timestamp(self._now),
        )
        others = [c for c in self.status.conditions if c.type != kind]
        self._set(conditions=sorted([*others, condition], key=lambda c: c.type))

    def line(
        self, steps: list[Step], records: dict[str, StepStatus], pool: GPUPool, gpus: int
    ) -> None:
        """The steps with their records; those not reached keep what is known of them."""
        self._steps, self._records = steps, records
        pending = [records.get(step.name) or self._carried(step) for step in steps]
        plan = PlanStatus(pool=pool.name, gpus=gpus, steps=[step.name for step in steps])
        publish = records.get(PUBLISH)
        published = None
        if publish is not None and publish.result is not None:
            result = PublishResult.model_validate(publish.result)
            published = PublishedStatus(url=result.url, commit=result.commit)
        self._set(steps=pending, plan=plan, published=published)

    def _carried(self, step: Step) -> StepStatus:
        """The old record of a step that is not reached yet, unless its digest has changed."""
        old = next((record for record in self._old.steps if record.name == step.name), None)
        if old is not None and step.digest in {"", old.digest}:
            return old
        return StepStatus(name=step.name, digest=step.digest)

    def bill(self, old: dict[str, StepStatus], currency: str) -> Decimal:
        """Sum the bill; what dropped steps cost stays counted. Returns the money spent."""
        digests = {record.digest for record in self.status.steps}
        dropped = [record for record in old.values() if record.digest not in digests]
        retired = ledger.total(dropped, Decimal(self._old.cost.retired))
        self.spent = ledger.total(self.status.steps, retired)
        self._set(cost=ledger.summary(self.status.steps, retired, currency))
        return self.spent

    def stages(self, stages: list[Stage], steps: list[Step]) -> None:
        """The stages with their scores and the artifacts that form their models."""
        self._set(stages=[self._stage(stage, steps) for stage in stages])

    def _stage(self, stage: Stage, steps: list[Step]) -> StageStatus:
        own = [step for step in steps if step.stage is not None and step.stage.name == stage.name]
        phases = [self._records[s.name].phase for s in own if s.name in self._records]
        evaluate = self._records.get(f"{stage.name}/evaluate")
        scores = []
        if evaluate is not None and evaluate.result is not None:
            result = EvaluateResult.model_validate(evaluate.result)
            scores = [score_status(stage, result, suite.suite) for suite in result.table[0].scores]
        last = next((s for s in reversed(own) if s.kind is StepKind.EVALUATE), own[-1])
        digests = {step.name: step.digest for step in steps}
        model = [digests[name] for name in last.weights.steps if digests.get(name)]
        return StageStatus(
            name=stage.name, phase=_stage_phase(phases, len(own)), scores=scores, model=model
        )

    def progress(self) -> None:
        """Percent and expected end, from the share of each kind of step."""
        total = sum(SHARE[step.kind] for step in self._steps)
        done = sum(
            SHARE[step.kind] * self._records[step.name].fraction
            for step in self._steps
            if step.name in self._records
        )
        share = done / total if total else 0.0
        meters = next(
            (r.meters for r in self._records.values() if r.phase is StepPhase.RUNNING and r.meters),
            None,
        )
        loss = meters.get("loss") if meters else None
        self._set(
            progress=ProgressStatus(
                percent=int(share * 100),
                eta=self._eta(share),
                loss=f"{loss:.4f}" if loss is not None else None,
            )
        )

    def _eta(self, share: float) -> str | None:
        """The expected end if the rest goes as fast as the steps that really ran."""
        if self.status.phase is not Phase.RUNNING or self.status.started_at is None:
            return None
        reused = sum(
            SHARE[step.kind]
            for step in self._steps
            if step.name in self._records and self._records[step.name].phase is StepPhase.REUSED
        )
        total = sum(SHARE[step.kind] for step in self._steps)
        ran = share - reused / total
        if ran < _FEW_PERCENT:
            return None
        elapsed = self._now - datetime.fromisoformat(self.status.started_at)
        return timestamp(self._now + timedelta(seconds=elapsed.total_seconds() * (1 - share) / ran))


def score_status(stage: Stage, result: EvaluateResult, suite: str) -> ScoreStatus:
    """One suite's row: this model's score beside the base's and the previous stage's."""
    own = next(s for s in result.table[0].scores if s.suite == suite)
    verdicts = [gate.judge(g, result) for g in stage.evaluate if g.suite == suite]
    others = {
        "base" if row.model == "base" else "previous": score.value
        for row in result.table[1:]
        for score in row.scores
        if score.suite == suite
    }
    return ScoreStatus(
        suite=suite,
        value=f"{own.value:.3f}",
        low=f"{own.low:.3f}",
        high=f"{own.high:.3f}",
        samples=own.n,
        base=f"{others['base']:.3f}" if "base" in others else None,
        previous=f"{others['previous']:.3f}" if "previous" in others else None,
        passed=all(verdict.passed for verdict in verdicts),
        message="; ".join(verdict.message for verdict in verdicts if verdict.message),
    )


def _stage_phase(phases: list[StepPhase], steps: int) -> StepPhase:
    if StepPhase.FAILED in phases:
        return StepPhase.FAILED
    if len(phases) == steps and all(phase is StepPhase.REUSED for phase in phases):
        return StepPhase.REUSED
    if len(phases) == steps and all(p in {StepPhase.DONE, StepPhase.REUSED} for p in phases):
        return StepPhase.DONE
    return StepPhase.RUNNING if phases else StepPhase.PENDING
