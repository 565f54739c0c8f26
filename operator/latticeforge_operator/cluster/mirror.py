"""What the watches have shown: stacks as they are, their children as the values that matter.

Children are reduced to values as they arrive: ten thousand stacks have some hundred thousand Jobs,
pods and reports, of which a decision needs a dozen fields each.

Our own writes are put in as soon as they are answered, and an older version never replaces a newer
one, so a decision is never based on less than what this process has done.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from latticeforge_operator.api import GPUPool
from latticeforge_operator.cluster.client import Listing
from latticeforge_operator.cluster.measurements import Measurements
from latticeforge_operator.cluster.names import (
    ATTEMPT_ANNOTATION,
    DIGEST_ANNOTATION,
    JOB_NAME_LABEL,
    QUEUE_LABEL,
    STEP_ANNOTATION,
    TRAINER_CONTAINER,
    TRAINING_LABEL,
    UID_LABEL,
    Key,
)
from latticeforge_operator.core.values import JobView, Observed, PodView
from latticeforge_trainer.contract import Progress, step_of_key

K = TypeVar("K")
V = TypeVar("V")

_LOG_TAIL = 2048
"""Characters; the kubelet keeps no more."""
_TOKEN = re.compile(r"\bhf_\w{8,}")

Reports = dict[tuple[str, str], Progress]
"""Last reports of steps, by step and digest."""

Value = JobView | PodView | Reports
"""What matters of a child."""


@dataclass(frozen=True, slots=True)
class _Kept(Generic[V]):
    """What is kept of an object."""

    version: int
    value: V
    uid: str | None = None
    """UID of the stack that it is labelled with."""


class Mirror:
    """The last known state of every object that the operator watches."""

    def __init__(self) -> None:
        self._trainings: dict[Key, _Kept[dict[str, Any]]] = {}
        self._pools: dict[str, _Kept[GPUPool | None]] = {}
        self._children: dict[Key, dict[tuple[str, str], _Kept[Value]]] = defaultdict(dict)
        self._measurements = Measurements()

    def put(self, kind: str, obj: dict[str, Any]) -> list[Key]:
        """Take in an object; returns the stacks that it concerns."""
        return self._change(kind, obj, removed=False)

    def remove(self, kind: str, obj: dict[str, Any]) -> list[Key]:
        """Forget an object; returns the stacks that it concerns."""
        return self._change(kind, obj, removed=True)

    def _change(self, kind: str, obj: dict[str, Any], *, removed: bool) -> list[Key]:
        meta = obj["metadata"]
        namespace, name = meta.get("namespace", ""), meta["name"]
        if kind == "StackedTraining":
            return self._change_training((namespace, name), obj, removed=removed)
        if kind == "GPUPool":
            _store(self._pools, name, _Kept(_version(obj), _pool(obj)), removed=removed)
            return list(self._trainings)
        training = (meta.get("labels") or {}).get(TRAINING_LABEL)
        if training is None:
            return []
        uid = meta["labels"].get(UID_LABEL)
        child = _Kept(_version(obj), _VALUES[kind](obj), uid)
        before, after = _store(
            self._children[namespace, training], (kind, name), child, removed=removed
        )
        # Our own writes and what nothing is decided from come back as events; they are no news.
        same = before is not None and after is not None and before.value == after.value
        return [] if same else [(namespace, training)]

    def refresh(self, kind: str, obj: dict[str, Any]) -> list[Key]:
        """Take in the answer to a change of an object, unless that has been deleted since.

        Returns:
            The stacks to which it brings news: what others changed before us is in the answer too.
        """
        meta = obj["metadata"]
        key = (meta["namespace"], meta["name"])
        if kind == "StackedTraining":
            known = key in self._trainings
        else:
            training = meta["labels"][TRAINING_LABEL]
            known = (kind, meta["name"]) in self._children[meta["namespace"], training]
        return self.put(kind, obj) if known else []

    def _change_training(self, key: Key, obj: dict[str, Any], *, removed: bool) -> list[Key]:
        kept = _Kept(_version(obj), obj)
        before, after = _store(self._trainings, key, kept, removed=removed)
        if after is None:
            self._children.pop(key, None)
        self._measurements.see(key, after.value if after is not None else None)
        # The operator's own status writes come back as events; they are no news.
        same = (
            before is not None and after is not None and _asks(before.value) == _asks(after.value)
        )
        return [] if same else [key]

    def names(self, kind: str, key: Key) -> set[str]:
        """Names of one stack's children of a kind."""
        return {name for (other, name) in self._children.get(key, {}) if other == kind}

    def doubtful(self, active: Listing) -> tuple[set[Key], set[Key]]:
        """Stacks of which the mirror may show what is gone: a broken watch tells of no deletion.

        Args:
            active: A fresh list of the pods that have not ended.

        Returns:
            Stacks with a pod that this list lacks, and stacks with an unfinished Job without pods.
        """
        alive = {(o["metadata"]["namespace"], o["metadata"]["name"]) for o in active.items}
        ghosts, podless = set(), set()
        for key, children in self._children.items():
            pods = {
                name: kept
                for (_, name), kept in children.items()
                if isinstance(kept.value, PodView) and kept.value.active
            }
            if any(
                (key[0], name) not in alive and kept.version <= active.version
                for name, kept in pods.items()
            ):
                ghosts.add(key)
            jobs = (kept.value for kept in children.values() if isinstance(kept.value, JobView))
            if not pods and any(not job.finished for job in jobs):
                podless.add(key)
        return ghosts, podless

    def newest(self, key: Key) -> int:
        """The newest version of a stack or one of its children that has been seen."""
        kept = [*self._children.get(key, {}).values(), self._trainings.get(key)]
        return max((one.version for one in kept if one is not None), default=0)

    def replace(self, kind: str, key: Key, listed: Listing) -> None:
        """Take in a fresh list of one stack's children of a kind.

        Those that it lacks are gone, unless they are known to have changed after it was made.
        """
        children = self._children[key]
        for name in self.names(kind, key) - {obj["metadata"]["name"] for obj in listed.items}:
            if children[kind, name].version <= listed.version:
                del children[kind, name]
        for obj in listed.items:
            self.put(kind, obj)

    def complain(self, key: Key, job: str, complaint: str) -> None:
        """Note why a Job has no pods, as its Events say."""
        kept = self._children[key].get(("Job", job))
        if kept is not None and isinstance(kept.value, JobView):
            view = replace(kept.value, complaint=complaint)
            self._children[key]["Job", job] = replace(kept, value=view)

    def training(self, key: Key) -> dict[str, Any] | None:
        """The StackedTraining, or None when it is gone."""
        kept = self._trainings.get(key)
        return kept.value if kept is not None else None

    def trainings(self) -> list[Key]:
        """Every stack."""
        return list(self._trainings)

    def stacks(self) -> list[dict[str, Any]]:
        """Every StackedTraining as the API server shows it."""
        return [kept.value for kept in self._trainings.values()]

    def active_pods(self) -> Counter[tuple[str, str]]:
        """How many pods hold their resources, by namespace and Job."""
        return Counter(
            (namespace, pod.job)
            for (namespace, _), children in self._children.items()
            for child in children.values()
            if isinstance(pod := child.value, PodView) and pod.active and pod.scheduled_at
        )

    def observed(self, key: Key) -> Observed:
        """One stack's part of the cluster."""
        training = self.training(key)
        uid = training["metadata"]["uid"] if training is not None else ""
        values = [
            child.value
            for child in self._children.get(key, {}).values()
            if child.uid in {None, uid}
        ]
        return Observed(
            pools=tuple(kept.value for kept in self._pools.values() if kept.value is not None),
            jobs=tuple(value for value in values if isinstance(value, JobView)),
            pods=tuple(value for value in values if isinstance(value, PodView)),
            progress={
                k: v for value in values if isinstance(value, dict) for k, v in value.items()
            },
            history=self._measurements.history,
        )


