"""The Deployment controller's loop: reads a Deployment and its pods, decides, writes."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from latticeforge_operator.devcluster.controllers import deployments
from latticeforge_operator.devcluster.controllers.loops import Controller, Request
from latticeforge_operator.devcluster.controllers.objects import (
    DEPLOYMENTS,
    PODS,
    controller_uid,
    find,
    key_of,
)
from latticeforge_operator.devcluster.resources import JsonObject
from latticeforge_operator.devcluster.store import Store


class DeploymentController:
    """Runs Deployments.

    Args:
        store: the API.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        sources = {DEPLOYMENTS: lambda found: [key_of(found)], PODS: _deployment_of}
        self._controller = Controller(store, "deployment controller", sources, self._reconcile)

    async def run(self) -> None:
        """Runs until cancelled."""
        await self._controller.run()

    def _reconcile(self, request: Request) -> datetime | None:
        deployment = find(self._store, DEPLOYMENTS, *request)
        if deployment is None:
            return None
        uid = deployment["metadata"]["uid"]
        listed = self._store.list(PODS, request[0])
        pods = [pod for pod in listed if controller_uid(pod) == uid]
        rollout = deployments.decide(deployment, pods, self._store.now())
        if rollout.status != deployment.get("status"):
            self._store.patch(
                DEPLOYMENTS,
                *request,
                lambda live: {**live, "status": rollout.status},
                subresource="status",
            )
        for name in rollout.delete:
            self._store.delete(PODS, request[0], name)
        for pod in rollout.create:
            self._store.create(PODS, request[0], pod)
        return None


def _deployment_of(pod: JsonObject) -> Iterable[Request]:
    for reference in pod["metadata"].get("ownerReferences") or ():
        if reference.get("controller") and reference["kind"] == "Deployment":
            yield pod["metadata"]["namespace"], reference["name"]
