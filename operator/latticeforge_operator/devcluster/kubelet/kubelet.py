"""The kubelet: runs the pods that are bound to its node, and reads their logs."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import AsyncIterator
from datetime import timedelta
from functools import partial
from pathlib import Path

from latticeforge_operator.devcluster.controllers.loops import keep_running
from latticeforge_operator.devcluster.controllers.nodes import NODE_NAME
from latticeforge_operator.devcluster.controllers.objects import (
    CONFIG_MAPS,
    PODS,
    SECRETS,
    find,
    is_finished,
    key_of,
)
from latticeforge_operator.devcluster.controllers.recorder import Recorder
from latticeforge_operator.devcluster.errors import ApiError
from latticeforge_operator.devcluster.kubelet import logs
from latticeforge_operator.devcluster.kubelet.containers import RESTART_BACKOFF
from latticeforge_operator.devcluster.kubelet.gpus import Devices
from latticeforge_operator.devcluster.kubelet.identity import ApiAccess
from latticeforge_operator.devcluster.kubelet.processes import sweep
from latticeforge_operator.devcluster.kubelet.worker import Machine, PodWorker
from latticeforge_operator.devcluster.resources import JsonObject, ResourceKey
from latticeforge_operator.devcluster.store import Store

_log = logging.getLogger(__name__)


class Kubelet:
    """Runs pods as local processes.

    Args:
        store: the API in-process.
        folder: where each pod gets a folder; whatever is there from an earlier run is removed.
        devices: names of this machine's GPUs.
        restart_backoff: the wait before a container's second restart.
    """

    def __init__(
        self,
        store: Store,
        folder: Path,
        devices: tuple[str, ...],
        *,
        restart_backoff: timedelta = RESTART_BACKOFF,
    ) -> None:
        self._store = store
        self._folder = folder
        self._devices = Devices(devices)
        self._restart_backoff = restart_backoff
        self._recorder = Recorder(store, "kubelet")
        self._workers: dict[str, PodWorker] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def clean_up(self) -> None:
        """Ends what an earlier devcluster left running here, and removes its pods' folders."""
        if killed := sweep(self._folder):
            _log.warning("devcluster: killed %d processes that an earlier run left", killed)
        if self._folder.exists():
            shutil.rmtree(self._folder)
        self._folder.mkdir(parents=True)

    async def run(self, access: ApiAccess) -> None:
        """Runs pods until cancelled; `aclose` ends those that then still run.

        Args:
            access: how pods reach the API.
        """
        machine = Machine(
            store=self._store,
            pods=self._folder,
            devices=self._devices,
            access=access,
            restart_backoff=self._restart_backoff,
            recorder=self._recorder,
        )
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(keep_running("kubelet", partial(self._follow_pods, machine)))
            for key in (CONFIG_MAPS, SECRETS):
                name = f"kubelet (watch of {key.plural})"
                tasks.create_task(keep_running(name, partial(self._follow_payloads, key)))

    async def aclose(self) -> None:
        """Ends every pod: SIGTERM, then SIGKILL after its grace period."""
        for worker in self._workers.values():
            worker.stop()
        if self._tasks:
            await asyncio.wait(self._tasks.values())

    async def _follow_pods(self, machine: Machine) -> None:
        existing = {pod["metadata"]["uid"] for pod in self._store.list(PODS)}
        for uid in self._workers.keys() - existing:
            self._forget(uid)
        async for event in self._store.watch(PODS):
            if event.object["spec"].get("nodeName") == NODE_NAME:
                self._observe(event.object, machine)

    def _observe(self, seen: JsonObject, machine: Machine) -> None:
        uid = seen["metadata"]["uid"]
        # What a watch says may be long past: acting on it could run a finished pod again.
        pod = find(self._store, PODS, *key_of(seen))
        if pod is None or pod["metadata"]["uid"] != uid:
            self._forget(uid)
        elif uid in self._workers:
            self._workers[uid].observe(pod)
        elif not is_finished(pod):
            self._take_on(PodWorker(pod, machine))

    def _take_on(self, worker: PodWorker) -> None:
        worker.observe(worker.pod)
        self._workers[worker.uid] = worker
        task = asyncio.create_task(worker.run())
        self._tasks[worker.uid] = task
        task.add_done_callback(partial(self._finished, worker))

    def _finished(self, worker: PodWorker, task: asyncio.Task[None]) -> None:
        del self._workers[worker.uid], self._tasks[worker.uid]
        if not task.cancelled() and (error := task.exception()):
            _log.error("devcluster: the end of a pod could not be recorded", exc_info=error)
        if worker.removed:
            self._remove_folder(worker.uid)
        # The GPUs that it held are free now.
        for other in self._workers.values():
            other.refresh()

    def _forget(self, uid: str) -> None:
        """The pod no longer exists: nothing of it may run, and nobody can ask for its logs."""
        if uid in self._workers:
            self._workers[uid].abandon()
        else:
            self._remove_folder(uid)

    def _remove_folder(self, uid: str) -> None:
        folder = self._folder / uid
        if folder.exists():
            shutil.rmtree(folder)

    async def _follow_payloads(self, key: ResourceKey) -> None:
        async for event in self._store.watch(key):
            namespace = event.object["metadata"]["namespace"]
            for worker in tuple(self._workers.values()):
                if worker.pod["metadata"]["namespace"] == namespace:
                    worker.refresh()

    async def read_log(
        self, namespace: str, pod: str, container: str | None, follow: bool, tail_lines: int | None
    ) -> AsyncIterator[bytes]:
        """Yields the log of a container's present or last run.

        Args:
            namespace: the pod's namespace.
            pod: its name.
            container: None takes the pod's first.
            follow: go on until the container ends.
            tail_lines: begin with that many lines of what is written; None for all.

        Raises:
            ApiError: 404, there is no such pod; 400, the container has not started yet.
        """
        found = self._store.get(PODS, namespace, pod)
        name = container or found["spec"]["containers"][0]["name"]
        uid = found["metadata"]["uid"]
        path = logs.latest_log(self._folder / uid / "containers" / name)
        if path is None:
            reason = self._waiting_reason(uid, name)
            message = f'container "{name}" in pod "{pod}" is waiting to start: {reason}'
            raise ApiError(400, message)

        def goes_on() -> bool:
            worker = self._workers.get(uid)
            return follow and worker is not None and worker.is_running(name)

        async for chunk in logs.read(path, tail_lines=tail_lines, follow=goes_on):
            yield chunk

    def _waiting_reason(self, uid: str, container: str) -> str:
        worker = self._workers.get(uid)
        return worker.state_of(container).waiting if worker else "ContainerCreating"
