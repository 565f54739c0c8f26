"""The eviction subresource of pods: a deletion that says it was no fault of the pod's."""

from __future__ import annotations

from latticeforge_operator.devcluster.builtins import PODS
from latticeforge_operator.devcluster.metadata import timestamp
from latticeforge_operator.devcluster.resources import JsonObject
from latticeforge_operator.devcluster.store import Store, WriteOptions


def evict(store: Store, namespace: str, name: str, eviction: JsonObject) -> None:
    """Marks a pod as a disruption target, then deletes it with its grace period."""
    pod = store.get(PODS, namespace, name)
    target = {
        "type": "DisruptionTarget",
        "status": "True",
        "reason": "EvictionByEvictionAPI",
        "message": "Eviction API: evicting",
        "lastTransitionTime": timestamp(store.now()),
    }
    conditions = pod.get("status", {}).get("conditions") or []
    others = [condition for condition in conditions if condition["type"] != target["type"]]
    store.merge_patch(
        PODS,
        namespace,
        name,
        {"status": {"conditions": [*others, target]}},
        subresource="status",
        options=WriteOptions(manager="kube-apiserver"),
    )
    grace = (eviction.get("deleteOptions") or {}).get("gracePeriodSeconds")
    store.delete(PODS, namespace, name, grace_period_seconds=grace)
