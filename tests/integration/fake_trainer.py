"""A kubelet whose containers obey the trainer's contract without training anything.

It reads the pod's `step.json`, reports a plausible result into the step's progress ConfigMap and
ends the pod. What a step does otherwise is written in `fates`.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter
from tests.unit.core.builders import result_of

from latticeforge_operator.cluster.names import STEP_LABEL, TRAINING_LABEL
from latticeforge_operator.devcluster.controllers.objects import (
    CONFIG_MAPS,
    PODS,
    find,
    is_deleted,
    is_finished,
    key_of,
)
from latticeforge_operator.devcluster.metadata import timestamp
from latticeforge_operator.devcluster.store import Store
from latticeforge_trainer.contract import ExitCode, Progress, StepConfig, StepState

HELD = -1


@dataclass(frozen=True)
class Fate:
    """How a pod ends; HELD: not before it is deleted."""

    code: int = 0
    good: bool = True
    """Whether an evaluation finds good scores."""


class FakeKubelet:
    """Runs the pods of a store.

    Attributes:
        fates: what the next pods of a step do; those that follow succeed.
        started: the step of every pod that was started.
        lingering: steps whose pods take their time to end when they are deleted.
        overlaps: steps that were started while an earlier pod of theirs still ran.
    """

    def __init__(self, store: Store) -> None:
        self.fates: dict[str, deque[Fate]] = defaultdict(deque)
        self.started: list[str] = []
        self.lingering: set[str] = set()
        self.overlaps: list[str] = []
        self._store = store
        self._taken: set[str] = set()
        self._alive: dict[tuple[str, str], set[str]] = defaultdict(set)

    async def run(self) -> None:
        """Runs pods until cancelled."""
        async for event in self._store.watch(PODS):
            pod = find(self._store, PODS, *key_of(event.object))
            if pod is None or is_finished(pod):
                continue
            if is_deleted(pod):
                if self._step(pod) not in self.lingering:
                    self._stop(pod)
            elif pod["metadata"]["uid"] not in self._taken:
                self._taken.add(pod["metadata"]["uid"])
                self._start(pod)

    def let_go(self) -> None:
        """End the pods that lingered."""
        self.lingering.clear()
        for pod in self._store.list(PODS):
            if is_deleted(pod) and not is_finished(pod):
                self._stop(pod)

    def _stop(self, pod: dict[str, Any]) -> None:
        self._end(pod, ExitCode.INTERRUPTED, StepState.INTERRUPTED)
        if find(self._store, PODS, *key_of(pod)):  # its end may have removed it already
            self._store.delete(PODS, *key_of(pod), grace_period_seconds=0)

    def _step(self, pod: dict[str, Any]) -> str:
        return str(pod["metadata"]["labels"][STEP_LABEL]).replace(".", "/")

    def _life(self, pod: dict[str, Any]) -> tuple[str, str]:
        """Of which at most one pod may run: a step of a stack."""
        return pod["metadata"]["labels"][TRAINING_LABEL], self._step(pod)

    def _start(self, pod: dict[str, Any]) -> None:
        self._store.merge_patch(PODS, *key_of(pod), {"spec": {"nodeName": "fake"}})
        now = self._time()
        running: dict[str, Any] = {"running": {"startedAt": now}}
        scheduled = {
            "type": "PodScheduled",
            "status": "True",
            "lastTransitionTime": now,
        }
        self._set(pod, "Running", running, conditions=[scheduled])
        step = self._step(pod)
        self.started.append(step)
        alive = self._alive[self._life(pod)]
        if alive:
            self.overlaps.append(step)
        alive.add(pod["metadata"]["uid"])
        waiting = self.fates[step]
        self._meet(pod, waiting.popleft() if waiting else Fate())

    def _meet(self, pod: dict[str, Any], fate: Fate) -> None:
        """What happens to a pod that runs."""
        if fate.code != HELD:
            state = StepState.FAILED if fate.code else StepState.DONE
            self._end(pod, fate.code, state, good=fate.good)

    def _end(self, pod: dict[str, Any], code: int, state: StepState, *, good: bool = True) -> None:
        self._report(pod, state, code, good=good)
        self._alive[self._life(pod)].discard(pod["metadata"]["uid"])
        live = find(self._store, PODS, *key_of(pod)) or pod
        (container,) = live["status"]["containerStatuses"]
        ended = {
            "exitCode": code,
            "finishedAt": self._end_time(pod),
            **container["state"]["running"],
        }
        self._set(pod, "Failed" if code else "Succeeded", {"terminated": ended})

    def _report(
        self, pod: dict[str, Any], state: StepState, code: int | None = None, *, good: bool = True
    ) -> None:
        container = pod["spec"]["containers"][0]
        environment = {entry["name"]: entry.get("value", "") for entry in container["env"]}
        namespace, name, key = environment["LATTICEFORGE_PROGRESS"].split("/")
        volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
        stored = find(self._store, CONFIG_MAPS, namespace, volumes["config"]["configMap"]["name"])
        if stored is None or find(self._store, CONFIG_MAPS, namespace, name) is None:
            return  # the stack is being deleted
        config: StepConfig = TypeAdapter(StepConfig).validate_json(stored["data"]["step.json"])
        report = Progress(
            step=config.step,
            digest=config.digest,
            state=state,
            message="works" if code is None else f"it ended with {code}",
            updated_at=self._time(),
            exit_code=code,
            result=result_of(config, good=good) if code == 0 else None,
        )
        data = {"data": {key: report.model_dump_json(by_alias=True, exclude_none=True)}}
        self._store.merge_patch(CONFIG_MAPS, namespace, name, data)

    def _set(self, pod: dict[str, Any], phase: str, state: dict[str, Any], **fields: Any) -> None:
        status = {
            "phase": phase,
            "containerStatuses": [
                {"name": "trainer", "state": state, "ready": False, "restartCount": 0,
                 "image": "x", "imageID": ""}
            ],
            **fields,
        }  # fmt: skip
        self._store.merge_patch(PODS, *key_of(pod), {"status": status}, subresource="status")

    def _end_time(self, _pod: dict[str, Any]) -> str:
        return self._time()

    def _time(self) -> str:
        return timestamp(self._store.now())


@asynccontextmanager
async def fake_kubelet(store: Store) -> AsyncIterator[FakeKubelet]:
    """A kubelet that runs while the block does; an error of its own ends the test."""
    kubelet = FakeKubelet(store)
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(kubelet.run())
        yield kubelet
        task.cancel()
