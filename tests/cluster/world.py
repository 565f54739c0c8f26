"""A namespace with an operator and a Hub, on any cluster, and what tests do and see there."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import pytest
from tests.cluster import objects
from tests.cluster.objects import HubAddress, Manifest
from tests.cluster.release import Release, release
from tests.cluster.sites import Site
from tests.conformance.client import Api, Refused, connect, eventually
from tests.fixtures.hub_server import HubServer

from latticeforge_operator.api import API_VERSION
from latticeforge_operator.api.crds import all_crds

T = TypeVar("T")

MANAGER = "cluster-tests"
RBAC = "rbac.authorization.k8s.io/v1"
PLURALS = {
    "ConfigMap": "configmaps",
    "CustomResourceDefinition": "customresourcedefinitions",
    "Deployment": "deployments",
    "GPUPool": "gpupools",
    "Namespace": "namespaces",
    "Secret": "secrets",
    "Service": "services",
    "StackedTraining": "stackedtrainings",
}
CLUSTER_WIDE = {"CustomResourceDefinition", "GPUPool", "Namespace"}
CHILDREN = {
    "jobs": "batch/v1",
    "pods": "v1",
    "configmaps": "v1",
    "services": "v1",
    "serviceaccounts": "v1",
    "persistentvolumeclaims": "v1",
    "roles": RBAC,
    "rolebindings": RBAC,
}
"""Everything that a stack may own."""
ENDED = {"Failed", "Succeeded"}
_POLL_SECONDS = 0.1


class World:
    """One namespace of one cluster.

    Args:
        api: A client in it.
        site: The cluster.
        address: Where its Hub is.
        release: The operator that serves it.

    Attributes:
        pool: Name of its pool, and of everything else that lies in no namespace.
    """

    def __init__(self, api: Api, site: Site, address: HubAddress, release: Release) -> None:
        self.api, self.site, self.address, self.release = api, site, address, release
        self.pool = api.namespace

    # --- writing

    async def put(self, manifest: Manifest) -> None:
        """Server-side apply."""
        await self.api.apply(self._path(manifest), manifest, MANAGER, force="true")

    async def remove(self, kind: str, group_version: str, name: str) -> None:
        """Delete an object; absent is fine."""
        manifest = {"apiVersion": group_version, "kind": kind, "metadata": {"name": name}}
        try:
            await self.api.delete(self._path(manifest))
        except Refused as refused:
            if refused.code != 404:
                raise

    def _path(self, manifest: Manifest) -> str:
        kind = manifest["kind"]
        place = self.api.cluster if kind in CLUSTER_WIDE else self.api.ns
        return place(manifest["apiVersion"], PLURALS[kind], manifest["metadata"]["name"])

    async def apply(self, name: str, **fields: Any) -> None:
        """Apply a stack as its user would; `fields` are further fields of its spec."""
        spec = objects.stack(self.pool, f"lab/{name}", **fields)
        kind, metadata = "StackedTraining", {"name": name}
        await self.put(
            {"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "spec": spec}
        )

    async def delete_pod(self, pod: Manifest, **options: Any) -> None:
        """Delete a pod, as `kubectl delete pod` does."""
        await self.api.delete(self.api.ns("v1", "pods", pod["metadata"]["name"]), options)

    async def kill_operator(self) -> None:
        """Kill the operator without any warning; returns when another one runs."""
        (before,) = await self.operator_pods()
        await self.delete_pod(before, gracePeriodSeconds=0)

        async def replaced() -> bool:
            pods = await self.operator_pods()
            return any(
                pod["metadata"]["uid"] != before["metadata"]["uid"]
                and pod["status"].get("phase") == "Running"
                for pod in pods
            )

        await self.until("another operator", replaced)

    # --- reading

    async def operator_pods(self) -> list[Manifest]:
        """The operator's pods."""
        path = f"api/v1/namespaces/{self.release.namespace}/pods"
        answer = await self.api.get(path, labelSelector="app.kubernetes.io/component=operator")
        items: list[Manifest] = answer["items"]
        return items

    async def listed(self, plural: str, **query: str) -> list[Manifest]:
        """Objects of a kind in the namespace."""
        answer = await self.api.get(self.api.ns(CHILDREN[plural], plural), **query)
        items: list[Manifest] = answer["items"]
        return items

    async def children(self, name: str, plural: str) -> list[Manifest]:
        """Objects of a kind that belong to a stack."""
        return await self.listed(plural, labelSelector=f"latticeforge.dev/training={name}")

    async def left_of(self, name: str) -> list[str]:
        """Whatever there still is of a stack."""
        return [
            f"{plural}/{child['metadata']['name']}"
            for plural in CHILDREN
            for child in await self.children(name, plural)
        ]

    async def active_pods(self, name: str) -> list[Manifest]:
        """Pods of a stack that hold their resources."""
        pods = await self.children(name, "pods")
        return [p for p in pods if p["status"].get("phase") not in {"Succeeded", "Failed"}]

    async def status(self, name: str) -> dict[str, Any]:
        """A stack's status."""
        stack = await self.api.get(self.api.ns(API_VERSION, "stackedtrainings", name))
        status: dict[str, Any] = stack.get("status") or {}
        return status

    async def step(self, name: str, step: str = "math/train") -> dict[str, Any]:
        """A step's part of a stack's status; empty before it has one."""
        steps = (await self.status(name)).get("steps") or []
        return next((found for found in steps if found["name"] == step), {})

    async def meters(self, name: str) -> dict[str, Any]:
        """The gauges of the train step while it runs."""
        return (await self.step(name)).get("meters") or {}

    async def hub(self, path: str) -> Any:
        """What the Hub answers, to anybody."""
        url = self.site.hub_url(self.api.url, self.api.namespace, self.address)
        async with self.api.session.get(f"{url}/{path}") as answer:
            return json.loads(await answer.text()) if answer.status < 400 else None

    # --- waiting

    async def until(self, what: str, condition: Callable[[], Awaitable[T]]) -> T:
        """Wait until a condition holds; returns its value, or tells where everything stands."""
        deadline = time.monotonic() + self.site.patience
        while not (found := await condition()):
            if time.monotonic() > deadline:
                pytest.fail(f"never came: {what}\n{await self._story()}")
            await asyncio.sleep(_POLL_SECONDS)
        return found

    async def reaches(self, name: str, phase: str) -> dict[str, Any]:
        """Wait for a phase; returns the status with it."""

        async def reached() -> dict[str, Any] | None:
            status = await self.status(name)
            found = status.get("phase")
            if found in ENDED - {phase}:
                pytest.fail(f"{name} {found}: {status['message']}\n{await self._story()}")
            return status if found == phase else None

        found = await self.until(f"{name} {phase}", reached)
        return found or {}

    async def trains(self, name: str, beyond: int = 0) -> int:
        """Wait until training has made more steps than that; returns how many."""

        async def made() -> int:
            step: int = (await self.meters(name)).get("step", 0)
            return step if step > beyond else 0

        return await self.until(f"{name} trains beyond step {beyond}", made)

    async def _story(self) -> str:
        """Where every stack stands, and what the pods said last."""
        answer = await self.api.get(self.api.ns(API_VERSION, "stackedtrainings"))
        lines = [
            f"{stack['metadata']['name']}: {status.get('phase')}: {status.get('message')}"
            for stack in answer["items"]
            for status in [stack.get("status") or {}]
        ]
        for pod in await self.listed("pods"):
            name, phase = pod["metadata"]["name"], pod["status"].get("phase")
            lines += [f"--- {name} ({phase})", await self._log(name)]
        return "\n".join(lines)

    async def _log(self, pod: str) -> str:
        url = f"{self.api.url}/{self.api.ns('v1', 'pods', pod, 'log')}"
        async with self.api.session.get(url, params={"tailLines": "25"}) as answer:
            return await answer.text()


