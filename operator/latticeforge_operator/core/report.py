"""What status shows: built from the line of steps and their records."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Literal

from latticeforge_operator.api import GPUPool, Stage, TrainingStatus
from latticeforge_operator.api.status import (
    Condition,
    Phase,
    ProgressStatus,
    PublishedStatus,
    ScoreStatus,
    StageStatus,
    StepPhase,
    StepStatus,
)
from latticeforge_operator.core import ledger
from latticeforge_operator.core.forecast import Standing
from latticeforge_operator.core.outlook import CONDITION, Outlook
from latticeforge_operator.core.policies import gate
from latticeforge_operator.core.steps import PUBLISH, Step
from latticeforge_trainer.contract import EvaluateResult, PublishResult, Score

ConditionValue = Literal["True", "False", "Unknown"]


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
        self._records: dict[str, StepStatus] = {}
        self._standing: Standing | None = None
        self.spent = ledger.total(old.steps, Decimal(old.cost.retired))

    def _set(self, **fields: object) -> None:
        self.status = self.status.model_copy(update=fields)

    def refused(self, message: str) -> None:
        """The spec is wrong."""
        self.condition("Accepted", "False", "Refused", message)
        self._ended(Phase.FAILED, message)
        self._set(phase=Phase.FAILED, message=message)

    def phase(self, phase: Phase, message: str, stage: str = "") -> None:
        """Where the stack stands, in one word and one sentence."""
        self.condition("Accepted", "True", "Accepted", "the spec is valid")
        if phase in {Phase.SUCCEEDED, Phase.FAILED}:
            self._ended(phase, message)
        else:
            running: ConditionValue = "True" if phase is Phase.RUNNING else "False"
            self.condition("Progressing", running, phase.value, message)
            self.condition("Succeeded", "Unknown", phase.value, message)
            self._set(finished_at=None)
        if phase is Phase.RUNNING:
            self._set(started_at=self._old.started_at or timestamp(self._now))
        self._set(phase=phase, message=message, stage=stage or self.status.stage)

    def _ended(self, phase: Phase, message: str) -> None:
        succeeded: ConditionValue = "True" if phase is Phase.SUCCEEDED else "False"
        self.condition("Progressing", "False", phase.value, message)
        self.condition("Succeeded", succeeded, phase.value, message)
        self._set(finished_at=self._old.finished_at or timestamp(self._now))

    def condition(self, kind: str, value: ConditionValue, reason: str, message: str) -> None:
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
        self,
        steps: list[Step],
        records: dict[str, StepStatus],
        known: list[StepStatus],
        outlook: Outlook,
    ) -> None:
        """The steps with their records; those not reached keep what is known of them."""
        self._records = records
        self._standing = Standing(steps, records, outlook.plan)
        old = {record.name: record for record in known}
        pending = [records.get(s.name) or _carried(s, old.get(s.name)) for s in steps]
        publish = records.get(PUBLISH)
        published = None
        if publish is not None and publish.result is not None:
            result = PublishResult.model_validate(publish.result)
            published = PublishedStatus(url=result.url, commit=result.commit)
        verdict = outlook.verdict
        self.condition(CONDITION, verdict.value, verdict.reason, verdict.message)
        self._set(steps=pending, plan=outlook.plan, published=published)

    def bill(
        self, steps: list[StepStatus], currency: str, known: Sequence[StepStatus] = ()
    ) -> Decimal:
        """Sum the bill; what dropped steps cost stays counted.

        Args:
            steps: The steps, charged.
            currency: What is paid in.
            known: The charged records so far, some of which may not be among `steps` any more.

        Returns:
            The money spent.
        """
        kept = {(record.name, record.digest) for record in steps}
        dropped = [record for record in known if (record.name, record.digest) not in kept]
        retired = ledger.total(dropped, Decimal(self._old.cost.retired))
        self.spent = ledger.total(steps, retired)
        self._set(steps=steps, cost=ledger.summary(steps, retired, currency))
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
            scores = [score_status(stage, result, own) for own in result.table[0].scores]
        digests = {step.name: step.digest for step in steps}
        model = [digests[name] for name in own[-1].model.steps if digests.get(name)]
        return StageStatus(
            name=stage.name, phase=_stage_phase(phases, len(own)), scores=scores, model=model
        )

    def progress(self, pool: GPUPool) -> None:
        """Percent, expected end and expected cost."""
        if self._standing is None:
            return
        meters = next(
            (r.meters for r in self._records.values() if r.phase is StepPhase.RUNNING and r.meters),
            None,
        )
        loss = meters.get("loss") if meters else None
        forecast = self._forecast(self._standing, pool)
        self._set(
            cost=self.status.cost.model_copy(update={"forecast": forecast}),
            progress=ProgressStatus(
                percent=int(self._standing.share * 100),
                eta=self._eta(self._standing),
                loss=f"{loss:.4f}" if loss is not None else None,
            ),
        )

    def planned_cost_left(self, pool: GPUPool) -> Decimal | None:
        """Money that the rest costs by the plan; None where it does not say."""
        standing, price = self._standing, Decimal(pool.spec.price_per_gpu_hour)
        return standing.planned_cost_left(price) if standing is not None else None

    def _eta(self, standing: Standing) -> str | None:
        if self.status.phase is not Phase.RUNNING:
            return None
        seconds = standing.seconds_left(self._now)
        return None if seconds is None else timestamp(self._now + timedelta(seconds=seconds))

    def _forecast(self, standing: Standing, pool: GPUPool) -> str | None:
        if self.status.phase not in {Phase.RUNNING, Phase.PLANNED}:
            return None
        left = standing.cost_left(Decimal(pool.spec.price_per_gpu_hour))
        return None if left is None else str((self.spent + left).quantize(ledger.CENT))


def score_status(stage: Stage, result: EvaluateResult, own: Score) -> ScoreStatus:
    """One suite's row: this model's score beside the base's and the previous stage's."""
    verdicts = [gate.judge(g, result) for g in stage.evaluate if g.suite == own.suite]
    # By position: a stage may be called `base`.
    others = {
        column: f"{score.value:.3f}"
        for column, row in zip(("base", "previous"), result.table[1:], strict=False)
        for score in row.scores
        if score.suite == own.suite
    }
    return ScoreStatus(
        suite=own.suite,
        value=f"{own.value:.3f}",
        low=f"{own.low:.3f}",
        high=f"{own.high:.3f}",
        samples=own.n,
        base=others.get("base"),
        previous=others.get("previous"),
        passed=all(verdict.passed for verdict in verdicts),
        message="; ".join(verdict.message for verdict in verdicts if verdict.message),
    )


def _carried(step: Step, known: StepStatus | None) -> StepStatus:
    """The record of a step that is not reached yet, unless its digest has changed."""
    if known is not None and step.digest in {"", known.digest}:
        return known
    return StepStatus(name=step.name, digest=step.digest)


def _stage_phase(phases: list[StepPhase], steps: int) -> StepPhase:
    if StepPhase.FAILED in phases:
        return StepPhase.FAILED
    if len(phases) == steps and all(phase is StepPhase.REUSED for phase in phases):
        return StepPhase.REUSED
    if len(phases) == steps and all(p in {StepPhase.DONE, StepPhase.REUSED} for p in phases):
        return StepPhase.DONE
    return StepPhase.RUNNING if phases else StepPhase.PENDING
