"""A Job's pods, bucketed, and the totals that they add up to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from latticeforge_operator.devcluster.controllers import job_failures, job_pods
from latticeforge_operator.devcluster.controllers.objects import (
    is_active,
    is_deleted,
    is_finished,
    phase,
)
from latticeforge_operator.devcluster.resources import JsonObject


@dataclass(frozen=True)
class Buckets:
    """A Job's pods by what they mean to it.

    Attributes:
        active: they run, or will.
        terminating: deleted, but still on a node.
        succeeded: ended well, and not counted yet.
        failed: ended badly, or given up as they were deleted, and not counted yet.
        everything: all of them.
    """

    active: list[JsonObject]
    terminating: list[JsonObject]
    succeeded: list[JsonObject]
    failed: list[JsonObject]
    everything: Sequence[JsonObject]


@dataclass(frozen=True)
class Tally:
    """Totals, newly finished pods included.

    Attributes:
        succeeded: pods that ended well; of an Indexed Job, indexes that did.
        failed: pods that ended badly, but for those that the failure policy ignores.
        indexes: completed indexes of an Indexed Job.
        fatal: why the failure policy fails the Job, if it does.
    """

    succeeded: int
    failed: int
    indexes: frozenset[int]
    fatal: str = ""


def is_tracked(pod: JsonObject) -> bool:
    """Whether the pod still has to be counted."""
    return job_pods.FINALIZER in (pod["metadata"].get("finalizers") or ())


def waits_for_the_end(job: JsonObject) -> bool:
    """Whether a terminating pod holds its place until it has really ended."""
    default = "Failed" if job["spec"].get("podFailurePolicy") else "TerminatingOrFailed"
    return bool(job["spec"].get("podReplacementPolicy", default) == "Failed")


def bucket(job: JsonObject, pods: Sequence[JsonObject]) -> Buckets:
    """Sorts a Job's pods."""
    uncounted = [pod for pod in pods if is_tracked(pod)]
    return Buckets(
        active=[pod for pod in pods if is_active(pod)],
        terminating=[
            pod for pod in pods if is_deleted(pod) and not is_finished(pod) and _is_placed(pod)
        ],
        succeeded=[pod for pod in uncounted if phase(pod) == "Succeeded"],
        failed=[pod for pod in uncounted if _has_failed(job, pod)],
        everything=pods,
    )


def _is_placed(pod: JsonObject) -> bool:
    return bool(pod["spec"].get("nodeName"))


def _has_failed(job: JsonObject, pod: JsonObject) -> bool:
    if is_finished(pod):
        return phase(pod) == "Failed"
    # No kubelet will ever end a pod that was deleted before it had a node.
    return is_deleted(pod) and not (waits_for_the_end(job) and _is_placed(pod))


def count(job: JsonObject, pods: Buckets) -> Tally:
    """Adds newly finished pods to the totals in the Job's status."""
    status = job.get("status", {})
    failed, fatal = status.get("failed", 0), ""
    for pod in pods.failed:
        ruling = job_failures.rule_on(pod, job["spec"].get("podFailurePolicy"))
        failed += ruling.action != "Ignore"
        if ruling.action == "FailJob":
            fatal = fatal or ruling.why
    if not job_pods.is_indexed(job):
        succeeded = status.get("succeeded", 0) + len(pods.succeeded)
        return Tally(succeeded, failed, frozenset(), fatal)
    done = job_pods.parse_indexes(status.get("completedIndexes") or "")
    indexes = done | {job_pods.index_of(pod) for pod in pods.succeeded}
    completions = job["spec"]["completions"]
    valid = frozenset(index for index in indexes if index is not None and index < completions)
    return Tally(len(valid), failed, valid, fatal)
