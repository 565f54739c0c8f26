"""What a Job does next, as batch/v1 does it: a pure function of the Job, its pods and the time.

Every pod carries the tracking finalizer until it is counted, so no end of a pod is missed or
counted twice: the counts in `status` grow in the same step that lets the pod go. A Job ends in two
steps, like everywhere since Kubernetes 1.31: first the verdict (`FailureTarget`,
`SuccessCriteriaMet`), then, when none of its pods runs any more, `Failed` or `Complete`.

Not supported, and refused as a failed Job with a message that says so: backoffLimitPerIndex,
successPolicy, managedBy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from latticeforge_operator.devcluster.controllers import job_failures, job_pods
from latticeforge_operator.devcluster.controllers.job_tally import (
    Buckets,
    Tally,
    bucket,
    count,
    is_tracked,
    waits_for_the_end,
)
from latticeforge_operator.devcluster.controllers.objects import (
    created_at,
    is_deleted,
    is_true,
    new_condition,
    parse_time,
    with_condition,
)
from latticeforge_operator.devcluster.controllers.recorder import Event, EventType
from latticeforge_operator.devcluster.metadata import timestamp
from latticeforge_operator.devcluster.resources import JsonObject

BACKOFF_BASE = timedelta(seconds=10)
_UNSUPPORTED = ("backoffLimitPerIndex", "successPolicy", "managedBy")


@dataclass(frozen=True)
class Actions:
    """What to do for one Job, in this order.

    Attributes:
        status: the Job's whole new status.
        release: names of pods that `status` has counted; they lose the tracking finalizer.
        discard: names of pods to delete without counting them as failed (suspend, scale-down).
        delete: names of pods to delete because the Job has ended; they are counted when they end.
        create: pods to create.
        events: what to tell people.
        remove: the Job's time to live is over; delete it.
        wake_at: when to decide again even if nothing changes.
    """

    status: JsonObject
    release: tuple[str, ...] = ()
    discard: tuple[str, ...] = ()
    delete: tuple[str, ...] = ()
    create: tuple[JsonObject, ...] = ()
    events: tuple[Event, ...] = ()
    remove: bool = False
    wake_at: datetime | None = None


@dataclass(frozen=True)
class _Moves:
    create: tuple[JsonObject, ...] = ()
    discard: tuple[str, ...] = ()
    delete: tuple[str, ...] = ()
    wake_at: datetime | None = None


@dataclass(frozen=True)
class _Verdict:
    """How the Job ends: the condition that announces it, and the one that seals it."""

    announced: str
    sealed: str
    reason: str
    message: str


@dataclass
class _Draft:
    """The conditions and events of one decision, while it is being made."""

    now: datetime
    conditions: list[JsonObject]
    events: list[Event] = field(default_factory=list)

    def set(self, kind: str, status: str, reason: str, message: str) -> None:
        new = new_condition(kind, status, self.now, reason, message)
        self.conditions = with_condition(self.conditions, new)

    def tell(self, kind: EventType, reason: str, message: str) -> None:
        self.events.append(Event(kind, reason, message))


def is_over(job: JsonObject) -> bool:
    """Whether the Job is Complete or Failed."""
    return is_true(job, "Complete") or is_true(job, "Failed")


def decide(
    job: JsonObject,
    pods: Sequence[JsonObject],
    now: datetime,
    *,
    backoff_base: timedelta = BACKOFF_BASE,
) -> Actions:
    """Decides what happens to a Job and its pods.

    Args:
        job: the Job.
        pods: all pods that it controls.
        now: the time.
        backoff_base: the wait after a first failed pod; it doubles with every further one.
    """
    if is_over(job):
        return _retire(job, pods, now)
    buckets = bucket(job, pods)
    tally = count(job, buckets)
    draft = _Draft(now, list(job.get("status", {}).get("conditions") or ()))
    started = _start(job, draft)
    verdict = _verdict(job, buckets, tally, started, now)
    if verdict is None:
        moves = _balance(job, buckets, tally, now, backoff_base)
        moves = replace(moves, wake_at=_earliest(moves.wake_at, _deadline(job, started)))
        verdict = _completion(job, buckets, tally, moves)
    else:
        moves = _Moves(delete=tuple(_names(buckets.active)))
    ended = verdict is not None and _end(verdict, buckets, draft)
    status = _status(job, buckets, tally, moves, started)
    status["conditions"] = draft.conditions
    if ended and is_true({"status": status}, "Complete"):
        status["completionTime"] = timestamp(now)
    return Actions(
        status={name: value for name, value in status.items() if value not in (None, [])},
        release=tuple(_names([*buckets.succeeded, *buckets.failed])),
        discard=moves.discard,
        delete=moves.delete,
        create=moves.create,
        events=tuple(draft.events),
        wake_at=moves.wake_at,
    )


def _retire(job: JsonObject, pods: Sequence[JsonObject], now: datetime) -> Actions:
    """A finished Job only waits for its time to live; a straggling pod is let go."""
    release = tuple(_names([pod for pod in pods if is_tracked(pod)]))
    due = None
    if (ttl := job["spec"].get("ttlSecondsAfterFinished")) is not None:
        ends = [c for c in job["status"]["conditions"] if c["type"] in {"Complete", "Failed"}]
        due = parse_time(ends[-1]["lastTransitionTime"]) + timedelta(seconds=ttl)
    overdue = due is not None and now >= due and not is_deleted(job)
    wake_at = None if overdue else due
    return Actions(status=job["status"], release=release, remove=overdue, wake_at=wake_at)


def _names(pods: Sequence[JsonObject]) -> list[str]:
    return [pod["metadata"]["name"] for pod in pods]


def _start(job: JsonObject, draft: _Draft) -> str | None:
    """Follows `spec.suspend`; returns the start time, from which the active deadline counts."""
    started: str | None = job.get("status", {}).get("startTime")
    was_suspended = is_true(job, "Suspended")
    if job["spec"].get("suspend"):
        if not was_suspended:
            draft.set("Suspended", "True", "JobSuspended", "Job suspended")
            draft.tell("Normal", "Suspended", "Job suspended")
        return started
    if was_suspended:
        draft.set("Suspended", "False", "JobResumed", "Job resumed")
        draft.tell("Normal", "Resumed", "Job resumed")
    return timestamp(draft.now) if was_suspended or started is None else started


def _verdict(
    job: JsonObject, pods: Buckets, tally: Tally, started: str | None, now: datetime
) -> _Verdict | None:
    """Why the Job must end although not all is done, or how it was already decided to end."""
    for kind, sealed in (("FailureTarget", "Failed"), ("SuccessCriteriaMet", "Complete")):
        if is_true(job, kind):
            conditions = job["status"]["conditions"]
            told = next(c for c in conditions if c["type"] == kind)
            return _Verdict(kind, sealed, told["reason"], told["message"])
    spec = job["spec"]
    for name in _UNSUPPORTED:
        if spec.get(name) is not None:
            message = f"spec.{name} is not supported by the devcluster; use a real cluster"
            return _failure("UnsupportedField", message)
    if tally.fatal:
        return _failure("PodFailurePolicy", tally.fatal)
    if tally.failed > spec.get("backoffLimit", 6) or _restarts_exceeded(job, pods):
        return _failure("BackoffLimitExceeded", "Job has reached the specified backoff limit")
    deadline = _deadline(job, started)
    if deadline is not None and now >= deadline:
        return _failure("DeadlineExceeded", "Job was active longer than specified deadline")
    return None


def _failure(reason: str, message: str) -> _Verdict:
    return _Verdict("FailureTarget", "Failed", reason, message)


def _restarts_exceeded(job: JsonObject, pods: Buckets) -> bool:
    if job["spec"]["template"]["spec"].get("restartPolicy") != "OnFailure":
        return False
    limit = job["spec"].get("backoffLimit", 6)
    restarted = job_failures.restarts(pods.active)
    return restarted > 0 if limit == 0 else restarted >= limit


def _deadline(job: JsonObject, started: str | None) -> datetime | None:
    seconds = job["spec"].get("activeDeadlineSeconds")
    if seconds is None or started is None or job["spec"].get("suspend"):
        return None
    return parse_time(started) + timedelta(seconds=seconds)


def _earliest(*moments: datetime | None) -> datetime | None:
    return min((moment for moment in moments if moment is not None), default=None)


def _balance(
    job: JsonObject, pods: Buckets, tally: Tally, now: datetime, base: timedelta
) -> _Moves:
    """Brings the number of active pods to what is still wanted."""
    if is_deleted(job):
        return _Moves()
    if job["spec"].get("suspend"):
        return _Moves(discard=tuple(_names(pods.active)))
    wanted = _wanted(job, pods, tally)
    keep, surplus = _divide(job, pods, tally, wanted)
    held = len(pods.terminating) if waits_for_the_end(job) else 0
    missing = wanted - len(keep) - held
    discard = tuple(_names(surplus))
    if missing <= 0:
        return _Moves(discard=discard)
    due = job_failures.retry_at(pods.everything, base)
    if due is not None and due > now:
        return _Moves(discard=discard, wake_at=due)
    indexes = _free_indexes(job, pods, keep, tally)[:missing]
    return _Moves(tuple(job_pods.make_pod(job, index) for index in indexes), discard)


def _wanted(job: JsonObject, pods: Buckets, tally: Tally) -> int:
    parallelism = _parallelism(job)
    completions: int | None = job["spec"].get("completions")
    if completions is None:
        # A work queue: after the first success no new worker starts, and none is stopped.
        return min(len(pods.active), parallelism) if tally.succeeded else parallelism
    return max(0, min(parallelism, completions - tally.succeeded))


def _parallelism(job: JsonObject) -> int:
    return int(job["spec"].get("parallelism", 1))


def _divide(
    job: JsonObject, pods: Buckets, tally: Tally, wanted: int
) -> tuple[list[JsonObject], list[JsonObject]]:
    """Splits active pods into those to keep and the surplus: the youngest and least ready go."""
    keep: list[JsonObject] = []
    surplus: list[JsonObject] = []
    taken: set[int | None] = set(tally.indexes)
    for pod in sorted(pods.active, key=_seniority):
        index = job_pods.index_of(pod)
        useless = job_pods.is_indexed(job) and (
            index is None or index >= job["spec"]["completions"] or index in taken
        )
        if useless or len(keep) >= wanted:
            surplus.append(pod)
        else:
            keep.append(pod)
            taken.add(index)
    return keep, surplus


def _seniority(pod: JsonObject) -> tuple[bool, datetime, int]:
    index = job_pods.index_of(pod)
    return not is_true(pod, "Ready"), created_at(pod), -1 if index is None else index


def _free_indexes(
    job: JsonObject, pods: Buckets, keep: list[JsonObject], tally: Tally
) -> Sequence[int | None]:
    if not job_pods.is_indexed(job):
        return [None] * _parallelism(job)
    held = pods.terminating if waits_for_the_end(job) else []
    taken = tally.indexes | {job_pods.index_of(pod) for pod in [*keep, *held]}
    return [index for index in range(job["spec"]["completions"]) if index not in taken]


def _completion(job: JsonObject, pods: Buckets, tally: Tally, moves: _Moves) -> _Verdict | None:
    """The verdict of success, once enough pods succeeded and nothing is left to run."""
    completions = job["spec"].get("completions")
    enough = tally.succeeded > 0 if completions is None else tally.succeeded >= completions
    if not enough or moves.create or len(pods.active) > len(moves.discard):
        return None
    message = "Reached expected number of succeeded pods"
    return _Verdict("SuccessCriteriaMet", "Complete", "CompletionsReached", message)


def _end(verdict: _Verdict, pods: Buckets, draft: _Draft) -> bool:
    """Announces the end and, when no pod runs any more, seals it."""
    draft.set(verdict.announced, "True", verdict.reason, verdict.message)
    if pods.active or pods.terminating:
        return False
    draft.set(verdict.sealed, "True", verdict.reason, verdict.message)
    if verdict.sealed == "Complete":
        draft.tell("Normal", "Completed", "Job completed")
    else:
        draft.tell("Warning", verdict.reason, verdict.message)
    return True


def _status(
    job: JsonObject, pods: Buckets, tally: Tally, moves: _Moves, started: str | None
) -> JsonObject:
    leaving = len(moves.discard) + len(moves.delete)
    indexed = job_pods.is_indexed(job)
    return {
        "active": len(pods.active) - leaving + len(moves.create),
        "ready": sum(is_true(pod, "Ready") for pod in pods.active),
        "terminating": len(pods.terminating) + leaving,
        "succeeded": tally.succeeded,
        "failed": tally.failed,
        "completedIndexes": job_pods.format_indexes(tally.indexes) if indexed else None,
        "startTime": started,
        "uncountedTerminatedPods": {},
    }