@asynccontextmanager
async def world_on(site: Site, model: Path, data: Path) -> AsyncIterator[World]:
    """A namespace with operator and Hub, both running; everything is removed in the end.

    Args:
        site: The cluster.
        model: Folder of the base model.
        data: Folder of the data set.
    """
    name = f"latticeforge-{uuid.uuid4().hex[:8]}"
    address = site.hub_address(name)
    # The definitions are everybody's on this cluster, the release is this namespace's alone.
    mine: dict[str, Any] = {
        "watchNamespaces": [name],
        "crds": {"install": False},
        "rbac": {"aggregate": False},
    }
    operator = release(site, "latticeforge", name, address.url, **mine)
    async with connect(site.kubeconfig) as (session, url):
        world = World(Api(session, url, name), site, address, operator)
        try:
            for crd in all_crds().values():
                await world.put(crd)
            await eventually(lambda: _is_served(world.api))
            await world.put(objects.pool(world.pool))
            await furnish(world, model, data)
            await operator.put()
            yield world
        finally:
            await operator.remove()
            await _remove(world)


async def furnish(world: World, model: Path, data: Path) -> None:
    """Make the namespace with token and Hub."""
    image, address = world.site.operator_image, world.address
    for manifest in (
        objects.namespace(world.api.namespace),
        objects.token(HubServer.token),
        *objects.hub(address, image, model, data),
    ):
        await world.put(manifest)

    async def hub_answers() -> Any:
        try:
            return await world.hub("api/models/lab/tiny")
        except aiohttp.ClientConnectionError:  # its pod is starting
            return None

    await world.until("the Hub", hub_answers)


async def _is_served(api: Api) -> bool:
    try:
        await api.get(api.ns(API_VERSION, "stackedtrainings"))
    except Refused:
        return False
    return True


async def _remove(world: World) -> None:
    """Removes all but the CRDs and the release: other stacks of the cluster may be there."""
    await world.remove("Namespace", "v1", world.api.namespace)
    await world.remove("GPUPool", API_VERSION, world.pool)
