"""A cluster as the decisions see it, in memory: Jobs, pods, reports, and what befalls them.

The operator's picture of it (`view`) lags behind as watches do: each kind by itself, though what
the operator has written itself it knows at once, as `cluster.mirror` sees to.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from tests.unit.core.builders import START, model_facts, pool, report, reread, result_of

from latticeforge_operator.api import GPUPool, StackedTraining, TrainingStatus
from latticeforge_operator.cluster.manifests import GRACE_SECONDS
from latticeforge_operator.core.policies.failure import DEADLINE
from latticeforge_operator.core.reconcile import reconcile
from latticeforge_operator.core.values import Decision, Event, JobView, Launch, Observed, PodView
from latticeforge_trainer.contract import ExitCode, ModelFacts, Progress, StepKind, StepState


@dataclass
class Cluster:
    """The truth."""

    now: datetime = START
    pools: tuple[GPUPool, ...] = (pool(),)
    jobs: dict[str, JobView] = field(default_factory=dict)
    pods: dict[str, PodView] = field(default_factory=dict)
    progress: dict[tuple[str, str], Progress] = field(default_factory=dict)
    base: ModelFacts = field(default_factory=model_facts)
    """What prepare steps learn of the base."""
    pulling: bool = False
    """Whether new pods have a node and GPUs, but not their image yet."""
    launches: dict[str, Launch] = field(default_factory=dict)
    began: dict[str, datetime] = field(default_factory=dict)
    """When a Job began to run, or to run again."""
    left: dict[str, datetime] = field(default_factory=dict)
    """When a pod was asked to end."""
    created: list[str] = field(default_factory=list)
    paid: dict[str, float] = field(default_factory=dict)
    """Seconds that pods have held, by name, as they really were."""

    def observed(self) -> Observed:
        return Observed(
            self.pools, tuple(self.jobs.values()), tuple(self.pods.values()), dict(self.progress)
        )

    def run_alone(self, seconds: int) -> None:
        """Time goes by; the cluster ends Jobs at their deadline, and leaving pods in the end."""
        grace = timedelta(seconds=GRACE_SECONDS[StepKind.TRAIN])
        for _ in range(seconds):
            self.tick(1)
            if any(self.now - self.left[pod.name] >= grace for pod in self.leaving()):
                self.end_leaving_pods()
            for job in self.live():
                limit, ran = job.deadline_seconds, self.now - self.began[job.name]
                if limit is not None and not job.suspended and ran >= timedelta(seconds=limit):
                    self.fail(job.name, ExitCode.INTERRUPTED, words=False, reason=DEADLINE)

    def leaving(self) -> list[PodView]:
        return [pod for pod in self.pods.values() if pod.active and pod.deleting]

    def set_deadline(self, job: str, seconds: int) -> None:
        if job in self.jobs:
            self.jobs[job] = replace(self.jobs[job], deadline_seconds=seconds)

    def tick(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)
        for pod in self.pods.values():
            if pod.active and pod.scheduled_at is not None:
                self.paid[pod.name] += seconds

    # --- what the operator does

    def launch(self, launch: Launch) -> None:
        assert launch.job not in self.jobs, "a Job is created twice"
        self.created.append(launch.job)
        self.launches[launch.job] = launch
        self.jobs[launch.job] = JobView(
            launch.job, launch.step, launch.digest, launch.attempt, created_at=self.now,
            deadline_seconds=launch.deadline_seconds, queue=launch.placement.queue or "",
        )  # fmt: skip
        self.began[launch.job] = self.now
        self._create_pods(launch.job)

    def _create_pods(self, job: str) -> None:
        for index in range(self.launches[job].placement.pods):
            name = f"{job}-{index}-{len(self.paid):05}"
            self.paid[name] = 0.0
            pod = PodView(name, job, "Pending", scheduled_at=self.now)
            if not self.pulling:
                pod = replace(pod, phase="Running", started_at=self.now)
            self.pods[name] = pod

    def pods_start(self) -> None:
        """The images are there."""
        self.pulling = False
        for pod in list(self.pods.values()):
            if pod.phase == "Pending" and pod.scheduled_at is not None:
                self.pods[pod.name] = replace(pod, phase="Running", started_at=self.now)

    def delete(self, job: str) -> None:
        """Remove a Job, as background deletion does: its pods take their time."""
        self.jobs.pop(job, None)
        self._change_pods(job, deleting=True)

    def suspend(self, job: str) -> None:
        if job in self.jobs and not self.jobs[job].finished:
            self.jobs[job] = replace(self.jobs[job], suspended=True)
            self._change_pods(job, deleting=True)

    def resume(self, job: str) -> None:
        if job in self.jobs and not self.jobs[job].finished:
            self.began[job] = self.now
            self.jobs[job] = replace(self.jobs[job], suspended=False)
            if not self.active(job):
                self._create_pods(job)

    def _change_pods(self, job: str, **fields: bool) -> None:
        for pod in self.active(job):
            self.left.setdefault(pod.name, self.now)
            self.pods[pod.name] = replace(pod, **fields)  # type: ignore[arg-type]  # flags only

    # --- what befalls

    def active(self, job: str) -> list[PodView]:
        return [pod for pod in self.pods.values() if pod.job == job and pod.active]

    def live(self) -> list[JobView]:
        return [job for job in self.jobs.values() if not job.finished]

    def _end_pod(self, pod: PodView, code: int) -> None:
        phase = "Failed" if code else "Succeeded"
        self.pods[pod.name] = replace(pod, phase=phase, finished_at=self.now, exit_code=code)

    def say(
        self, job: str, state: StepState, *, code: int | None = None, good: bool = True
    ) -> None:
        launch = self.launches[job]
        done = state is StepState.DONE
        result = result_of(launch.config, good=good, base=self.base) if done else None
        self.progress[launch.step, launch.digest] = report(
            launch.step, launch.digest, state, at=self.now, result=result, exit_code=code,
            message="it is so" if code else "works",
        )  # fmt: skip

    def reads_base(self, job: str) -> None:
        """A prepare step says what the base is, before it brings anything large."""
        launch = self.launches[job]
        told = report(launch.step, launch.digest, at=self.now, base=self.base)
        self.progress[launch.step, launch.digest] = told

    def succeed(self, job: str, *, good: bool = True) -> None:
        self.say(job, StepState.DONE, code=0, good=good)
        for pod in self.active(job):
            self._end_pod(pod, 0)
        self.jobs[job] = replace(self.jobs[job], succeeded=True, finished_at=self.now)

    def fail(self, job: str, code: int, *, words: bool = True, reason: str = "") -> None:
        if words:
            self.say(job, StepState.FAILED, code=code)
        for pod in self.active(job):
            self._end_pod(pod, code)
        reason = reason or "BackoffLimitExceeded"
        self.jobs[job] = replace(
            self.jobs[job], failed=True, finished_at=self.now, reason=reason, message="it failed"
        )

    def stick(self, job: str) -> None:
        """No node has room for its pods."""
        for pod in self.active(job):
            self.pods[pod.name] = replace(
                pod, phase="Pending", scheduled_at=None, waiting="0/3 nodes are available"
            )

    def preempt(self, job: str) -> None:
        """Take a pod away; the Job replaces it, unless it is suspended."""
        for pod in self.active(job)[:1]:
            self._end_pod(replace(pod, disrupted=True), ExitCode.INTERRUPTED)
        if not self.jobs[job].suspended and not self.active(job):
            self._create_pods(job)

    def end_leaving_pods(self) -> None:
        """Pods that are being deleted end, and are gone."""
        for pod in list(self.pods.values()):
            if pod.deleting or pod.job not in self.jobs:
                del self.pods[pod.name]
        for job in self.live():
            if not job.suspended and not self.active(job.name):
                self._create_pods(job.name)


@dataclass
class Operator:
    """What is left of the operator when it is killed: the status, and a cluster to look at."""

    training: StackedTraining
    cluster: Cluster = field(default_factory=Cluster)
    status: TrainingStatus = field(default_factory=TrainingStatus)
    view: Observed = field(default_factory=Observed)
    events: list[Event] = field(default_factory=list)

    def look(self) -> None:
        """Every watch has caught up."""
        self.view = self.cluster.observed()

    def decide(self) -> Decision:
        view = replace(self.view, pools=self.cluster.pools)
        return reconcile(self.training, self.status, view, self.cluster.now)

    def step(self, *, write_status: bool = True) -> Decision:
        """One pass; without its status write when the operator dies just before it."""
        decision = self.decide()
        if decision.launch is not None and decision.launch.attempt > 0:
            self.look()  # before a restart the API server itself is asked
            decision = self.decide()
        self._carry_out(decision)
        if write_status:
            self.status = reread(decision.status)
            self.events += decision.events
        return decision

    def _carry_out(self, decision: Decision) -> None:
        for name in decision.delete:
            self.cluster.delete(name)
        for name in decision.suspend:
            self.cluster.suspend(name)
        for name, seconds in decision.deadlines.items():
            self.cluster.set_deadline(name, seconds)
        for name in decision.resume:
            self.cluster.resume(name)
        if decision.launch is not None:
            self.cluster.launch(decision.launch)
        changed = {*decision.suspend, *decision.resume, *decision.deadlines}
        if decision.launch is not None:
            changed.add(decision.launch.job)
        self._know(changed)

    def _know(self, names: set[str]) -> None:
        known = {job.name: job for job in self.view.jobs}
        for name in names & self.cluster.jobs.keys():
            known[name] = self.cluster.jobs[name]
        self.view = replace(self.view, jobs=tuple(known.values()))

    def edit(self, spec: dict[str, object] | None = None, **annotations: str) -> None:
        """The user applies another spec, or annotates."""
        fields: dict[str, object] = {
            "annotations": {**self.training.annotations, **annotations},
        }
        if spec is not None:
            parsed = type(self.training.spec).model_validate(spec)
            if parsed != self.training.spec:
                fields |= {"spec": parsed, "generation": self.training.generation + 1}
        self.training = self.training.model_copy(update=fields)

    def run(self, *, passes: int = 100, good: bool = True, seconds: float = 60) -> None:
        """Let every Job succeed until the stack stands still."""
        for _ in range(passes):
            self.cluster.tick(seconds)
            for job in self.cluster.live():
                if not job.suspended:
                    self.cluster.succeed(job.name, good=good)
            self.cluster.end_leaving_pods()
            self.look()
            before = self.status
            if self.step().launch is None and self.status == before:
                return
        raise AssertionError(f"still {self.status.phase} after {passes}: {self.status.message}")
