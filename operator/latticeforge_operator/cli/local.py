"""A cluster on this machine with an operator beside it, both gone when the block ends."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from latticeforge_operator.cli import provision
from latticeforge_operator.cli.access import Access
from latticeforge_operator.cli.errors import CommandError
from latticeforge_operator.cli.operator_process import OperatorProcess
from latticeforge_operator.devcluster.cluster import DataFolderInUseError, DevCluster

_LOOPBACK = "127.0.0.1"


class LocalCluster:
    """A running one-machine cluster.

    Args:
        cluster: The API server and kubelet, in this process.
        access: How to ask it.
        operator: The operator, a process of its own.
    """

    def __init__(self, cluster: DevCluster, access: Access, operator: OperatorProcess) -> None:
        self.kubeconfig = cluster.kubeconfig
        self.access, self.operator = access, operator
        self._cluster = cluster
        self.at_once = False
        """Whether to end without waiting for anything."""

    async def aclose(self) -> None:
        """End operator, pods and API server, in this order."""
        await self.operator.aclose(at_once=self.at_once)
        if self.at_once:
            await self._kill_pods()
        await self.access.aclose()
        await self._cluster.aclose()

    async def _kill_pods(self) -> None:
        pods = await self.access.get("/api/v1/pods") or {}
        for pod in pods.get("items") or []:
            meta = pod["metadata"]
            path = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}"
            await self.access.delete(path, grace_seconds=0)


@asynccontextmanager
async def local_cluster(
    state: Path, namespace: str, tell: Callable[[str], None]
) -> AsyncIterator[LocalCluster]:
    """Start a cluster with LatticeForge's kinds and an operator.

    Args:
        state: Folder for its objects, logs and pods.
        namespace: What the operator serves.
        tell: Called with a sentence when the operator had to be started again.
    """
    bypass_proxies(_LOOPBACK)
    try:
        cluster = await DevCluster.start(data_dir=state / "devcluster")
    except DataFolderInUseError as error:
        raise CommandError(
            f"another `latticeforge run` is using {state.parent}; wait for it, interrupt it, "
            "or use another --workdir"
        ) from error
    access = await Access.connect(cluster.kubeconfig)
    operator = OperatorProcess(cluster.kubeconfig, namespace, state / "operator.log", tell)
    local = LocalCluster(cluster, access, operator)
    try:
        await apply_all(access, provision.crds())
        await operator.start()
        yield local
    finally:
        await asyncio.shield(local.aclose())


async def apply_all(access: Access, objects: list[provision.Placed]) -> None:
    """Apply objects in order."""
    for path, manifest in objects:
        await access.apply(path, manifest)


def bypass_proxies(host: str) -> None:
    """Let this process and its children reach a host without the proxy that the user has set."""
    for name in ("NO_PROXY", "no_proxy"):
        known = os.environ.get(name, "")
        if host not in known.split(","):
            os.environ[name] = f"{known},{host}".lstrip(",")
