"""The columns that `kubectl get` shows of built-in kinds, in the words of the real server."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from latticeforge_operator.devcluster.ages import age, human_duration
from latticeforge_operator.devcluster.builtins import JOBS, NAMESPACES, PODS
from latticeforge_operator.devcluster.resources import Column, JsonObject, ResourceKey

Cells = Callable[[JsonObject, datetime], list[Any]]


def _columns(*names: str, wide: tuple[str, ...] = ()) -> tuple[Column, ...]:
    def column(name: str, priority: int) -> Column:
        kind = "integer" if name == "Data" else "string"
        return Column(name, kind, "", name, "name" if name == "Name" else "", priority)

    return tuple(column(name, 0) for name in names) + tuple(column(name, 1) for name in wide)


def _name(obj: JsonObject) -> str:
    return str(obj["metadata"]["name"])


def _age(obj: JsonObject, now: datetime) -> str:
    return age(obj["metadata"].get("creationTimestamp"), now)


def _pod(obj: JsonObject, now: datetime) -> list[Any]:
    status = obj.get("status", {})
    containers = status.get("containerStatuses") or []
    ready = sum(1 for container in containers if container.get("ready"))
    total = len(obj.get("spec", {}).get("containers") or [])
    restarts = sum(container.get("restartCount", 0) for container in containers)
    address, node = status.get("podIP"), obj.get("spec", {}).get("nodeName")
    shown = [_name(obj), f"{ready}/{total}", _pod_status(obj), str(restarts), _age(obj, now)]
    return [*shown, address or "<none>", node or "<none>"]


def _pod_status(obj: JsonObject) -> str:
    if obj["metadata"].get("deletionTimestamp"):
        return "Terminating"
    status = obj.get("status", {})
    for container in status.get("containerStatuses") or []:
        state = container.get("state") or {}
        for phase in ("waiting", "terminated"):
            if reason := (state.get(phase) or {}).get("reason"):
                return str(reason)
    return str(status.get("reason") or status.get("phase") or "Unknown")


def _job(obj: JsonObject, now: datetime) -> list[Any]:
    spec, status = obj.get("spec", {}), obj.get("status", {})
    wanted = spec.get("completions") or spec.get("parallelism") or 1
    completions = f"{status.get('succeeded', 0)}/{wanted}"
    shown = [_name(obj), _job_status(obj), completions, _job_duration(status, now), _age(obj, now)]
    containers = spec.get("template", {}).get("spec", {}).get("containers") or []
    names = ",".join(container["name"] for container in containers)
    return [*shown, names, ",".join(container.get("image", "") for container in containers)]


def _job_status(obj: JsonObject) -> str:
    conditions = obj.get("status", {}).get("conditions") or []
    true = {condition["type"] for condition in conditions if condition.get("status") == "True"}
    for shown in ("Complete", "Failed"):
        if shown in true:
            return shown
    if obj["metadata"].get("deletionTimestamp"):
        return "Terminating"
    for shown in ("Suspended", "FailureTarget", "SuccessCriteriaMet"):
        if shown in true:
            return shown
    return "Running"


def _job_duration(status: JsonObject, now: datetime) -> str:
    if "startTime" not in status:
        return ""
    start = datetime.fromisoformat(status["startTime"])
    end = datetime.fromisoformat(status["completionTime"]) if "completionTime" in status else now
    return human_duration((end - start).total_seconds())


def _event(obj: JsonObject, now: datetime) -> list[Any]:
    about = obj.get("involvedObject", {})
    seen = obj.get("lastTimestamp") or obj.get("eventTime") or obj["metadata"]["creationTimestamp"]
    who = f"{about.get('kind', '').lower()}/{about.get('name', '')}"
    return [age(seen, now), obj.get("type"), obj.get("reason"), who, obj.get("message", "").strip()]


def _config_map(obj: JsonObject, now: datetime) -> list[Any]:
    size = len(obj.get("data") or ()) + len(obj.get("binaryData") or ())
    return [_name(obj), size, _age(obj, now)]


def _secret(obj: JsonObject, now: datetime) -> list[Any]:
    return [_name(obj), obj.get("type"), len(obj.get("data") or ()), _age(obj, now)]


def _namespace(obj: JsonObject, now: datetime) -> list[Any]:
    return [_name(obj), obj.get("status", {}).get("phase"), _age(obj, now)]


def _node(obj: JsonObject, now: datetime) -> list[Any]:
    status = obj.get("status", {})
    conditions = {c["type"]: c["status"] for c in status.get("conditions") or []}
    ready = "Ready" if conditions.get("Ready") == "True" else "NotReady"
    version = status.get("nodeInfo", {}).get("kubeletVersion")
    return [_name(obj), ready, "<none>", _age(obj, now), version]


def _claim(obj: JsonObject, now: datetime) -> list[Any]:
    spec, status = obj.get("spec", {}), obj.get("status", {})
    capacity = status.get("capacity", {}).get("storage", "")
    modes = ",".join("".join(filter(str.isupper, mode)) for mode in status.get("accessModes") or [])
    volume, storage_class = spec.get("volumeName", ""), spec.get("storageClassName", "")
    shown = [_name(obj), status.get("phase"), volume, capacity, modes, storage_class]
    return [*shown, _age(obj, now)]


def _service(obj: JsonObject, now: datetime) -> list[Any]:
    spec = obj.get("spec", {})
    ports = ",".join(f"{p['port']}/{p.get('protocol', 'TCP')}" for p in spec.get("ports") or [])
    address = spec.get("clusterIP") or "<none>"
    kind = spec.get("type", "ClusterIP")
    return [_name(obj), kind, address, "<none>", ports or "<none>", _age(obj, now)]


PRINTERS: dict[ResourceKey, tuple[tuple[Column, ...], Cells]] = {
    PODS: (
        _columns("Name", "Ready", "Status", "Restarts", "Age", wide=("IP", "Node")),
        _pod,
    ),
    JOBS: (
        _columns("Name", "Status", "Completions", "Duration", "Age", wide=("Containers", "Images")),
        _job,
    ),
    NAMESPACES: (_columns("Name", "Status", "Age"), _namespace),
    ResourceKey("v1", "configmaps"): (_columns("Name", "Data", "Age"), _config_map),
    ResourceKey("v1", "secrets"): (_columns("Name", "Type", "Data", "Age"), _secret),
    ResourceKey("v1", "events"): (
        _columns("Last Seen", "Type", "Reason", "Object", "Message"),
        _event,
    ),
    ResourceKey("v1", "nodes"): (_columns("Name", "Status", "Roles", "Age", "Version"), _node),
    ResourceKey("v1", "persistentvolumeclaims"): (
        _columns("Name", "Status", "Volume", "Capacity", "Access Modes", "StorageClass", "Age"),
        _claim,
    ),
    ResourceKey("v1", "services"): (
        _columns("Name", "Type", "Cluster-IP", "External-IP", "Port(s)", "Age"),
        _service,
    ),
}
"""Columns and cells of each built-in kind that is shown by more than its name and age."""