def _store(
    objects: dict[K, _Kept[V]], key: K, new: _Kept[V], *, removed: bool
) -> tuple[_Kept[V] | None, _Kept[V] | None]:
    """Take a version in unless it is an older one; returns what was kept before and is now."""
    known = objects.get(key)
    if known is not None and new.version < known.version:
        return known, known
    if removed:
        objects.pop(key, None)
        return known, None
    objects[key] = new
    return known, new


def _pool(obj: dict[str, Any]) -> GPUPool | None:
    """The pool; the API server refuses a bad one, an old one is as good as absent."""
    try:
        return GPUPool.from_object(obj)
    except ValidationError:
        return None


def _asks(training: dict[str, Any]) -> tuple[Any, ...]:
    """What a decision about a stack depends on, beside its own status."""
    meta = training["metadata"]
    fields = ("uid", "generation", "annotations", "deletionTimestamp")
    return tuple(meta.get(field) for field in fields)


def _version(obj: dict[str, Any]) -> int:
    return int(obj["metadata"].get("resourceVersion") or 0)


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def _condition(obj: dict[str, Any], kind: str) -> dict[str, Any] | None:
    conditions = obj.get("status", {}).get("conditions") or []
    return next((c for c in conditions if c["type"] == kind), None)


def _holds(obj: dict[str, Any], kind: str) -> bool:
    condition = _condition(obj, kind)
    return condition is not None and condition["status"] == "True"


