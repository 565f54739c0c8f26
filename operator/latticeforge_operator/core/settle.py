"""Where one step stands: its record brought up to date with its Jobs, pods and last report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from latticeforge_operator.api.status import Attempt, StepPhase, StepStatus
from latticeforge_operator.core import ledger
from latticeforge_operator.core.planning import Placement
from latticeforge_operator.core.policies import failure, stall
from latticeforge_operator.core.policies.failure import Outcome
from latticeforge_operator.core.report import timestamp
from latticeforge_operator.core.steps import Step
from latticeforge_operator.core.values import Event, JobView, Observed, PodView
from latticeforge_trainer.contract import (
    EvaluateResult,
    Progress,
    StepKind,
    StepResult,
    StepState,
)

DONE = frozenset({StepPhase.DONE, StepPhase.REUSED})

PATIENCE = timedelta(seconds=10)
"""How long an ended Job waits for its last report and its pods' ends: other watches bring them."""


class Settlement:
    """Settles one step that is not done.

    Args:
        step: The step.
        record: What is known of it, charged for its pods.
        observed: The stack's part of the cluster.
        placement: Where it runs.
        stall_timeout: How long a train step may stand still.
        now: The time.
    """

    def __init__(
        self,
        step: Step,
        record: StepStatus,
        observed: Observed,
        placement: Placement,
        *,
        stall_timeout: timedelta,
        now: datetime,
    ) -> None:
        self.events: list[Event] = []
        self.wake_at: datetime | None = None
        self._step, self._record, self._observed = step, _forgiven(record), observed
        self._placement, self._stall_timeout, self._now = placement, stall_timeout, now
        self._progress = observed.progress.get((step.name, step.digest))
        self._jobs = sorted(
            (j for j in observed.jobs if (j.step, j.digest) == (step.name, step.digest)),
            key=lambda job: job.attempt,
        )

    def settle(self, found: Mapping[str, StepResult]) -> StepStatus:
        """The record as it is now.

        Args:
            found: Results that are complete in the store already, by digest.
        """
        if self._step.digest in found and not self._jobs:
            self.events.append(Event("StepReused", f"{self._step.name} was already done"))
            self._finish(found[self._step.digest], "reused", StepPhase.REUSED)
            return self._record
        self._close_vanished()
        for job in self._jobs:
            self._account(job)
        return self._record

    def _update(self, **fields: object) -> None:
        self._record = self._record.model_copy(update=fields)

    def _put(self, attempt: Attempt) -> None:
        attempts = {a.number: a for a in self._record.attempts} | {attempt.number: attempt}
        self._update(attempts=[attempts[number] for number in sorted(attempts)])

    def _close(
        self, attempt: Attempt, outcome: Outcome, reason: str = "", remedy: str = "", *,
        counted: bool = False, nodes: Sequence[str] = (), log: str = "",
    ) -> None:  # fmt: skip
        closed = {
            "outcome": outcome.value,
            "reason": reason or None,
            "remedy": remedy or None,
            "counted": counted,
            "nodes": list(nodes),
            "log": log or None,
            "ended_at": timestamp(self._now),
        }
        self._put(attempt.model_copy(update=closed))

    def _close_vanished(self) -> None:
        """Attempts whose Job somebody deleted; they are started again and not counted."""
        known = {job.name for job in self._jobs}
        for attempt in self._record.attempts:
            if attempt.outcome is None and attempt.job not in known:
                reason = "its Job was deleted"
                self.events.append(Event("Vanished", f"{self._step.name}: {reason}"))
                self._close(attempt, Outcome.VANISHED, reason, "started again")

    def _account(self, job: JobView) -> None:
        """Bring the record up to date with one of its Jobs."""
        attempt = self._attempt(job)
        if attempt.outcome is not None:
            return
        self._update(started_at=self._record.started_at or timestamp(job.created_at))
        pods = tuple(pod for pod in self._observed.pods if pod.job == job.name)
        attempt = _queued(attempt, job, pods)
        self._put(attempt)
        evidence = failure.Evidence(job, pods, self._progress)
        result = self._result()
        if job.succeeded and result is not None:
            self._close(attempt, Outcome.DONE)
            self._reported(result)
        elif job.finished and self._may_be_told_more(evidence):
            self._update(phase=StepPhase.RUNNING, message="it has ended; its last report is due")
        elif job.finished:
            self._fail(attempt, evidence)
        elif not self._has_stalled(attempt, evidence):
            fields = _running_fields(job, pods, self._progress)
            self._update(phase=StepPhase.RUNNING, **fields)
            if not pods and not job.suspended and self._now < job.created_at + PATIENCE:
                self.wake_at = job.created_at + PATIENCE

    def _attempt(self, job: JobView) -> Attempt:
        """The attempt of a Job; a new one if the status was lost after the Job was created."""
        known = next((a for a in self._record.attempts if a.number == job.attempt), None)
        if known is not None:
            return known
        attempt = Attempt(
            number=job.attempt, job=job.name, gpus_per_pod=self._placement.gpus_per_pod
        )
        pods, pool = self._observed.pods, self._placement.pool
        return ledger.charge_attempt(self._step.name, attempt, pods, pool, self._now)

    def _result(self) -> StepResult | None:
        """What the step reports to have done; None for a report of something else."""
        progress = self._progress
        if progress is None or progress.state is not StepState.DONE or progress.result is None:
            return None
        result = progress.result
        if result.kind != self._step.kind or (
            isinstance(result, EvaluateResult) and not result.table
        ):
            return None
        return result

    def _may_be_told_more(self, evidence: failure.Evidence) -> bool:
        """Whether to wait a little for what the Job's end alone does not tell."""
        ended = evidence.job.finished_at
        if ended is None or abs(self._now - ended) >= PATIENCE:
            return False  # it has waited, or a clock was moved by more than the wait
        if evidence.job.failed and evidence.complete:
            return False
        self.wake_at = ended + PATIENCE
        return True

    def _reported(self, result: StepResult) -> None:
        progress = self._progress
        reused, message = (progress.reused, progress.message) if progress else (False, "")
        reason, phase = ("StepReused", StepPhase.REUSED) if reused else ("StepDone", StepPhase.DONE)
        self.events.append(Event(reason, f"{self._step.name}: {message}"))
        self._finish(result, message, phase)

    def _finish(self, result: StepResult, message: str, phase: StepPhase) -> None:
        self._update(
            phase=phase,
            result=result.to_json(),
            fraction=1.0,
            message=message,
            finished_at=timestamp(self._now),
            meters=None,
        )

    def _fail(self, attempt: Attempt, evidence: failure.Evidence) -> None:
        if evidence.job.succeeded:
            reason = "it ended well but its report was lost; it is asked again"
            self.events.append(Event("Unreported", f"{self._step.name}: {reason}", warning=True))
            self._close(attempt, Outcome.UNREPORTED, reason, "asked again", counted=True)
            return
        verdict = failure.classify(evidence)
        self.events.append(
            Event(verdict.outcome, f"{self._step.name}: {verdict.reason}", warning=verdict.counted)
        )
        self._close(
            attempt,
            verdict.outcome,
            verdict.reason,
            verdict.remedy,
            counted=verdict.counted,
            log=evidence.log_tail,
        )

    def _has_stalled(self, attempt: Attempt, evidence: failure.Evidence) -> bool:
        """Close an attempt that stands still; its Job is ended before another begins."""
        if self._step.kind is not StepKind.TRAIN:
            return False
        job, pods = evidence.job, evidence.pods
        moment = stall.stalls_at(job, pods, self._progress, self._stall_timeout)
        if moment is None:
            return False
        if self._now < moment:
            self.wake_at = moment
            return False
        nodes = sorted({pod.node for pod in pods if pod.active and pod.node})
        where = f" on {', '.join(nodes)}" if nodes else ""
        reason = f"nothing moved{where} for {self._stall_timeout}"
        remedy = "resumes from the last checkpoint, elsewhere if there is room"
        self.events.append(Event("Stalled", f"{self._step.name}: {reason}", warning=True))
        self._close(attempt, Outcome.STALLED, reason, remedy, counted=True, nodes=nodes)
        return True


