"""One container of a pod: prepared, run, restarted as its pod's policy says, and stopped."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from latticeforge_operator.devcluster.controllers.loops import first_of, sleep_until
from latticeforge_operator.devcluster.kubelet import logs
from latticeforge_operator.devcluster.kubelet.environment import (
    ConfigError,
    Environment,
    Values,
    base_environment,
    command_line,
)
from latticeforge_operator.devcluster.kubelet.paths import Translator
from latticeforge_operator.devcluster.kubelet.processes import (
    ContainerProcess,
    Exit,
    Launch,
    StartError,
)
from latticeforge_operator.devcluster.kubelet.status import ContainerState, Terminated
from latticeforge_operator.devcluster.kubelet.volumes import VolumeSet
from latticeforge_operator.devcluster.resources import JsonObject
from latticeforge_operator.devcluster.store import Store

RESTART_BACKOFF = timedelta(seconds=10)
_LONGEST_BACKOFF = timedelta(minutes=5)
_FORGIVEN_AFTER = timedelta(minutes=10)
_FALLBACK_TO_LOGS = "FallbackToLogsOnError"


@dataclass(frozen=True)
class Sandbox:
    """What the containers of one pod share.

    Attributes:
        store: the API.
        folder: the pod's folder.
        volumes: its volumes.
        service: variables that the cluster provides.
        devices: CUDA_VISIBLE_DEVICES of each container.
        restart_backoff: the wait before a first restart.
        changed: tells the pod's worker that a container's state has changed.
    """

    store: Store
    folder: Path
    volumes: VolumeSet
    service: Mapping[str, str]
    devices: Mapping[str, str]
    restart_backoff: timedelta
    changed: Callable[[], None]


@dataclass
class Container:
    """One container of a running pod."""

    pod: JsonObject
    spec: JsonObject
    sandbox: Sandbox
    state: ContainerState = field(default_factory=ContainerState)
    _process: ContainerProcess | None = None
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)
    _nudged: asyncio.Event = field(default_factory=asyncio.Event)
    _failures: int = 0

    @property
    def folder(self) -> Path:
        """Where logs and the process record are."""
        return self.sandbox.folder / "containers" / str(self.spec["name"])

    async def run(self, restart_policy: str) -> bool:
        """Runs the container until it has ended for good; returns whether it ended well."""
        while not self._stopping.is_set():
            how = await self._run_once()
            if how is None:
                continue
            self._become(self.state.ends(how))
            if restart_policy == "Never" or (restart_policy == "OnFailure" and not how.code):
                return how.code == 0
            if not self._stopping.is_set():
                await self._back_off(how)
        return self.state.terminated is not None and self.state.terminated.code == 0

    def stop(self) -> None:
        """Asks the container to end (SIGTERM), and never starts it again."""
        self._stopping.set()
        if self._process is not None:
            self._process.terminate()

    def kill(self) -> None:
        """Ends the container at once."""
        self._stopping.set()
        if self._process is not None:
            self._process.kill()

    def nudge(self) -> None:
        """Something that the container refers to may exist now."""
        self._nudged.set()

    def _become(self, state: ContainerState) -> None:
        self.state = state
        self.sandbox.changed()

    async def _run_once(self) -> Terminated | None:
        """Runs the container once; None when it could not be prepared yet."""
        self._nudged.clear()
        started = self.sandbox.store.now()
        try:
            launch = self._prepare()
            process = await ContainerProcess.start(launch)
        except ConfigError as error:
            self._become(self.state.waits("CreateContainerConfigError", str(error)))
            await first_of(self._nudged.wait(), self._stopping.wait())
            return None
        except StartError as error:
            now = self.sandbox.store.now()
            return Terminated(error.exit_code, "StartError", started, now, message=str(error))
        return await self._see_through(process, started, launch.log)

    async def _see_through(
        self, process: ContainerProcess, started: datetime, log: Path
    ) -> Terminated:
        self._process = process
        try:
            if self._stopping.is_set():
                process.kill()
            self._become(self.state.runs(started))
            ended = await process.wait()
        finally:
            self._process = None
            process.kill()
            await process.wait()
        return self._terminated(ended, started, log)

    def _prepare(self) -> Launch:
        box = self.sandbox
        values = Values(box.store, self.pod)
        named = {**box.service, **values.environment(self.spec, box.service)}
        # Only what the manifest says is translated, and before it is expanded: the kubelet's own
        # values are the host's already, and may lie below what a mount stands for, such as /tmp.
        translate = Translator(
            box.volumes.mounts(self.spec, named),
            self.pod["spec"].get("subdomain") or "",
            self.pod["metadata"]["namespace"],
        )
        known = {**box.service, **values.environment(self.spec, box.service, translate)}
        scratch = box.folder / "scratch" / str(self.spec["name"])
        for folder in (scratch, self.folder):
            folder.mkdir(parents=True, exist_ok=True)
        given = self.spec.get("workingDir")
        workdir = Path(translate(given)) if given else scratch
        runs = len(list(self.folder.glob("*.log")))
        return Launch(
            command=command_line(self.spec, known, translate),
            environment=self._environment(known, scratch),
            workdir=workdir,
            log=logs.log_path(self.folder, runs),
        )

    def _environment(self, own: Mapping[str, str], home: Path) -> Environment:
        metadata, spec = self.pod["metadata"], self.pod["spec"]
        base = base_environment(home, spec.get("hostname") or metadata["name"])
        # Last, so that no manifest can reach for a device that another pod holds.
        devices = self.sandbox.devices[self.spec["name"]]
        return {**base, **own, "CUDA_VISIBLE_DEVICES": devices}

    def _terminated(self, ended: Exit, started: datetime, log: Path) -> Terminated:
        wants_log = self.spec.get("terminationMessagePolicy") == _FALLBACK_TO_LOGS
        return Terminated(
            code=ended.code,
            reason="Error" if ended.code else "Completed",
            started=started,
            finished=self.sandbox.store.now(),
            signal=ended.signal,
            message=logs.last_words(log) if ended.code and wants_log else "",
        )

    async def _back_off(self, how: Terminated) -> None:
        """Waits before a restart: longer each time, unless the last run went well for long."""
        if how.finished - how.started > _FORGIVEN_AFTER:
            self._failures = 0
        wait = self.sandbox.restart_backoff * 2 ** min(self._failures - 1, 16)
        # The first restart is immediate, as kubelet's.
        wait = min(wait, _LONGEST_BACKOFF) if self._failures else timedelta(0)
        self._failures += 1
        message = f"back-off {wait.total_seconds():g}s restarting container {self.spec['name']}"
        self._become(self.state.waits("CrashLoopBackOff", message))
        now = self.sandbox.store.now
        await first_of(sleep_until(now() + wait, now), self._stopping.wait())
