"""`reconcile(training, observed, now)`: the one decision of the operator.

The line of steps is walked to the first one that is not done, and that one is moved on: launched,
watched, started again, or given up. Everything is derived from what is observed and from the
status, never from what was done a moment ago, so the same call after a crash decides the same.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from decimal import Decimal

from latticeforge_operator.api import GPUPool, StackedTraining, TrainingStatus
from latticeforge_operator.api.status import Attempt, Phase, StepPhase, StepStatus
from latticeforge_operator.api.training import Mode, OnExceed, OnGateFailure
from latticeforge_operator.core import ledger
from latticeforge_operator.core.idle import ended, forgotten, refuse, unplaced
from latticeforge_operator.core.launch import Launcher
from latticeforge_operator.core.outlook import BASE_AWAITED
from latticeforge_operator.core.planner import Planner, pool_at_hand
from latticeforge_operator.core.planning import Placement, PlanError, is_on_pool
from latticeforge_operator.core.policies import budget, failure, gate, remedy, retention
from latticeforge_operator.core.report import Report, timestamp
from latticeforge_operator.core.steps import Step
from latticeforge_operator.core.values import Decision, Event, JobView, Launch, Observed
from latticeforge_operator.core.walk import APPROVE_ANNOTATION, Walk
from latticeforge_trainer.contract import PublishResult, StepKind

ENDED = frozenset({Phase.SUCCEEDED, Phase.FAILED, Phase.PLANNED})

FINAL = ENDED - {Phase.PLANNED}
"""What only an edit ends; a plan follows its pools."""


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
    if status.phase in FINAL and status.observed_generation == training.generation:
        return ended(training, status, observed, now)
    if status.volume_removed_at is not None:
        status = forgotten(status)
    impossible = next(
        (m for s in training.spec.stages for g in s.evaluate if (m := gate.unreachable(g))), None
    )
    if impossible is not None:
        return refuse(training.generation, status, observed, impossible, now)
    try:
        pool = pool_at_hand(training.spec, status.plan, observed.pools)
        return _Pass(training, status, observed, pool, now).decide()
    except PlanError as error:
        return unplaced(training, status, observed, str(error), now)


class _Pass:
    """One pass over one stack that can be placed."""

    def __init__(
        self,
        training: StackedTraining,
        status: TrainingStatus,
        observed: Observed,
        pool: GPUPool,
        now: datetime,
    ) -> None:
        self.training, self.status, self.observed = training, status, observed
        self.pool, self.now = pool, now
        self.charged = ledger.charge_all(status.steps, observed.pods, pool, now)
        self.walk = Walk(training, self.charged, observed, pool, now)
        self.report = Report(status, training.generation, now)
        self.runs: str | None = None
        """The step whose Job may run; every other Job is stopped."""
        self.deadline: int | None = None
        """Seconds that the budget still pays for."""

    def decide(self) -> Decision:
        """Walk the line and decide."""
        current = self.walk.prepare()
        facts = self.walk.facts()
        self.outlook = Planner(self.training, self.status, self.observed.pools, facts).outlook()
        self.pool = self.outlook.pool
        if current is None:
            current = self.walk.work(self.outlook.placement)
        if strays := self.walk.strays():
            delete = tuple(job.name for job in strays if not job.deleting)
            names = ", ".join(sorted({job.step for job in strays}))
            return self._drain(f"waiting for an earlier Job of {names} to end", delete)
        if orphans := self.walk.orphans():
            return self._drain(f"waiting for pod {orphans[0]} of a deleted Job to end")
        self._show_line()
        warnings = self._bill(self.report.status.steps)
        decision = self._move_on(current)
        self._show_line()
        self.report.stages(self.training.spec.stages, self.walk.steps)
        self.report.progress(self.outlook.pool)
        decision = replace(
            decision,
            status=self.report.status,
            events=(*self.walk.events, *self.outlook.events, *warnings, *decision.events),
            wake_at=decision.wake_at or self.walk.wake_at,
        )
        return self._with_jobs(decision)

    def _drain(self, message: str, delete: tuple[str, ...] = ()) -> Decision:
        """Let an earlier life of a step end before anything follows; its record stays till then."""
        self.report.phase(Phase.RUNNING, message)
        warnings = self._bill(self.charged)
        return Decision(status=self.report.status, delete=delete, events=warnings)

    def _with_jobs(self, decision: Decision) -> Decision:
        """The decision with every Job but the running step's stopped."""
        jobs = self.observed.unfinished
        if self.report.status.phase in ENDED:
            finished, ttl = self.report.status.finished_at, self.training.spec.ttl_after_finished
            wake_at = retention.removal_at(finished, ttl)
            return replace(decision, delete=tuple(job.name for job in jobs), wake_at=wake_at)
        return replace(
            decision,
            suspend=tuple(j.name for j in jobs if j.step != self.runs and not j.suspended),
            resume=tuple(j.name for j in jobs if j.step == self.runs and self._may_resume(j)),
            deadlines={j.name: s for j in jobs if j.suspended and (s := self._deadline(j))},
        )

    def _deadline(self, job: JobView) -> int | None:
        """A suspended Job's deadline if it has to be changed."""
        return self.deadline if self.deadline != job.deadline_seconds else None

    @staticmethod
    def _may_resume(job: JobView) -> bool:
        """A queued Job is suspended by Kueue until it is admitted, and resumed by Kueue alone."""
        return job.suspended and not job.queue

    def _show_line(self) -> None:
        self.report.line(self.walk.steps, self.walk.records, self.charged, self.outlook)

    def _bill(self, steps: list[StepStatus]) -> tuple[Event, ...]:
        """Sum the bill; returns warnings where it crosses a share of the budget."""
        before, currency = self.report.spent, self.pool.spec.currency
        after = self.report.bill(steps, currency, known=self.charged)
        limit = self.training.spec.budget
        if limit is None:
            return ()
        amount = f"{after:.2f} of {limit.limit} {currency}"
        return tuple(
            Event("Budget", f"{share} % of the budget is spent: {amount}", warning=True)
            for share in budget.crossed(limit, before, after)
        )

    def _end(self, phase: Phase, message: str, reason: str) -> Decision:
        changed = (self.status.phase, self.status.message) != (phase, message)
        self.report.phase(phase, message)
        event = Event(reason, message, warning=phase in {Phase.FAILED, Phase.AWAITING_APPROVAL})
        return Decision(status=self.report.status, events=(event,) if changed else ())

    # --- what follows

    def _move_on(self, current: Step | None) -> Decision:
        """Decide about the first step that is not done."""
        spec = self.training.spec
        if current is None:
            return self._end(Phase.SUCCEEDED, self._success_message(), "Succeeded")
        if self.outlook.refusal is not None and not self._is_under_way(current):
            return self._end(Phase.FAILED, self.outlook.refusal, "Infeasible")
        if spec.mode is Mode.PLAN:
            return self._only_plan()
        if self.walk.gate_failures:
            return self._at_gate(current)
        return self._work_on(current)

    def _is_under_way(self, step: Step) -> bool:
        """Whether GPUs are at work on it, which goes on whatever comes of the rest."""
        return is_on_pool(step.kind) and bool(self.walk.records[step.name].attempts)

    def _only_plan(self) -> Decision:
        verdict = self.outlook.verdict
        if verdict.reason == BASE_AWAITED:
            return self._end(Phase.PENDING, verdict.message, "Planning")
        if verdict.value == "True":
            return self._end(Phase.PLANNED, verdict.message, "Planned")
        advice = "`latticeforge plan FILE` plans with the model's config.json"
        return self._end(Phase.PLANNED, f"{verdict.message}; {advice}", "Planned")

    def _work_on(self, current: Step) -> Decision:
        """Move a step on as far as budget and user allow."""
        spec = self.training.spec
        placement = self.outlook.placement(current)
        allowed = budget.allowance(spec.budget, self.report.spent, placement.price_per_hour)
        limit = spec.budget.limit if spec.budget else ""
        if allowed.stops and allowed.action is OnExceed.FAIL:
            return self._end(Phase.FAILED, f"the budget of {limit} is spent", "BudgetSpent")
        if allowed.stops:
            return self._suspend(current, f"the budget of {limit} is spent; raise it to go on")
        if spec.suspend:
            return self._suspend(current, "suspended; set spec.suspend to false to go on")
        if too_dear := self._too_dear(current):
            if allowed.action is OnExceed.FAIL:
                return self._end(Phase.FAILED, too_dear, "OverBudget")
            return self._suspend(current, too_dear)
        return self._run(current, placement, allowed.deadline_seconds)

    def _too_dear(self, step: Step) -> str | None:
        """Why the budget cannot last, before a stage begins to train; None: it may."""
        cost, left = self.outlook.plan.cost, self.report.planned_cost_left(self.pool)
        if step.kind is not StepKind.TRAIN or self.walk.records[step.name].attempts:
            return None
        if cost is None or left is None or not Decimal(cost.expected):
            return None
        low = left * Decimal(cost.low) / Decimal(cost.expected)
        spent, currency = self.report.spent, self.pool.spec.currency
        return budget.unaffordable(self.training.spec.budget, spent, left, low, currency)

    def _success_message(self) -> str:
        publish = self.walk.records.get("publish")
        if publish is None:
            return "every stage is done; the model is in the store (publish is not set)"
        result = PublishResult.model_validate(publish.result)
        return f"published at {result.url}"

    def _at_gate(self, step: Step) -> Decision:
        stage = step.stage
        name = stage.name if stage else ""
        why = f"stage {name} did not pass its gate: {'; '.join(self.walk.gate_failures)}"
        if stage is not None and stage.on_gate_failure is OnGateFailure.REQUIRE_APPROVAL:
            message = (
                f"{why}; to go on: kubectl annotate st {self.training.name} "
                f"{APPROVE_ANNOTATION}={name}"
            )
            return self._end(Phase.AWAITING_APPROVAL, message, "AwaitingApproval")
        message = f"{why}; change the data, the training or the gate"
        return self._end(Phase.FAILED, message, "GateFailed")

    def _suspend(self, step: Step, why: str) -> Decision:
        if any(pod.active for pod in self.observed.pods):
            return self._running(step, f"{step.name} is checkpointing: {why}")
        return self._end(Phase.SUSPENDED, why, "Suspended")

    def _running(self, step: Step, message: str) -> Decision:
        self.report.phase(Phase.RUNNING, message, step.name)
        return Decision(status=self.report.status)

    def _run(self, step: Step, placement: Placement, deadline: int | None) -> Decision:
        self.runs, record = step.name, self.walk.records[step.name]
        self.deadline = deadline
        last = record.attempts[-1] if record.attempts else None
        if last is not None and last.outcome is None:
            return self._running(step, f"{step.name}: {record.message}")
        if last is not None and last.job in {job.name for job in self.observed.unfinished}:
            ending = self._running(step, f"{step.name} is being ended: {last.reason}")
            return replace(ending, delete=(last.job,))
        if last is not None and (waits := self._after_failure(step, record, last, placement)):
            return waits
        if is_on_pool(step.kind) and not self.outlook.is_recorded(step, self.status.plan):
            return replace(
                self._running(step, f"{step.name} starts by a new plan"), wake_at=self.now
            )
        return self._start(step, record, placement, deadline)

    def _after_failure(
        self, step: Step, record: StepStatus, last: Attempt, placement: Placement
    ) -> Decision | None:
        """Failed for good, or still waiting before the next attempt; None: go on."""
        restarts = sum(attempt.counted for attempt in record.attempts)
        allowed = self.training.spec.failure.max_restarts
        why = remedy.hopeless(step.kind, record.attempts, placement.strategy)
        if why is None and restarts > allowed:
            why = last.reason or last.outcome or ""
            why = f"{why} (given up after {restarts} failures; failure.maxRestarts: {allowed})"
        if why is not None:
            self._replace(record, phase=StepPhase.FAILED, message=why)
            return self._end(Phase.FAILED, f"{step.name} failed: {why}", "StepFailed")
        failed_at = datetime.fromisoformat(last.ended_at) if last.ended_at else self.now
        wake = failed_at + failure.delay(restarts if last.counted else 0)
        if not failed_at <= self.now < wake:
            return None  # it has waited, or the clock was set back behind the failure
        waits = self._running(step, f"{step.name} starts again soon: {last.reason}")
        return replace(waits, wake_at=wake)

    def _start(
        self, step: Step, record: StepStatus, placement: Placement, deadline: int | None
    ) -> Decision:
        launcher = Launcher(
            self.training,
            self.walk.steps,
            self.walk.prepared,
            f"{self.report.spent:.2f} {self.pool.spec.currency}",
        )
        number = max((attempt.number for attempt in record.attempts), default=-1) + 1
        strategy = remedy.strategy_after(record.attempts, placement.strategy)
        launch = launcher.launch(step, number, replace(placement, strategy=strategy), deadline)
        launch = replace(launch, avoided_nodes=remedy.avoided_nodes(record.attempts))
        self._record_launch(record, launch)
        verb = "starts" if number == 0 else f"starts again (attempt {number + 1})"
        self.report.phase(Phase.RUNNING, f"{step.name} {verb}", step.name)
        # That a first attempt begins is no news: the step before it has just been told as done.
        events = (Event("StepStarted", f"{step.name} {verb}"),) if number else ()
        return Decision(status=self.report.status, launch=launch, events=events)

    def _record_launch(self, record: StepStatus, launch: Launch) -> None:
        attempt = Attempt(
            number=launch.attempt, job=launch.job, gpus_per_pod=launch.placement.gpus_per_pod
        )
        self._replace(
            record,
            phase=StepPhase.RUNNING,
            attempts=[*record.attempts, attempt],
            started_at=record.started_at or timestamp(self.now),
        )

    def _replace(self, record: StepStatus, **fields: object) -> None:
        self.walk.records[record.name] = record.model_copy(update=fields)
