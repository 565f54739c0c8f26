"""What the watches have shown: objects by kind, and one stack's children as values.

Our own writes are put in as soon as they are answered, and an older version never replaces a newer
one, so a decision is never based on less than what this process has done.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from latticeforge_operator.api import GPUPool
from latticeforge_operator.cluster.client import Listing
from latticeforge_operator.cluster.names import (
    ATTEMPT_ANNOTATION,
    DIGEST_ANNOTATION,
    JOB_NAME_LABEL,
    STEP_ANNOTATION,
    TRAINER_CONTAINER,
    TRAINING_LABEL,
    UID_LABEL,
)
from latticeforge_operator.core.values import JobView, Observed, PodView
from latticeforge_trainer.contract import PROGRESS_KEY, Progress

Key = tuple[str, str]
"""Namespace and name of a StackedTraining."""

_CHILDREN = ("Job", "Pod", "ConfigMap")


class Mirror:
    """The last known state of every object that the operator watches."""

    def __init__(self) -> None:
        self._trainings: dict[Key, dict[str, Any]] = {}
        self._pools: dict[str, dict[str, Any]] = {}
        self._children: dict[Key, dict[tuple[str, str], dict[str, Any]]] = defaultdict(dict)

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
            _store(self._pools, name, obj, removed=removed)
            return list(self._trainings)
        training = (meta.get("labels") or {}).get(TRAINING_LABEL)
        if training is None:
            return []
        _store(self._children[namespace, training], (kind, name), obj, removed=removed)
        return [(namespace, training)]

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
        before = self._trainings.get(key)
        _store(self._trainings, key, obj, removed=removed)
        after = self._trainings.get(key)
        if after is None:
            self._children.pop(key, None)
        # The operator's own status writes come back as events; they are no news.
        return [] if before and after and _asks(before) == _asks(after) else [key]

    def names(self, kind: str, key: Key) -> set[str]:
        """Names of one stack's children of a kind."""
        return {name for (other, name) in self._children.get(key, {}) if other == kind}

    def replace(self, kind: str, key: Key, listed: Listing) -> None:
        """Take in a fresh list of one stack's children of a kind.

        Those that it lacks are gone, unless they are known to have changed after it was made.
        """
        children = self._children[key]
        for name in self.names(kind, key) - {obj["metadata"]["name"] for obj in listed.items}:
            if _version(children[kind, name]) <= listed.version:
                del children[kind, name]
        for obj in listed.items:
            self.put(kind, obj)

    def training(self, key: Key) -> dict[str, Any] | None:
        """The StackedTraining, or None when it is gone."""
        return self._trainings.get(key)

    def trainings(self) -> list[Key]:
        """Every stack."""
        return list(self._trainings)

    def stacks(self) -> list[dict[str, Any]]:
        """Every StackedTraining as the API server shows it."""
        return list(self._trainings.values())

    def active_pods(self) -> Counter[tuple[str, str]]:
        """How many pods hold their resources, by namespace and Job."""
        views = (
            (namespace, pod_view(obj))
            for (namespace, _), children in self._children.items()
            for (kind, _), obj in children.items()
            if kind == "Pod"
        )
        return Counter(
            (namespace, pod.job) for namespace, pod in views if pod.active and pod.scheduled_at
        )

    def observed(self, key: Key) -> Observed:
        """One stack's part of the cluster."""
        uid = self._trainings[key]["metadata"]["uid"] if key in self._trainings else ""
        children = {
            child: obj for child, obj in self._children.get(key, {}).items() if _belongs(obj, uid)
        }
        return Observed(
            pools=tuple(self._pool_values()),
            jobs=tuple(job_view(o) for (kind, _), o in children.items() if kind == "Job"),
            pods=tuple(pod_view(o) for (kind, _), o in children.items() if kind == "Pod"),
            progress=dict(
                report
                for (kind, _), o in children.items()
                if kind == "ConfigMap" and (report := progress_of(o)) is not None
            ),
        )

    def _pool_values(self) -> Iterator[GPUPool]:
        for obj in self._pools.values():
            try:
                yield GPUPool.from_object(obj)
            except ValidationError:
                continue  # the API server refuses such a pool; an old one is as good as absent


def _store(objects: dict[Any, Any], key: Any, obj: dict[str, Any], *, removed: bool) -> None:
    known = objects.get(key)
    if known is not None and _version(obj) < _version(known):
        return
    if removed:
        objects.pop(key, None)
    else:
        objects[key] = obj


def _asks(training: dict[str, Any]) -> tuple[Any, ...]:
    """What a decision about a stack depends on, beside its own status."""
    meta = training["metadata"]
    fields = ("uid", "generation", "annotations", "deletionTimestamp")
    return tuple(meta.get(field) for field in fields)


def _belongs(obj: dict[str, Any], uid: str) -> bool:
    """Whether a child is this stack's, not that of an earlier one of the same name."""
    labels: dict[str, str] = obj["metadata"].get("labels") or {}
    return labels.get(UID_LABEL, uid) == uid


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
        finished_at=_finished_at(status) if phase in {"Succeeded", "Failed"} else None,
        exit_code=_exit_code(status),
        disrupted=_holds(obj, "DisruptionTarget"),
        deleting="deletionTimestamp" in meta,
        waiting=_waiting(status, scheduled),
        ended_because=_ended_because(status),
        node=obj["spec"].get("nodeName", ""),
    )


def _finished_at(status: dict[str, Any]) -> datetime | None:
    """When a pod's last container ended; of an evicted or lost pod, when that was noticed."""
    states = [container.get("state", {}) for container in status.get("containerStatuses") or []]
    ends = [state["terminated"].get("finishedAt") for state in states if "terminated" in state]
    noticed = [c.get("lastTransitionTime") for c in status.get("conditions") or []]
    times = [_time(text) for text in ends or noticed]
    return max((time for time in times if time is not None), default=None)


def _terminated(status: dict[str, Any]) -> dict[str, Any] | None:
    """How the trainer ended; sidecars of a pool's pod template end as they like."""
    for container in status.get("containerStatuses") or []:
        if container["name"] == TRAINER_CONTAINER:
            ended: dict[str, Any] | None = container.get("state", {}).get("terminated")
            return ended
    return None


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


def progress_of(obj: dict[str, Any]) -> tuple[tuple[str, str], Progress] | None:
    """Step, digest and report of a progress ConfigMap; None for others and unreadable ones."""
    text = (obj.get("data") or {}).get(PROGRESS_KEY)
    annotations = obj["metadata"].get("annotations") or {}
    step, digest = annotations.get(STEP_ANNOTATION), annotations.get(DIGEST_ANNOTATION)
    if text is None or step is None or digest is None:
        return None
    try:
        report = Progress.model_validate_json(text)
        zone = datetime.fromisoformat(report.updated_at).tzinfo
    except ValueError:
        return None  # written by another version of the trainer; the Job's end still counts
    return ((step, digest), report) if report.digest == digest and zone is not None else None
