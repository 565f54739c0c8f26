"""Jobs and pods for conformance tests, small enough for any cluster.

`LATTICEFORGE_TEST_IMAGE` names the image on a real cluster: anything with a POSIX shell.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from tests.conformance.client import Api, eventually

from latticeforge_operator.devcluster.cluster import Backoff, DevCluster
from latticeforge_operator.devcluster.controllers.nodes import NodeCapacity

IMAGE = os.environ.get("LATTICEFORGE_TEST_IMAGE", "busybox:1.36")
# A real cluster pulls images and backs off for ten seconds.
PATIENCE = 120


@asynccontextmanager
async def devcluster(folder: Path) -> AsyncIterator[Path]:
    """Starts a devcluster that loses no time; yields its kubeconfig."""
    quick = timedelta(milliseconds=50)
    cluster = await DevCluster.start(
        data_dir=folder,
        capacity=NodeCapacity(cpu=2, memory_bytes=8 << 30, gpus=2),
        backoff=Backoff(job=quick, container=quick),
    )
    try:
        yield cluster.kubeconfig
    finally:
        await cluster.aclose()


def container(script: str, **fields: Any) -> dict[str, Any]:
    return {"name": "main", "image": IMAGE, "command": ["sh", "-c", script], **fields}


def pod(script: str, *, main: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    """A pod named `p` that runs a script once; `main` adds to its container."""
    containers = [container(script, **(main or {}))]
    defaults = {"restartPolicy": "Never", "terminationGracePeriodSeconds": 5}
    return {"metadata": {"name": "p"}, "spec": {**defaults, "containers": containers, **spec}}


def job(script: str, *, main: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    """A Job named `j` whose pods run a script."""
    template = {"spec": pod(script, main=main)["spec"]}
    return {"metadata": {"name": "j"}, "spec": {"template": template, **spec}}


class Workloads:
    """Creates and follows Jobs and pods in a test's namespace."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.pod_path = api.ns("v1", "pods", "p")
        self.job_path = api.ns("batch/v1", "jobs", "j")

    async def start_job(self, obj: dict[str, Any]) -> None:
        await self.api.create(self.api.ns("batch/v1", "jobs"), obj)

    async def start_pod(self, obj: dict[str, Any]) -> None:
        await self.api.create(self.api.ns("v1", "pods"), obj)

    async def config_map(self, name: str, **data: str) -> None:
        body = {"metadata": {"name": name}, "data": data}
        await self.api.create(self.api.ns("v1", "configmaps"), body)

    async def run_pod(self, obj: dict[str, Any]) -> dict[str, Any]:
        """Runs a pod to its end; returns it."""
        await self.start_pod(obj)
        return await self.pod_in("Succeeded", "Failed")

    async def pod_in(self, *phases: str) -> dict[str, Any]:
        """Waits for the pod to be in one of these phases; returns it."""

        async def reached() -> dict[str, Any] | None:
            found = await self.api.get(self.pod_path)
            return found if found["status"].get("phase") in phases else None

        found: dict[str, Any] = await eventually(reached, PATIENCE)
        return found

    async def job_with(self, *conditions: str) -> dict[str, Any]:
        """Waits for the Job to have one of these conditions; returns it."""

        async def reached() -> dict[str, Any] | None:
            found = await self.api.get(self.job_path)
            return found if conditions_of(found).keys() & set(conditions) else None

        found: dict[str, Any] = await eventually(reached, PATIENCE)
        return found

    async def pods(self) -> list[dict[str, Any]]:
        """The Job's pods."""
        path = self.api.ns("v1", "pods")
        listed = await self.api.get(path, labelSelector="batch.kubernetes.io/job-name=j")
        found: list[dict[str, Any]] = listed["items"]
        return found

    async def running_pods(self, count: int) -> list[dict[str, Any]]:
        """Waits until so many of the Job's pods run; returns them."""

        async def reached() -> list[dict[str, Any]] | None:
            running = [pod for pod in await self.pods() if pod["status"]["phase"] == "Running"]
            return running if len(running) == count else None

        found: list[dict[str, Any]] = await eventually(reached, PATIENCE)
        return found

    async def log(self, pod: str = "p", **query: Any) -> str:
        """A pod's log."""
        path = f"{self.api.url}/{self.api.ns('v1', 'pods', pod, 'log')}"
        async with self.api.session.get(path, params=query) as response:
            text = await response.text()
            assert response.status == 200, text
            return text

    async def logged(self, word: str, pod: str = "p") -> None:
        """Waits until a pod's log holds a word."""

        async def reached() -> bool:
            path = f"{self.api.url}/{self.api.ns('v1', 'pods', pod, 'log')}"
            async with self.api.session.get(path) as response:
                return word in await response.text()

        await eventually(reached, PATIENCE)


def conditions_of(obj: dict[str, Any]) -> dict[str, str]:
    """Reasons of an object's conditions that are True."""
    found = obj.get("status", {}).get("conditions") or []
    return {c["type"]: c.get("reason", "") for c in found if c["status"] == "True"}
