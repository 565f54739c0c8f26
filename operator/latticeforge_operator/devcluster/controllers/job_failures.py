"""What a Job makes of failed pods: its podFailurePolicy, and how long it waits before the next try.

Follows the semantics of batch/v1 (https://kubernetes.io/docs/concepts/workloads/controllers/job/).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from latticeforge_operator.devcluster.controllers.objects import condition, parse_time, phase
from latticeforge_operator.devcluster.resources import JsonObject

Action = Literal["Count", "Ignore", "FailJob"]
_LONGEST_BACKOFF = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class Ruling:
    """What a failure policy says of one failed pod; `why` is worded as the API server words it."""

    action: Action
    why: str = ""


_COUNT = Ruling("Count")


def rule_on(pod: JsonObject, policy: JsonObject | None) -> Ruling:
    """Applies the first matching rule of a podFailurePolicy to a failed pod."""
    for index, rule in enumerate((policy or {}).get("rules") or ()):
        if why := _match(pod, rule):
            action: Action = rule["action"]
            return Ruling(action, f"{why} matching {action} rule at index {index}")
    return _COUNT


def _match(pod: JsonObject, rule: JsonObject) -> str | None:
    if wanted := rule.get("onExitCodes"):
        return _match_exit_code(pod, wanted)
    return _match_condition(pod, rule.get("onPodConditions") or ())


def _match_exit_code(pod: JsonObject, wanted: JsonObject) -> str | None:
    values, negated = set(wanted["values"]), wanted["operator"] == "NotIn"
    for name, code in _exit_codes(pod):
        if wanted.get("containerName") not in {None, name}:
            continue
        # Success is never a failure to rule on, not even under NotIn.
        if code != 0 and (code in values) != negated:
            where = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
            return f"Container {name} for pod {where} failed with exit code {code}"
    return None


def _exit_codes(pod: JsonObject) -> Iterator[tuple[str, int]]:
    status = pod.get("status", {})
    for field in ("containerStatuses", "initContainerStatuses"):
        for container in status.get(field) or ():
            if ended := container.get("state", {}).get("terminated"):
                yield container["name"], ended["exitCode"]


def _match_condition(pod: JsonObject, patterns: Sequence[JsonObject]) -> str | None:
    for pattern in patterns:
        found = condition(pod, pattern["type"])
        if found and found["status"] == pattern.get("status", "True"):
            where = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
            return f"Pod {where} has condition {found['type']}"
    return None


def finished_at(pod: JsonObject) -> datetime:
    """When the last container of a finished (or terminating) pod ended."""
    statuses = pod.get("status", {}).get("containerStatuses") or ()
    ends = [
        parse_time(ended["finishedAt"])
        for status in statuses
        if (ended := status.get("state", {}).get("terminated")) and "finishedAt" in ended
    ]
    if ends:
        return max(ends)
    metadata = pod["metadata"]
    return parse_time(metadata.get("deletionTimestamp") or metadata["creationTimestamp"])


def retry_at(pods: Sequence[JsonObject], base: timedelta) -> datetime | None:
    """When the next pod may be created: the wait doubles with each failure since a success.

    Args:
        pods: the Job's pods, as far as they still exist.
        base: the wait after the first failure; 10 s in Kubernetes.
    """
    failed = [finished_at(pod) for pod in pods if phase(pod) == "Failed"]
    succeeded = [finished_at(pod) for pod in pods if phase(pod) == "Succeeded"]
    recent = [end for end in failed if not succeeded or end > max(succeeded)]
    if not recent:
        return None
    doublings = min(len(recent) - 1, 16)
    wait: timedelta = min(base * 2**doublings, _LONGEST_BACKOFF)
    return max(recent) + wait


def restarts(pods: Sequence[JsonObject]) -> int:
    """Container restarts within the Job's pods, which count as failures under OnFailure."""
    fields = ("initContainerStatuses", "containerStatuses")
    return sum(
        container.get("restartCount", 0)
        for pod in pods
        for field in fields
        for container in pod.get("status", {}).get(field) or ()
    )
