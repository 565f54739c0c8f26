"""The pods of a Job: how one is made, which completion index it has, how indexes are written."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from latticeforge_operator.devcluster.controllers.objects import owner_reference
from latticeforge_operator.devcluster.resources import JsonObject, clone

FINALIZER = "batch.kubernetes.io/job-tracking"
JOB_NAME = "batch.kubernetes.io/job-name"
INDEX = "batch.kubernetes.io/job-completion-index"
_INDEX_VARIABLE = {
    "name": "JOB_COMPLETION_INDEX",
    "valueFrom": {"fieldRef": {"fieldPath": f"metadata.labels['{INDEX}']"}},
}
# The name of a pod must fit a DNS label with the five generated characters appended.
_PREFIX_LENGTH = 63 - 5


def is_indexed(job: JsonObject) -> bool:
    """Whether the Job's pods carry completion indexes."""
    return bool(job["spec"].get("completionMode") == "Indexed")


def index_of(pod: JsonObject) -> int | None:
    """The pod's completion index, or None when it has none that can be read."""
    text = (pod["metadata"].get("annotations") or {}).get(INDEX, "")
    return int(text) if text.isdecimal() else None


def job_labels(job: JsonObject) -> dict[str, str]:
    """The labels by which a Job's pods are known, under their current and their older names."""
    name, uid = job["metadata"]["name"], job["metadata"]["uid"]
    return {
        "batch.kubernetes.io/controller-uid": uid,
        JOB_NAME: name,
        "controller-uid": uid,
        "job-name": name,
    }


def make_pod(job: JsonObject, index: int | None) -> JsonObject:
    """Makes a pod from the Job's template, for one completion index when the Job is Indexed."""
    template = clone(job["spec"]["template"])
    metadata: dict[str, Any] = template.get("metadata") or {}
    spec = template["spec"]
    name = job["metadata"]["name"]
    labels = (metadata.get("labels") or {}) | job_labels(job)
    annotations = dict(metadata.get("annotations") or {})
    prefix = f"{name}-"
    if index is not None:
        prefix = f"{name}-{index}-"
        labels[INDEX] = annotations[INDEX] = str(index)
        spec["hostname"] = f"{name}-{index}"
        _add_index_variable(spec)
    return {
        "metadata": {
            "generateName": prefix[:_PREFIX_LENGTH],
            "labels": labels,
            "annotations": annotations,
            "finalizers": [*(metadata.get("finalizers") or ()), FINALIZER],
            "ownerReferences": [owner_reference(job)],
        },
        "spec": spec,
    }


def _add_index_variable(spec: JsonObject) -> None:
    for container in (*(spec.get("initContainers") or ()), *spec["containers"]):
        present = container.get("env") or []
        if all(variable["name"] != _INDEX_VARIABLE["name"] for variable in present):
            container["env"] = [*present, _INDEX_VARIABLE]


def format_indexes(indexes: Iterable[int]) -> str:
    """Writes indexes as `status.completedIndexes` does: sorted, runs shortened ("1,3-5,7")."""
    runs: list[list[int]] = []
    for index in sorted(set(indexes)):
        if runs and runs[-1][1] == index - 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ",".join(_format_run(first, last) for first, last in runs)


def _format_run(first: int, last: int) -> str:
    if first == last:
        return str(first)
    # Two neighbours are listed, not ranged: that is how Kubernetes writes them.
    return f"{first},{last}" if last == first + 1 else f"{first}-{last}"


def parse_indexes(text: str) -> set[int]:
    """Reads what `format_indexes` writes."""
    indexes: set[int] = set()
    for run in filter(None, text.split(",")):
        first, _, last = run.partition("-")
        indexes.update(range(int(first), int(last or first) + 1))
    return indexes