def _forgiven(record: StepStatus) -> StepStatus:
    """A step that had failed for good starts anew: its stack is looked at because it was edited."""
    if record.phase is not StepPhase.FAILED:
        return record
    attempts = [attempt.model_copy(update={"counted": False}) for attempt in record.attempts]
    return record.model_copy(update={"phase": StepPhase.PENDING, "attempts": attempts})


def _queued(attempt: Attempt, job: JobView, pods: Sequence[PodView]) -> Attempt:
    """The attempt with how long it was queued, once its first pod has a node."""
    scheduled = [pod.scheduled_at for pod in pods if pod.scheduled_at is not None]
    if attempt.queued_seconds is not None or not scheduled:
        return attempt
    seconds = max(0.0, (min(scheduled) - job.created_at).total_seconds())
    return attempt.model_copy(update={"queued_seconds": seconds})


def _running_fields(
    job: JobView, pods: tuple[PodView, ...], progress: Progress | None
) -> dict[str, object]:
    report = progress if progress is not None and progress.state is StepState.RUNNING else None
    waiting = next((pod.waiting for pod in pods if pod.waiting), "")
    if job.suspended and job.queue:
        message = f"queued: Kueue has not admitted it into queue {job.queue} yet"
    elif job.suspended:
        message = "suspended"
    elif waiting or job.complaint:
        message = f"waiting: {waiting or job.complaint}"
    elif report is not None:
        message = report.message
    else:
        message = "its pod is starting"
    fields: dict[str, object] = {"message": message}
    if report is not None:
        fields["fraction"] = report.fraction
        fields["meters"] = report.train.to_json() if report.train is not None else None
    return fields
