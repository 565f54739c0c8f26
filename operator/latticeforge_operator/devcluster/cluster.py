"""The devcluster as one thing: API server, controllers, scheduler and kubelet in one process.

Nothing but volumes outlives it: objects are in memory, and pods are its children.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from latticeforge_operator.devcluster.controllers.deployment_controller import (
    DeploymentController,
)
from latticeforge_operator.devcluster.controllers.job_controller import JobController
from latticeforge_operator.devcluster.controllers.jobs import BACKOFF_BASE
from latticeforge_operator.devcluster.controllers.nodes import NodeCapacity, make_node
from latticeforge_operator.devcluster.controllers.objects import NODES
from latticeforge_operator.devcluster.controllers.scheduler_loop import Scheduler
from latticeforge_operator.devcluster.controllers.volume_controller import VolumeController
from latticeforge_operator.devcluster.controllers.volumes import PERSISTENT_VOLUME
from latticeforge_operator.devcluster.kubelet.containers import RESTART_BACKOFF
from latticeforge_operator.devcluster.kubelet.identity import ApiAccess
from latticeforge_operator.devcluster.kubelet.kubelet import Kubelet
from latticeforge_operator.devcluster.server import Server, serve, write_kubeconfig
from latticeforge_operator.devcluster.store import Store, utc_now


class DataFolderInUseError(Exception):
    """Another devcluster is using the folder."""


@dataclass(frozen=True)
class Backoff:
    """How long failures wait for their next try; doubled every time.

    Attributes:
        job: after a Job's first failed pod.
        container: before a container's second restart (the first is immediate).
    """

    job: timedelta = BACKOFF_BASE
    container: timedelta = RESTART_BACKOFF


_KUBERNETES = Backoff()


class DevCluster:
    """A running devcluster; made by `start`.

    Attributes:
        store: its objects, in-process.
        kubeconfig: file with which clients reach it.
    """

    def __init__(self, store: Store, server: Server, kubeconfig: Path) -> None:
        self.store = store
        self.kubeconfig = kubeconfig
        self._server = server
        self._cleanup = AsyncExitStack()

    @classmethod
    async def start(
        cls,
        *,
        data_dir: Path,
        capacity: NodeCapacity | None = None,
        port: int = 0,
        run_pods: bool = True,
        now: Callable[[], datetime] = utc_now,
        backoff: Backoff = _KUBERNETES,
    ) -> DevCluster:
        """Starts a devcluster on loopback.

        Args:
            data_dir: where volumes, pods' folders and the kubeconfig are; created when missing.
            capacity: what the node offers to pods; None measures this machine.
            port: 0 takes a free one.
            run_pods: False leaves out node, scheduler and kubelet: pods stay Pending.
            now: the clock of timestamps, deadlines and waits.
            backoff: how long failures wait for their next try.

        Raises:
            DataFolderInUseError: another devcluster is using `data_dir`.
            OSError: the port is taken, or the folder cannot be written.
        """
        data_dir = _make_folder(data_dir)
        async with AsyncExitStack() as undo:
            undo.callback(os.close, _lock(data_dir))
            store = Store(now=now)
            store.registry.add(PERSISTENT_VOLUME)
            capacity = capacity or NodeCapacity.detect()
            kubelet = Kubelet(
                store, data_dir / "pods", capacity.devices, restart_backoff=backoff.container
            )
            kubelet.clean_up()
            reader = kubelet.read_log if run_pods else None
            server = await serve(store, port=port, log_reader=reader)
            undo.push_async_callback(server.aclose)
            cluster = cls(store, server, data_dir / "kubeconfig")
            write_kubeconfig(cluster.kubeconfig, server)
            undo.callback(cluster.kubeconfig.unlink, missing_ok=True)
            # Pods end after the controllers have, or Jobs would replace them, and before the
            # server does: what a pod saves at its end it may want to report.
            if run_pods:
                store.create(NODES, "", make_node(capacity, now()))
                undo.push_async_callback(kubelet.aclose)
                _run(undo, kubelet.run(ApiAccess(server)), "kubelet")
                _run(undo, Scheduler(store).run(), "scheduler")
            _run(undo, JobController(store, backoff_base=backoff.job).run(), "job controller")
            _run(undo, DeploymentController(store).run(), "deployment controller")
            _run(undo, VolumeController(store, data_dir / "volumes").run(), "volume controller")
            cluster._cleanup = undo.pop_all()
        return cluster

    @property
    def url(self) -> str:
        """Base URL of the API."""
        return self._server.url

    @property
    def token(self) -> str:
        """Bearer token that every request must carry."""
        return self._server.token

    async def aclose(self) -> None:
        """Ends every pod (SIGTERM, its grace period, SIGKILL), then the server."""
        await self._cleanup.aclose()


def _make_folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path.resolve()


def _lock(data_dir: Path) -> int:
    """Makes this process the only one to use the folder until the descriptor is closed."""
    descriptor = os.open(data_dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise DataFolderInUseError(
            f"another devcluster is using {data_dir}; end it, or choose another folder"
        ) from None
    return descriptor


def _run(undo: AsyncExitStack, loop: Coroutine[Any, Any, None], name: str) -> None:
    task = asyncio.create_task(loop, name=f"devcluster {name}")
    undo.push_async_callback(_cancel, task)


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
