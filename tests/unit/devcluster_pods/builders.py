"""Jobs and pods for tests of the controllers: only what a test is about has to be said."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from latticeforge_operator.devcluster.controllers.job_pods import FINALIZER, INDEX
from latticeforge_operator.devcluster.metadata import timestamp

NOW = datetime(2030, 1, 1, tzinfo=UTC)


def at(seconds: float) -> str:
    """The time that many seconds after NOW."""
    return timestamp(NOW + timedelta(seconds=seconds))


def job(status: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    template = {"spec": {"restartPolicy": "Never", "containers": [{"name": "main"}]}}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "j", "namespace": "n", "uid": "job-uid", "creationTimestamp": at(0)},
        "spec": {"parallelism": 1, "completions": 1, "template": template, **spec},
        "status": status or {},
    }


def indexed(completions: int, status: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    spec = {"completionMode": "Indexed", "parallelism": completions, **spec}
    return job(status, completions=completions, **spec)


def pod(
    name: str,
    phase: str = "Running",
    *,
    index: int | None = None,
    code: int | None = None,
    ended: float = 0,
    deleted: bool = False,
    counted: bool = False,
    node: str | None = "devcluster",
    conditions: tuple[str, ...] = (),
) -> dict[str, Any]:
    """A pod of `job()`; `counted` ones have lost their finalizer."""
    metadata: dict[str, Any] = {
        "name": name,
        "namespace": "n",
        "uid": f"uid-{name}",
        "creationTimestamp": at(0),
        "finalizers": [] if counted else [FINALIZER],
        "annotations": {} if index is None else {INDEX: str(index)},
    }
    if deleted:
        metadata["deletionTimestamp"] = at(0)
    status: dict[str, Any] = {
        "phase": phase,
        "conditions": [{"type": kind, "status": "True"} for kind in conditions],
    }
    if code is None and phase in {"Succeeded", "Failed"}:
        code = int(phase == "Failed")
    if code is not None:
        terminated = {"exitCode": code, "finishedAt": at(ended)}
        status["containerStatuses"] = [{"name": "main", "state": {"terminated": terminated}}]
    spec = {"containers": [{"name": "main"}], **({"nodeName": node} if node else {})}
    return {"metadata": metadata, "spec": spec, "status": status}
