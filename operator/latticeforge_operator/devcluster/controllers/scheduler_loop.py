"""The scheduler's loop: gives pods to nodes, oldest first, whenever room may have come up."""

from __future__ import annotations

from datetime import datetime

from latticeforge_operator.devcluster.controllers import scheduler
from latticeforge_operator.devcluster.controllers.loops import Controller, Request
from latticeforge_operator.devcluster.controllers.objects import (
    CLAIMS,
    NODES,
    PODS,
    condition,
    created_at,
    is_active,
    key_of,
    new_condition,
    with_condition,
)
from latticeforge_operator.devcluster.controllers.recorder import Event, Recorder
from latticeforge_operator.devcluster.resources import JsonObject
from latticeforge_operator.devcluster.store import Store

# Any change of a pod, a node or a claim may make room for any pod: there is one thing to reconcile.
_EVERYTHING: tuple[Request, ...] = (("", "pods"),)
_GATED = "Scheduling is blocked due to non-empty scheduling gates"


class Scheduler:
    """Places pods that have no node.

    Args:
        store: the API.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._recorder = Recorder(store, "default-scheduler")
        sources = dict.fromkeys((PODS, NODES, CLAIMS), lambda _: _EVERYTHING)
        self._controller = Controller(store, "scheduler", sources, self._reconcile)

    async def run(self) -> None:
        """Runs until cancelled."""
        await self._controller.run()

    def _reconcile(self, _: Request) -> datetime | None:
        pods = self._store.list(PODS)
        waiting = [pod for pod in pods if not pod["spec"].get("nodeName") and is_active(pod)]
        for pod in sorted(waiting, key=created_at):
            if pod["spec"].get("schedulingGates"):
                self._report(pod, "SchedulingGated", _GATED)
            else:
                self._schedule(pod)
        return None

    def _schedule(self, pod: JsonObject) -> None:
        namespace = pod["metadata"]["namespace"]
        claims = {claim["metadata"]["name"]: claim for claim in self._store.list(CLAIMS, namespace)}
        # Read again for every pod: the one placed before it has taken its share.
        pods = self._store.list(PODS)
        placement = scheduler.place(pod, self._store.list(NODES), pods, claims)
        if placement.node is None:
            if self._report(pod, "Unschedulable", placement.message):
                event = Event("Warning", "FailedScheduling", placement.message)
                self._recorder.record(pod, event)
            return
        self._bind(pod, placement.node)

    def _bind(self, pod: JsonObject, node: str) -> None:
        namespace, name = key_of(pod)
        bound = self._store.merge_patch(PODS, namespace, name, {"spec": {"nodeName": node}})
        self._set_condition(bound, "True")
        message = f"Successfully assigned {namespace}/{name} to {node}"
        self._recorder.record(pod, Event("Normal", "Scheduled", message))

    def _report(self, pod: JsonObject, reason: str, message: str) -> bool:
        """Says on the pod why it waits; returns whether that is news."""
        known = condition(pod, "PodScheduled") or {}
        if (known.get("reason"), known.get("message")) == (reason, message):
            return False
        self._set_condition(pod, "False", reason, message)
        return True

    def _set_condition(
        self, pod: JsonObject, status: str, reason: str = "", message: str = ""
    ) -> None:
        new = new_condition("PodScheduled", status, self._store.now(), reason, message)
        conditions = with_condition(pod.get("status", {}).get("conditions") or (), new)
        patch = {"status": {"conditions": conditions}}
        self._store.merge_patch(PODS, *key_of(pod), patch, subresource="status")
