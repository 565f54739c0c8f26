"""What the controllers and the kubelet read off objects: times, conditions, owners, pod phases."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from latticeforge_operator.devcluster.errors import ApiError
from latticeforge_operator.devcluster.metadata import timestamp
from latticeforge_operator.devcluster.resources import JsonObject, ResourceKey
from latticeforge_operator.devcluster.store import Store

PODS = ResourceKey("v1", "pods")
NODES = ResourceKey("v1", "nodes")
EVENTS = ResourceKey("v1", "events")
SECRETS = ResourceKey("v1", "secrets")
SERVICE_ACCOUNTS = ResourceKey("v1", "serviceaccounts")
CONFIG_MAPS = ResourceKey("v1", "configmaps")
VOLUMES = ResourceKey("v1", "persistentvolumes")
CLAIMS = ResourceKey("v1", "persistentvolumeclaims")
JOBS = ResourceKey("batch/v1", "jobs")
DEPLOYMENTS = ResourceKey("apps/v1", "deployments")

FINISHED = frozenset({"Succeeded", "Failed"})


def parse_time(text: str) -> datetime:
    """Reads a `metav1.Time`."""
    return datetime.fromisoformat(text).astimezone(UTC)


def created_at(obj: JsonObject) -> datetime:
    """When the object was created."""
    return parse_time(obj["metadata"]["creationTimestamp"])


def is_deleted(obj: JsonObject) -> bool:
    """Whether deletion of the object has begun."""
    return "deletionTimestamp" in obj["metadata"]


def phase(pod: JsonObject) -> str:
    """The pod's phase; Pending before anyone has set it."""
    return str(pod.get("status", {}).get("phase") or "Pending")


def is_finished(pod: JsonObject) -> bool:
    """Whether all containers of the pod have ended for good."""
    return phase(pod) in FINISHED


def is_active(pod: JsonObject) -> bool:
    """Whether the pod runs or will run: neither finished nor being deleted."""
    return not is_finished(pod) and not is_deleted(pod)


def condition(obj: JsonObject, kind: str) -> JsonObject | None:
    """The object's status condition of this type, if there is one."""
    conditions: Iterable[JsonObject] = obj.get("status", {}).get("conditions") or ()
    return next((found for found in conditions if found["type"] == kind), None)


def is_true(obj: JsonObject, kind: str) -> bool:
    """Whether the object has this condition with status True."""
    found = condition(obj, kind)
    return found is not None and found["status"] == "True"


def new_condition(
    kind: str, status: str, now: datetime, reason: str = "", message: str = ""
) -> JsonObject:
    """Makes a status condition as pods and Jobs carry it."""
    made = {"type": kind, "status": status, "lastTransitionTime": timestamp(now)}
    if reason:
        made["reason"] = reason
    if message:
        made["message"] = message
    return made


def with_condition(conditions: Sequence[JsonObject], new: JsonObject) -> list[JsonObject]:
    """Adds or replaces a condition; its transition time moves only when its status does."""
    replaced = []
    found = False
    for old in conditions:
        if old["type"] != new["type"]:
            replaced.append(old)
            continue
        found = True
        same = old["status"] == new["status"]
        since = {"lastTransitionTime": old["lastTransitionTime"]} if same else {}
        replaced.append({**new, **since})
    return replaced if found else [*replaced, new]


def controller_uid(obj: JsonObject) -> str | None:
    """The uid of the object's managing owner."""
    references = obj["metadata"].get("ownerReferences") or ()
    return next((ref["uid"] for ref in references if ref.get("controller")), None)


def owner_reference(owner: JsonObject) -> JsonObject:
    """A reference that makes `owner` the managing owner of what carries it."""
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def key_of(obj: JsonObject) -> tuple[str, str]:
    """Namespace (empty for cluster-scoped objects) and name."""
    return obj["metadata"].get("namespace", ""), obj["metadata"]["name"]


def find(store: Store, key: ResourceKey, namespace: str, name: str) -> JsonObject | None:
    """The object, or None when there is none."""
    try:
        return store.get(key, namespace, name)
    except ApiError as error:
        if error.code != 404:
            raise
        return None


def container_specs(pod: JsonObject) -> list[dict[str, Any]]:
    """The pod's init containers, then its containers."""
    spec = pod["spec"]
    return [*(spec.get("initContainers") or ()), *spec["containers"]]
