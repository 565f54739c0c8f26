"""What the watches have shown: objects by kind, and one stack's children as values.

Our own writes are put in as soon as they are answered, and an older version never replaces a newer
one, so a decision is never based on less than what this process has done.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from latticeforge_operator.api import GPUPool
from latticeforge_operator.cluster.names import (
    ATTEMPT_ANNOTATION,
    DIGEST_ANNOTATION,
    JOB_NAME_LABEL,
    STEP_ANNOTATION,
    TRAINING_LABEL,
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
            _store(self._trainings, (namespace, name), obj, removed=removed)
            if removed:
                self._children.pop((namespace, name), None)
            return [(namespace, name)]
        if kind == "GPUPool":
            _store(self._pools, name, obj, removed=removed)
            return list(self._trainings)
        training = (meta.get("labels") or {}).get(TRAINING_LABEL)
        if training is None:
            return []
        _store(self._children[namespace, training], (kind, name), obj, removed=removed)
        return [(namespace, training)]

    def training(self, key: Key) -> dict[str, Any] | None:
        """The StackedTraining, or None when it is gone."""
        return self._trainings.get(key)

    def trainings(self) -> list[Key]:
        """Every stack."""
        return list(self._trainings)

    def observed(self, key: Key) -> Observed:
        """One stack's part of the cluster."""
        children = self._children.get(key, {})
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
    if removed:
        objects.pop(key, None)
        return
    known = objects.get(key)
    if known is None or _version(obj) >= _version(known):
        objects[key] = obj


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
    return JobView(
        name=meta["name"],
        step=annotations.get(STEP_ANNOTATION, ""),
        digest=annotations.get(DIGEST_ANNOTATION, ""),
        attempt=int(annotations.get(ATTEMPT_ANNOTATION, 0)),
        created_at=datetime.fromisoformat(meta["creationTimestamp"]),
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
    ended = _terminated(status)
    return PodView(
        name=meta["name"],
        job=(meta.get("labels") or {}).get(JOB_NAME_LABEL, ""),
        phase=status.get("phase", "Pending"),
        scheduled_at=_time(scheduled["lastTransitionTime"])
        if scheduled and scheduled["status"] == "True"
        else None,
        finished_at=_time(ended.get("finishedAt")),
        exit_code=ended.get("exitCode"),
        disrupted=_holds(obj, "DisruptionTarget"),
        deleting="deletionTimestamp" in meta,
        waiting=_waiting(status, scheduled),
    )


def _terminated(status: dict[str, Any]) -> dict[str, Any]:
    for container in status.get("containerStatuses") or []:
        if ended := container.get("state", {}).get("terminated"):
            found: dict[str, Any] = ended
            return found
    return {}


def _waiting(status: dict[str, Any], scheduled: dict[str, Any] | None) -> str:
    if scheduled is not None and scheduled["status"] == "False":
        return str(scheduled.get("message") or scheduled.get("reason") or "not scheduled yet")
    for container in status.get("containerStatuses") or []:
        waiting = container.get("state", {}).get("waiting")
        if waiting and waiting.get("reason") not in {"ContainerCreating", "PodInitializing"}:
            return ": ".join(str(waiting[k]) for k in ("reason", "message") if waiting.get(k))
    return ""


def progress_of(obj: dict[str, Any]) -> tuple[str, Progress] | None:
    """The digest and report of a progress ConfigMap; None for others and for unreadable ones."""
    text = (obj.get("data") or {}).get(PROGRESS_KEY)
    digest = (obj["metadata"].get("annotations") or {}).get(DIGEST_ANNOTATION)
    if text is None or digest is None:
        return None
    try:
        report = Progress.model_validate_json(text)
    except ValidationError:
        return None  # written by another version of the trainer; the Job's end still counts
    return (digest, report) if report.digest == digest else None