def job_view(obj: dict[str, Any]) -> JobView:
    """What matters of a Job."""
    meta = obj["metadata"]
    annotations = meta.get("annotations") or {}
    failed = _condition(obj, "Failed") or {}
    ended = failed or _condition(obj, "Complete") or {}
    return JobView(
        name=meta["name"],
        step=annotations.get(STEP_ANNOTATION, ""),
        digest=annotations.get(DIGEST_ANNOTATION, ""),
        attempt=int(annotations.get(ATTEMPT_ANNOTATION, 0)),
        created_at=datetime.fromisoformat(meta["creationTimestamp"]),
        finished_at=_time(ended.get("lastTransitionTime")),
        suspended=bool(obj["spec"].get("suspend")),
        queue=(meta.get("labels") or {}).get(QUEUE_LABEL, ""),
        deadline_seconds=obj["spec"].get("activeDeadlineSeconds"),
        succeeded=_holds(obj, "Complete"),
        failed=_holds(obj, "Failed"),
        reason=failed.get("reason", ""),
        message=failed.get("message", ""),
        deleting="deletionTimestamp" in meta,
    )


def pod_view(obj: dict[str, Any]) -> PodView:
    """What matters of a pod."""
    meta, status = obj["metadata"], obj.get("status", {})
    scheduled = _condition(obj, "PodScheduled")
    phase = status.get("phase", "Pending")
    return PodView(
        name=meta["name"],
        job=(meta.get("labels") or {}).get(JOB_NAME_LABEL, ""),
        phase=phase,
        scheduled_at=_time(scheduled["lastTransitionTime"])
        if scheduled and scheduled["status"] == "True"
        else None,
        started_at=_started_at(status),
        finished_at=_finished_at(status) if phase in {"Succeeded", "Failed"} else None,
        exit_code=_exit_code(status),
        disrupted=_holds(obj, "DisruptionTarget"),
        deleting="deletionTimestamp" in meta,
        waiting=_waiting(status, scheduled),
        ended_because=_ended_because(status),
        node=obj["spec"].get("nodeName", ""),
        log_tail=_log_tail(status),
    )


def _finished_at(status: dict[str, Any]) -> datetime | None:
    """When a pod's last container ended; of an evicted or lost pod, when that was noticed."""
    states = [container.get("state", {}) for container in status.get("containerStatuses") or []]
    ends = [state["terminated"].get("finishedAt") for state in states if "terminated" in state]
    noticed = [c.get("lastTransitionTime") for c in status.get("conditions") or []]
    times = [_time(text) for text in ends or noticed]
    return max((time for time in times if time is not None), default=None)


def _trainer_state(status: dict[str, Any]) -> dict[str, Any]:
    """The state of the trainer; sidecars of a pool's pod template start and end as they like."""
    for container in status.get("containerStatuses") or []:
        if container["name"] == TRAINER_CONTAINER:
            state: dict[str, Any] = container.get("state") or {}
            return state
    return {}


def _started_at(status: dict[str, Any]) -> datetime | None:
    state = _trainer_state(status)
    return _time((state.get("running") or state.get("terminated") or {}).get("startedAt"))


def _terminated(status: dict[str, Any]) -> dict[str, Any] | None:
    """How the trainer ended."""
    return _trainer_state(status).get("terminated")


def _log_tail(status: dict[str, Any]) -> str:
    """What the kubelet kept of a failed trainer's log, without anything that looks like a token."""
    ended = _terminated(status) or {}
    if not ended.get("exitCode"):
        return ""
    return _TOKEN.sub("hf_***", str(ended.get("message") or "").strip())[-_LOG_TAIL:]


def _exit_code(status: dict[str, Any]) -> int | None:
    ended = _terminated(status)
    return int(ended["exitCode"]) if ended else None


def _ended_because(status: dict[str, Any]) -> str:
    """What the kubelet says of the trainer's end beyond its exit code."""
    ended = _terminated(status) or {}
    if ended.get("reason") in {None, "Completed", "Error"}:
        return ""
    words = str(ended.get("message") or "").strip().splitlines()
    return ": ".join([str(ended["reason"]), *words[-1:]])


def _waiting(status: dict[str, Any], scheduled: dict[str, Any] | None) -> str:
    if scheduled is not None and scheduled["status"] == "False":
        return str(scheduled.get("message") or scheduled.get("reason") or "not scheduled yet")
    for container in status.get("containerStatuses") or []:
        waiting = container.get("state", {}).get("waiting")
        if waiting and waiting.get("reason") not in {"ContainerCreating", "PodInitializing"}:
            return ": ".join(str(waiting[k]) for k in ("reason", "message") if waiting.get(k))
    return ""


def reports(obj: dict[str, Any]) -> Reports:
    """The readable reports in a ConfigMap, by step and digest; none for one that holds others."""
    found: Reports = {}
    for key, text in (obj.get("data") or {}).items():
        step = step_of_key(key)
        if step is None:
            continue
        try:
            report = Progress.model_validate_json(text)
            zone = datetime.fromisoformat(report.updated_at).tzinfo
        except ValueError:
            continue  # written by another version of the trainer; the Job's end still counts
        if zone is not None:
            found[step, report.digest] = report
    return found


_VALUES: dict[str, Callable[[dict[str, Any]], Value]] = {
    "Job": job_view,
    "Pod": pod_view,
    "ConfigMap": reports,
}
