"""What a Deployment does next: a pure function of the Deployment, its pods and the time.

There are no ReplicaSets in between, and every strategy is carried out as Recreate: old pods end
before new ones start, which is what a single-replica operator asks for anyway.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from latticeforge_operator.devcluster.controllers.objects import (
    is_active,
    is_finished,
    is_true,
    new_condition,
    owner_reference,
    with_condition,
)
from latticeforge_operator.devcluster.resources import JsonObject, clone

HASH = "pod-template-hash"


@dataclass(frozen=True)
class Rollout:
    """What to do for one Deployment.

    Attributes:
        status: its whole new status.
        delete: names of pods to delete.
        create: pods to create.
    """

    status: JsonObject
    delete: tuple[str, ...] = ()
    create: tuple[JsonObject, ...] = ()


def template_hash(deployment: JsonObject) -> str:
    """Tells the pods of one version of the template from those of another."""
    template = json.dumps(deployment["spec"]["template"], sort_keys=True)
    return hashlib.sha256(template.encode()).hexdigest()[:10]


def decide(deployment: JsonObject, pods: Sequence[JsonObject], now: datetime) -> Rollout:
    """Decides what happens to a Deployment's pods.

    Args:
        deployment: the Deployment.
        pods: all pods that it controls.
        now: the time.
    """
    version, wanted = template_hash(deployment), deployment["spec"].get("replicas", 1)
    current = [pod for pod in pods if is_active(pod) and _version(pod) == version]
    old = [pod for pod in pods if is_active(pod) and _version(pod) != version]
    over = [pod for pod in pods if is_finished(pod)]
    # An old pod that is still ending blocks the new ones, as Recreate promises.
    blocked = any(not is_finished(pod) for pod in pods if _version(pod) != version)
    missing = 0 if blocked or "deletionTimestamp" in deployment["metadata"] else wanted
    create = [_make_pod(deployment, version) for _ in range(missing - len(current))]
    delete = [*old, *over, *current[wanted:]]
    return Rollout(
        status=_status(deployment, current[:wanted], len(old), wanted, now),
        delete=tuple(pod["metadata"]["name"] for pod in delete),
        create=tuple(create),
    )


def _version(pod: JsonObject) -> str | None:
    return (pod["metadata"].get("labels") or {}).get(HASH)


def _make_pod(deployment: JsonObject, version: str) -> JsonObject:
    template = clone(deployment["spec"]["template"])
    metadata = template.get("metadata") or {}
    return {
        "metadata": {
            "generateName": f"{deployment['metadata']['name']}-{version}-"[:58],
            "labels": {**(metadata.get("labels") or {}), HASH: version},
            "annotations": metadata.get("annotations") or {},
            "ownerReferences": [owner_reference(deployment)],
        },
        "spec": template["spec"],
    }


def _status(
    deployment: JsonObject, current: list[JsonObject], old: int, wanted: int, now: datetime
) -> JsonObject:
    ready = sum(is_true(pod, "Ready") for pod in current)
    done = ready == wanted and old == 0
    available = (
        ("True", "MinimumReplicasAvailable")
        if ready >= wanted
        else (
            "False",
            "MinimumReplicasUnavailable",
        )
    )
    conditions = deployment.get("status", {}).get("conditions") or []
    for kind, (status, reason) in (
        ("Available", available),
        ("Progressing", ("True", "NewReplicaSetAvailable" if done else "ReplicaSetUpdated")),
    ):
        conditions = with_condition(conditions, new_condition(kind, status, now, reason))
    return {
        "observedGeneration": deployment["metadata"].get("generation", 1),
        "replicas": len(current) + old,
        "updatedReplicas": len(current),
        "readyReplicas": ready,
        "availableReplicas": ready,
        "unavailableReplicas": max(0, wanted - ready),
        "conditions": conditions,
    }
