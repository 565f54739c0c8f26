"""`reconcile(training, observed, now)`: the one decision of the operator.

The line of steps is walked to the first one that is not done, and that one is moved on: launched,
watched, started again, or given up. Everything is derived from what is observed and from the
status, never from what was done a moment ago, so the same call after a crash decides the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime

from latticeforge_operator.api import GPUPool, StackedTraining, TrainingStatus
from latticeforge_operator.api.status import Attempt, Phase, StepPhase, StepStatus
from latticeforge_operator.api.training import Mode, OnExceed, OnGateFailure, Stage
from latticeforge_operator.core import ledger
from latticeforge_operator.core.launch import Launcher
from latticeforge_operator.core.planning import Placement, PlanError, choose_pool, place
from latticeforge_operator.core.policies import budget, failure, gate
from latticeforge_operator.core.report import Report, timestamp
from latticeforge_operator.core.steps import Step, expand
from latticeforge_operator.core.values import Decision, Event, JobView, Launch, Observed, PodView
from latticeforge_trainer.contract import (
    EvaluateResult,
    PrepareResult,
    Progress,
    PublishResult,
    StepKind,
    StepState,
)

APPROVE_ANNOTATION = "latticeforge.dev/approve"
"""Set by a user to the name of a stage (or several, by commas) whose gate failed, to go on."""

ENDED = frozenset({Phase.SUCCEEDED, Phase.FAILED, Phase.PLANNED})
DONE = frozenset({StepPhase.DONE, StepPhase.REUSED})


@dataclass
class _Walk:
    """What is found while the line is walked."""

    training: StackedTraining
    observed: Observed
    now: datetime
    pool: GPUPool
    old: dict[str, StepStatus]
    records: dict[str, StepStatus] = field(default_factory=dict)
    prepared: dict[str, PrepareResult] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)


def refuse(
    training_generation: int, status: TrainingStatus, message: str, now: datetime
) -> Decision:
    """The decision for a spec that cannot be read or placed: a condition, not a crash.

    Args:
        training_generation: `metadata.generation`.
        status: The status so far; its costs and steps are kept.
        message: One sentence for its author.
        now: The time.
    """
    report = Report(status, training_generation, now)
    report.refused(message)
    events = [] if status.message == message else [Event("Refused", message, warning=True)]
    return Decision(status=report.status, events=tuple(events))


def reconcile(
    training: StackedTraining, status: TrainingStatus, observed: Observed, now: datetime
) -> Decision:
    """Decide what to do next for one stack.

    Args:
        training: The stack as its user wrote it.
        status: Its status as last written.
        observed: Pools, Jobs, pods and reports that belong to it.
        now: The time, UTC.
    """
    if status.phase in ENDED and status.observed_generation == training.generation:
        return Decision(status=status, delete=_leftovers(observed, set()))
    impossible = next(
        (m for s in training.spec.stages for g in s.evaluate if (m := gate.unreachable(g))), None
    )
    if impossible is not None:
        return refuse(training.generation, status, impossible, now)
    try:
        pool = choose_pool(training.spec, observed.pools)
        for stage in training.spec.stages:
            place(training.spec, stage, StepKind.TRAIN, pool)
    except PlanError as error:
        return _pending(training, status, str(error), now)
    walk = _Walk(training, observed, now, pool, {record.name: record for record in status.steps})
    return _Reconciler(walk, status).decide()


def _pending(
    training: StackedTraining, status: TrainingStatus, message: str, now: datetime
) -> Decision:
    report = Report(status, training.generation, now)
    report.phase(Phase.PENDING, message)
    events = [] if status.message == message else [Event("Unplaced", message, warning=True)]
    return Decision(status=report.status, events=tuple(events))


def _leftovers(observed: Observed, digests: set[str]) -> tuple[str, ...]:
    """Unfinished Jobs of steps that are not in the line any more."""
    return tuple(
        job.name
        for job in observed.jobs
        if job.digest not in digests and not job.finished and not job.deleting
    )


class _Reconciler:
    """One pass over the line of one stack."""

    def __init__(self, walk: _Walk, status: TrainingStatus) -> None:
        self.walk, self.old_status = walk, status
        self.training, self.observed, self.now = walk.training, walk.observed, walk.now
        self.steps: list[Step] = []
        self.report = Report(status, self.training.generation, self.now)

    def decide(self) -> Decision:
        """Walk the line and decide."""
        current = self._walk_line()
        self._show_line()
        self._bill()
        self.report.stages(self.training.spec.stages, self.steps)
        keep = {step.digest for step in self.steps}
        delete = _leftovers(self.observed, keep)
        decision = self._move_on(current, waiting_for=delete)
        self.report.progress()
        return replace(
            decision,
            status=self.report.status,
            delete=(*decision.delete, *delete),
            events=(*self.walk.events, *decision.events),
        )

    def _show_line(self) -> None:
        spec, pool = self.training.spec, self.walk.pool
        train = place(spec, spec.stages[0], StepKind.TRAIN, pool)
        gpus = train.pods * train.gpus_per_pod
        self.report.line(self.steps, self.walk.records, pool, gpus)

    # --- the walk

    def _walk_line(self) -> Step | None:
        """Settle steps in order; returns the first that is not done."""
        while True:
            self.steps = expand(self.training.spec, self.walk.prepared)
            pending = next((s for s in self.steps if s.name not in self.walk.records), None)
            if pending is None:
                return None
            record = self._settle(pending)
            self.walk.records[pending.name] = record
            if record.phase not in DONE:
                return pending
            if pending.kind is StepKind.PREPARE:
                result = PrepareResult.model_validate(record.result)
                self.walk.prepared[pending.name] = result
            elif pending.kind is StepKind.EVALUATE and self._gate_holds(pending):
                return pending

    def _settle(self, step: Step) -> StepStatus:
        """Where one step stands now."""
        old = self.walk.old.get(step.name)
        record = old if old and old.digest == step.digest else None
        if record is not None and record.phase in DONE:
            return record
        record = record or StepStatus(name=step.name, digest=step.digest)
        jobs = sorted(
            (job for job in self.observed.jobs if job.digest == step.digest),
            key=lambda job: job.attempt,
        )
        found = self._found(step)
        if found is not None and not jobs:
            self.walk.events.append(Event("StepReused", f"{step.name} was already done"))
            return record.model_copy(update=self._done_fields(found, "reused", StepPhase.REUSED))
        for job in jobs:
            record = self._account(step, record, job)
        return record

    def _found(self, step: Step) -> dict[str, object] | None:
        for result in self.walk.prepared.values():
            if step.digest in result.found:
                return result.found[step.digest].to_json()
        return None

    def _done_fields(
        self, result: dict[str, object], message: str, phase: StepPhase
    ) -> dict[str, object]:
        return {
            "phase": phase,
            "result": result,
            "fraction": 1.0,
            "message": message,
            "finished_at": timestamp(self.now),
            "meters": None,
        }

    def _pods(self, job: JobView) -> tuple[PodView, ...]:
        return tuple(pod for pod in self.observed.pods if pod.job == job.name)

    def _placement(self, step: Step) -> Placement:
        return place(self.training.spec, step.stage, step.kind, self.walk.pool)

    def _account(self, step: Step, record: StepStatus, job: JobView) -> StepStatus:
        """Bring the record up to date with one of its Jobs."""
        attempts = {attempt.number: attempt for attempt in record.attempts}
        placement = self._placement(step)
        attempt = attempts.get(job.attempt) or Attempt(
            number=job.attempt, job=job.name, gpus_per_pod=placement.gpus_per_pod
        )
        if attempt.outcome is not None:
            return record
        pods = self._pods(job)
        attempt = ledger.charge(attempt, ledger.held_seconds(pods, self.now), placement)
        progress = self.observed.progress.get(step.digest)
        update: dict[str, object] = {
            "started_at": record.started_at or timestamp(job.created_at),
        }
        if job.succeeded and progress is not None and progress.state is StepState.DONE:
            attempt = self._close(attempt, "Done", "", counted=False)
            update |= self._finish(step, progress)
        elif job.finished:
            attempt = self._close_failed(step, attempt, job, pods, progress)
        else:
            update |= _running_fields(job, pods, progress)
        attempts[job.attempt] = attempt
        update["attempts"] = [attempts[number] for number in sorted(attempts)]
        return record.model_copy(update=update)

    def _finish(self, step: Step, progress: Progress) -> dict[str, object]:
        result = progress.result.to_json() if progress.result is not None else {}
        phase = StepPhase.REUSED if progress.reused else StepPhase.DONE
        reason = "StepReused" if progress.reused else "StepDone"
        self.walk.events.append(Event(reason, f"{step.name}: {progress.message}"))
        return self._done_fields(result, progress.message, phase)

    def _close(self, attempt: Attempt, outcome: str, reason: str, *, counted: bool) -> Attempt:
        return attempt.model_copy(
            update={
                "outcome": outcome,
                "reason": reason or None,
                "counted": counted,
                "ended_at": timestamp(self.now),
            }
        )

    def _close_failed(
        self,
        step: Step,
        attempt: Attempt,
        job: JobView,
        pods: tuple[PodView, ...],
        progress: Progress | None,
    ) -> Attempt:
        if job.succeeded:
            reason = "it ended well but its report was lost; it is asked again"
            return self._close(attempt, "Unreported", reason, counted=True)
        verdict = failure.classify(failure.Evidence(job, pods, progress))
        self.walk.events.append(
            Event(verdict.outcome, f"{step.name}: {verdict.reason}", warning=verdict.counted)
        )
        return self._close(attempt, verdict.outcome, verdict.reason, counted=verdict.counted)

    # --- gates

    def _gate_holds(self, step: Step) -> bool:
        """Whether the stage's gates keep the line from going on."""
        stage, record = step.stage, self.walk.records[step.name]
        if stage is None:
            return False
        result = EvaluateResult.model_validate(record.result)
        failed = [v for g in stage.evaluate if not (v := gate.judge(g, result)).passed]
        if not failed or stage.on_gate_failure is OnGateFailure.WARN:
            self._tell_gate(stage, record, failed)
            return False
        return not (
            stage.on_gate_failure is OnGateFailure.REQUIRE_APPROVAL and self._approved(stage)
        )

    def _tell_gate(self, stage: Stage, record: StepStatus, failed: list[gate.Verdict]) -> None:
        old = self.walk.old.get(record.name)
        if old is not None and old.digest == record.digest and old.phase in DONE:
            return
        if failed:
            message = "; ".join(verdict.message for verdict in failed)
            self.walk.events.append(Event("GateWarning", f"{stage.name}: {message}", warning=True))
        else:
            self.walk.events.append(Event("GatePassed", f"{stage.name} passed its gates"))

    def _approved(self, stage: Stage) -> bool:
        names = self.training.annotations.get(APPROVE_ANNOTATION, "")
        return stage.name in {name.strip() for name in names.split(",")}

    def _gate_decision(self, step: Step) -> Decision:
        stage = step.stage
        result = EvaluateResult.model_validate(self.walk.records[step.name].result)
        gates = stage.evaluate if stage else []
        failed = [v.message for g in gates if not (v := gate.judge(g, result)).passed]
        why = f"stage {stage.name if stage else ''} did not pass its gate: {'; '.join(failed)}"
        if stage is not None and stage.on_gate_failure is OnGateFailure.REQUIRE_APPROVAL:
            message = (
                f"{why}; to go on: kubectl annotate st {self.training.name} "
                f"{APPROVE_ANNOTATION}={stage.name}"
            )
            return self._end(Phase.AWAITING_APPROVAL, message, "AwaitingApproval")
        return self._end(
            Phase.FAILED, f"{why}; change the data, the training or the gate", "GateFailed"
        )

    # --- what follows

    def _bill(self) -> None:
        """Sum the bill, and warn where it crosses a share of the budget."""
        before = self.report.spent_before
        after = self.report.bill(self.walk.old, self.walk.pool.spec.currency)
        limit = self.training.spec.budget
        for share in budget.crossed(limit, before, after):
            amount = f"{after:.2f} of {limit.limit if limit else ''} {self.walk.pool.spec.currency}"
            message = f"{share} % of the budget is spent: {amount}"
            self.walk.events.append(Event("Budget", message, warning=True))

    def _end(self, phase: Phase, message: str, reason: str) -> Decision:
        changed = (self.old_status.phase, self.old_status.message) != (phase, message)
        self.report.phase(phase, message)
        event = Event(reason, message, warning=phase is not Phase.SUCCEEDED)
        return Decision(status=self.report.status, events=(event,) if changed else ())

    def _move_on(self, current: Step | None, *, waiting_for: tuple[str, ...]) -> Decision:
        """Decide about the first step that is not done."""
        spec = self.training.spec
        if current is None:
            return self._end(Phase.SUCCEEDED, self._success_message(), "Succeeded")
        record = self.walk.records[current.name]
        if spec.mode is Mode.PLAN:
            names = ", ".join(step.name for step in self.steps)
            return self._end(Phase.PLANNED, f"on pool {self.walk.pool.name}: {names}", "Planned")
        if record.phase in DONE:
            return self._gate_decision(current)
        allowed = budget.allowance(spec.budget, self.report.spent)
        if allowed.stops and allowed.action is OnExceed.FAIL:
            jobs = tuple(job.name for job in self._live(current))
            message = f"the budget of {spec.budget.limit if spec.budget else ''} is spent"
            return replace(self._end(Phase.FAILED, message, "BudgetSpent"), delete=jobs)
        if spec.suspend or allowed.stops:
            return self._suspend(current, allowed)
        return self._run(current, record, allowed, waiting_for)

    def _success_message(self) -> str:
        publish = self.walk.records.get("publish")
        if publish is None:
            return "every stage is done; the model is in the store (publish is not set)"
        result = PublishResult.model_validate(publish.result)
        return f"published at {result.url}"

    def _live(self, step: Step) -> list[JobView]:
        return [
            job
            for job in self.observed.jobs
            if job.digest == step.digest and not job.finished and not job.deleting
        ]

    def _suspend(self, step: Step, allowed: budget.Allowance) -> Decision:
        live = self._live(step)
        busy = [pod for job in live for pod in self._pods(job) if pod.active]
        jobs = tuple(job.name for job in live if not job.suspended)
        if allowed.stops:
            limit = self.training.spec.budget
            why = f"the budget of {limit.limit if limit else ''} is spent; raise it to go on"
        else:
            why = "suspended; set spec.suspend to false to go on"
        if busy:
            self.report.phase(Phase.RUNNING, f"{step.name} is checkpointing: {why}", step.name)
            return Decision(status=self.report.status, suspend=jobs)
        decision = self._end(Phase.SUSPENDED, why, "Suspended")
        return replace(decision, suspend=jobs)

    def _run(
        self,
        step: Step,
        record: StepStatus,
        allowed: budget.Allowance,
        waiting_for: tuple[str, ...],
    ) -> Decision:
        live = self._live(step)
        if live:
            self.report.phase(Phase.RUNNING, f"{step.name}: {record.message}", step.name)
            resume = tuple(job.name for job in live if job.suspended)
            return Decision(status=self.report.status, resume=resume)
        last = record.attempts[-1] if record.attempts else None
        if last is not None and last.outcome is None and not self._vanished(record):
            self.report.phase(Phase.RUNNING, f"{step.name}: its Job is ending", step.name)
            return Decision(status=self.report.status)
        if waiting_for:
            self.report.phase(Phase.RUNNING, "the edited step's Job is ending", step.name)
            return Decision(status=self.report.status)
        if last is not None and (given_up := self._given_up(step, record, last)):
            return given_up
        return self._start(step, record, allowed)

    def _vanished(self, record: StepStatus) -> bool:
        """Close an attempt whose Job somebody deleted; it is started again and not counted."""
        last = record.attempts[-1]
        if any(job.name == last.job for job in self.observed.jobs):
            return False
        closed = self._close(last, "Vanished", "its Job was deleted", counted=False)
        record = record.model_copy(update={"attempts": [*record.attempts[:-1], closed]})
        self.walk.records[record.name] = record
        self._show_line()
        return True

    def _given_up(self, step: Step, record: StepStatus, last: Attempt) -> Decision | None:
        """Failed for good, or still waiting before the next attempt; None: go on."""
        restarts = sum(attempt.counted for attempt in record.attempts)
        allowed = self.training.spec.failure.max_restarts
        if last.outcome == "UserError" or restarts > allowed:
            self._fail_record(step, last.reason or "")
            why = last.reason or last.outcome or ""
            if last.outcome != "UserError":
                why = f"{why} (given up after {restarts} failures; failure.maxRestarts: {allowed})"
            return self._end(Phase.FAILED, f"{step.name} failed: {why}", "StepFailed")
        ended = datetime.fromisoformat(last.ended_at) if last.ended_at else self.now
        wake = ended + failure.delay(restarts if last.counted else 0)
        if self.now < wake:
            self.report.phase(
                Phase.RUNNING, f"{step.name} starts again soon: {last.reason}", step.name
            )
            return Decision(status=self.report.status, wake_at=wake)
        return None

    def _fail_record(self, step: Step, message: str) -> None:
        record = self.walk.records[step.name]
        update = {"phase": StepPhase.FAILED, "message": message}
        self.walk.records[step.name] = record.model_copy(update=update)
        self._show_line()

    def _start(self, step: Step, record: StepStatus, allowed: budget.Allowance) -> Decision:
        placement = self._placement(step)
        launcher = Launcher(
            self.training,
            self.steps,
            self.walk.records,
            self.walk.prepared,
            f"{self.report.spent:.2f} {self.walk.pool.spec.currency}",
        )
        number = max((attempt.number for attempt in record.attempts), default=-1) + 1
        launch = launcher.launch(
            step, number, placement, allowed.deadline_seconds(placement.price_per_hour)
        )
        self._record_launch(step, launch)
        verb = "starts" if number == 0 else f"starts again (attempt {number + 1})"
        self.report.phase(Phase.RUNNING, f"{step.name} {verb}", step.name)
        event = Event("StepStarted", f"{step.name} {verb}")
        return Decision(status=self.report.status, launch=launch, events=(event,))

    def _record_launch(self, step: Step, launch: Launch) -> None:
        record = self.walk.records[step.name]
        attempt = Attempt(
            number=launch.attempt, job=launch.job, gpus_per_pod=launch.placement.gpus_per_pod
        )
        update = {
            "phase": StepPhase.RUNNING,
            "attempts": [*record.attempts, attempt],
            "started_at": record.started_at or timestamp(self.now),
        }
        self.walk.records[step.name] = record.model_copy(update=update)
        self._show_line()


def _running_fields(
    job: JobView, pods: tuple[PodView, ...], progress: Progress | None
) -> dict[str, object]:
    waiting = next((pod.waiting for pod in pods if pod.waiting), "")
    running = progress is not None and progress.state is StepState.RUNNING
    if job.suspended:
        message = "suspended"
    elif waiting:
        message = f"waiting: {waiting}"
    elif running and progress is not None:
        message = progress.message
    else:
        message = "its pod is starting"
    fields: dict[str, object] = {"phase": StepPhase.RUNNING, "message": message}
    if running and progress is not None:
        fields["fraction"] = progress.fraction
        fields["meters"] = progress.train.to_json() if progress.train is not None else None
    return fields
