"""Where a pod runs, as the default scheduler decides it: resources, selectors, taints, volumes.

Affinity, spreading, priorities and preemption are left out: with one node there is nothing to
prefer. A pod that fits nowhere waits, and is told why in the words of the real scheduler.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from latticeforge_operator.devcluster.controllers.objects import is_finished
from latticeforge_operator.devcluster.controllers.quantities import parse_quantity
from latticeforge_operator.devcluster.resources import JsonObject

Resources = dict[str, Fraction]


@dataclass(frozen=True)
class Placement:
    """The chosen node's name, or None and why."""

    node: str | None
    message: str = ""


def requests(pod: JsonObject) -> Resources:
    """What a pod takes of a node: its containers together, or its hungriest init container.

    A container without a request for a resource that it limits requests its limit.
    """
    spec = pod["spec"]
    total: defaultdict[str, Fraction] = defaultdict(Fraction)
    for container in spec["containers"]:
        _add(total, _container_requests(container))
    for container in spec.get("initContainers") or ():
        for name, amount in _container_requests(container).items():
            total[name] = max(total[name], amount)
    _add(total, _parsed(spec.get("overhead") or {}))
    return {name: amount for name, amount in total.items() if amount}


def _container_requests(container: JsonObject) -> Resources:
    resources = container.get("resources") or {}
    wanted = {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
    return _parsed(wanted)


def _parsed(quantities: Mapping[str, str]) -> Resources:
    return {name: parse_quantity(amount) for name, amount in quantities.items()}


def _add(total: defaultdict[str, Fraction], amounts: Resources) -> None:
    for name, amount in amounts.items():
        total[name] += amount


def place(
    pod: JsonObject,
    nodes: Sequence[JsonObject],
    pods: Sequence[JsonObject],
    claims: Mapping[str, JsonObject],
) -> Placement:
    """Chooses a node for a pod.

    Args:
        pod: the pod to place.
        nodes: all nodes.
        pods: all pods; those on a node that have not finished hold what they request.
        claims: the PersistentVolumeClaims of the pod's namespace by name.
    """
    total = f"0/{len(nodes)} nodes are available"
    if fault := _volume_fault(pod, claims):
        return Placement(None, f"{total}: {fault}.")
    if not nodes:
        return Placement(None, "no nodes available to schedule pods")
    reasons: Counter[str] = Counter()
    for node in nodes:
        faults = _node_faults(pod, node, pods)
        if not faults:
            return Placement(node["metadata"]["name"])
        reasons.update(faults)
    told = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
    return Placement(None, f"{total}: {told}.")


def _volume_fault(pod: JsonObject, claims: Mapping[str, JsonObject]) -> str | None:
    names = [
        volume["persistentVolumeClaim"]["claimName"]
        for volume in pod["spec"].get("volumes") or ()
        if "persistentVolumeClaim" in volume
    ]
    for name in names:
        if name not in claims:
            return f'persistentvolumeclaim "{name}" not found'
        if "deletionTimestamp" in claims[name]["metadata"]:
            return f'persistentvolumeclaim "{name}" is being deleted'
    if any(claims[name].get("status", {}).get("phase") != "Bound" for name in names):
        return "pod has unbound immediate PersistentVolumeClaims"
    return None


def _node_faults(pod: JsonObject, node: JsonObject, pods: Sequence[JsonObject]) -> list[str]:
    labels = node["metadata"].get("labels") or {}
    if node["spec"].get("unschedulable"):
        return ["node(s) were unschedulable"]
    selector = pod["spec"].get("nodeSelector") or {}
    if any(labels.get(name) != value for name, value in selector.items()):
        return ["node(s) didn't match Pod's node affinity/selector"]
    if taint := _untolerated(pod, node):
        shown = f"{taint['key']}: {taint.get('value', '')}"
        return [f"node(s) had untolerated taint {{{shown}}}"]
    return _shortages(pod, node, pods)


def _untolerated(pod: JsonObject, node: JsonObject) -> JsonObject | None:
    tolerations = pod["spec"].get("tolerations") or ()
    for taint in node["spec"].get("taints") or ():
        repels = taint["effect"] in {"NoSchedule", "NoExecute"}
        if repels and not any(_tolerates(toleration, taint) for toleration in tolerations):
            found: JsonObject = taint
            return found
    return None


def _tolerates(toleration: JsonObject, taint: JsonObject) -> bool:
    if toleration.get("effect") not in {None, "", taint["effect"]}:
        return False
    if toleration.get("key") not in {None, "", taint["key"]}:
        return False
    if toleration.get("operator", "Equal") == "Exists":
        return True
    same_value = toleration.get("value", "") == taint.get("value", "")
    return bool(toleration.get("key")) and same_value


def _shortages(pod: JsonObject, node: JsonObject, pods: Sequence[JsonObject]) -> list[str]:
    capacity = node.get("status", {}).get("allocatable") or {}
    name = node["metadata"]["name"]
    held: defaultdict[str, Fraction] = defaultdict(Fraction)
    for other in pods:
        if other["spec"].get("nodeName") == name and not is_finished(other):
            _add(held, {**requests(other), "pods": Fraction(1)})
    wanted = requests(pod)
    short = [
        f"Insufficient {resource}"
        for resource, amount in wanted.items()
        if held[resource] + amount > parse_quantity(capacity.get(resource, "0"))
    ]
    if "pods" in capacity and held["pods"] + 1 > parse_quantity(capacity["pods"]):
        short.append("Too many pods")
    return short
