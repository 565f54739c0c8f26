"""The life of one pod on this machine, from its volumes to its last status."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from latticeforge_operator.devcluster.authorization import Account
from latticeforge_operator.devcluster.controllers.loops import first_of, sleep_until
from latticeforge_operator.devcluster.controllers.objects import (
    PODS,
    SERVICE_ACCOUNTS,
    container_specs,
    find,
    is_deleted,
    key_of,
)
from latticeforge_operator.devcluster.controllers.recorder import Event, Recorder
from latticeforge_operator.devcluster.kubelet.containers import Container, Sandbox
from latticeforge_operator.devcluster.kubelet.environment import ConfigError, Environment
from latticeforge_operator.devcluster.kubelet.gpus import Devices
from latticeforge_operator.devcluster.kubelet.identity import ApiAccess, wants_access
from latticeforge_operator.devcluster.kubelet.status import ContainerState, PodState, pod_status
from latticeforge_operator.devcluster.kubelet.volumes import VolumeSet
from latticeforge_operator.devcluster.resources import JsonObject
from latticeforge_operator.devcluster.store import Store

_log = logging.getLogger(__name__)
_Made = TypeVar("_Made")
_GRACE_SECONDS = 30.0
_DEADLINE = "Pod was active on the node longer than the specified deadline"


@dataclass(frozen=True)
class Machine:
    """What all pods share.

    Attributes:
        store: the API.
        pods: folder of the pods' folders.
        devices: the GPUs.
        access: how pods reach the API.
        restart_backoff: the wait before a container's second restart.
        recorder: where Events go.
    """

    store: Store
    pods: Path
    devices: Devices
    access: ApiAccess
    restart_backoff: timedelta
    recorder: Recorder


class PodWorker:
    """Runs one pod.

    Args:
        pod: as it was bound to this node.
        machine: where it runs.
    """

    def __init__(self, pod: JsonObject, machine: Machine) -> None:
        self.pod = pod
        self.uid: str = pod["metadata"]["uid"]
        self.folder = machine.pods / self.uid
        self._machine = machine
        self._started = machine.store.now()
        self._containers: dict[str, Container] = {}
        self._stopping = asyncio.Event()
        self._refreshed = asyncio.Event()
        self._killers: list[asyncio.TimerHandle] = []
        self._verdict = ("", "")
        self._over = False
        self.removed = False
        self._volumes: VolumeSet | None = None

    async def run(self) -> None:
        """Runs the pod to its end; whatever happens, no process of it is left."""
        self._publish()
        deadline = asyncio.create_task(self._enforce_deadline())
        try:
            await self._live()
        except Exception as error:  # noqa: BLE001 - the edge: an error of ours must not hold the pod's GPUs
            _log.exception("devcluster: pod %s/%s cannot be run", *key_of(self.pod))
            self._verdict = ("KubeletError", f"The devcluster could not run the pod: {error}")
        finally:
            deadline.cancel()
            for timer in self._killers:
                timer.cancel()
            self._machine.devices.release(self.uid)
        self._over = True
        self._publish()
        if (live := self._current()) and is_deleted(live):
            self._machine.store.delete(PODS, *key_of(live), grace_period_seconds=0)

    def observe(self, pod: JsonObject) -> None:
        """Takes notice of the pod's newest version: it may be deleted, or sooner than before."""
        sooner = pod["metadata"].get("deletionGracePeriodSeconds")
        known = self.pod["metadata"].get("deletionGracePeriodSeconds")
        self.pod = pod
        if is_deleted(pod) and (sooner != known or not self._stopping.is_set()):
            self.stop(float(sooner or 0))

    def stop(self, grace: float | None = None) -> None:
        """Ends the pod: SIGTERM, and SIGKILL after the grace period (by default the pod's own).

        Without one, SIGKILL alone.
        """
        if grace is None:
            grace = float(self.pod["spec"].get("terminationGracePeriodSeconds", _GRACE_SECONDS))
        if grace <= 0:
            self._stopping.set()
            self._kill()  # a SIGTERM before it would leave a busy machine time to act on it
            return
        if not self._stopping.is_set():
            self._stopping.set()
            for container in self._containers.values():
                container.stop()
        self._killers.append(asyncio.get_running_loop().call_later(grace, self._kill))

    def abandon(self) -> None:
        """The pod was removed without waiting for its end: kills it."""
        self.removed = True
        self.stop(0)

    def _kill(self) -> None:
        for container in self._containers.values():
            container.kill()

    def refresh(self) -> None:
        """Something that the pod refers to may have changed: files follow, waiting ends."""
        self._refreshed.set()
        for container in self._containers.values():
            container.nudge()
        if self._volumes is not None:
            self._attempt(self._volumes.realise)

    def is_running(self, container: str) -> bool:
        """Whether the container may still write to its log."""
        found = self._containers.get(container)
        return not self._over and found is not None and found.state.running_since is not None

    def state_of(self, container: str) -> ContainerState:
        """The container's present state."""
        found = self._containers.get(container)
        return found.state if found else ContainerState()

    async def _live(self) -> None:
        sandbox = await self._set_up()
        if sandbox is None:
            return
        spec = self.pod["spec"]
        policy = spec.get("restartPolicy") or "Always"
        waiting = ContainerState("PodInitializing")
        self._containers = {
            container["name"]: Container(self.pod, container, sandbox, waiting)
            for container in container_specs(self.pod)
        }
        for container in spec.get("initContainers") or ():
            runner = self._containers[container["name"]]
            if not await runner.run("Never" if policy == "Never" else "OnFailure"):
                return
        mains = [self._containers[container["name"]] for container in spec["containers"]]
        runs = [asyncio.create_task(container.run(policy)) for container in mains]
        await asyncio.wait(runs, return_when=asyncio.FIRST_EXCEPTION)
        # Ends the others if one of them raised; otherwise all have ended already.
        self._kill()
        await asyncio.wait(runs)
        for run in runs:
            run.result()

    async def _set_up(self) -> Sandbox | None:
        """Makes what the containers share, as soon as that is possible; None if stopped before."""
        while not self._stopping.is_set():
            self._refreshed.clear()
            if sandbox := self._attempt(self._sandbox):
                return sandbox
            await first_of(self._refreshed.wait(), self._stopping.wait())
        return None

    def _attempt(self, action: Callable[[], _Made]) -> _Made | None:
        try:
            return action()
        except ConfigError as error:
            event = Event("Warning", "FailedMount", f"MountVolume.SetUp failed: {error}")
            self._machine.recorder.record(self.pod, event)
            return None

    def _sandbox(self) -> Sandbox | None:
        devices = self._machine.devices.acquire(self.pod)
        if devices is None:
            return None
        account, service = self._install_account()
        self._volumes = VolumeSet(self._machine.store, self.pod, self.folder / "volumes", account)
        self._volumes.realise()
        return Sandbox(
            store=self._machine.store,
            folder=self.folder,
            volumes=self._volumes,
            service=service,
            devices=devices,
            restart_backoff=self._machine.restart_backoff,
            changed=self._publish,
        )

    def _install_account(self) -> tuple[Path | None, Environment]:
        namespace = self.pod["metadata"]["namespace"]
        name = self.pod["spec"].get("serviceAccountName") or "default"
        account = find(self._machine.store, SERVICE_ACCOUNTS, namespace, name)
        if not wants_access(self.pod, account):
            return None, {}
        folder = self.folder / "account"
        return folder, self._machine.access.install(folder, Account(namespace, name))

    async def _enforce_deadline(self) -> None:
        seconds = self.pod["spec"].get("activeDeadlineSeconds")
        if seconds is None:
            return
        await sleep_until(self._started + timedelta(seconds=seconds), self._machine.store.now)
        self._verdict = ("DeadlineExceeded", _DEADLINE)
        self.stop()

    def _current(self) -> JsonObject | None:
        """The pod as stored, unless another has taken its name."""
        found = find(self._machine.store, PODS, *key_of(self.pod))
        return found if found and found["metadata"]["uid"] == self.uid else None

    def _publish(self) -> None:
        live = self._current()
        if live is None:
            return
        states = {spec["name"]: self.state_of(spec["name"]) for spec in container_specs(live)}
        state = PodState(states, self._started, self._over, *self._verdict)
        status = pod_status(live, state, self._machine.store.now())
        if status != live.get("status"):
            self._machine.store.patch(
                PODS, *key_of(live), lambda pod: {**pod, "status": status}, subresource="status"
            )
