"""A pod's status from the states of its containers: a pure function, as kubelet computes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from latticeforge_operator.devcluster.controllers.objects import new_condition, with_condition
from latticeforge_operator.devcluster.kubelet.paths import LOOPBACK
from latticeforge_operator.devcluster.metadata import timestamp
from latticeforge_operator.devcluster.resources import JsonObject


@dataclass(frozen=True)
class Terminated:
    """How one run of a container ended.

    Attributes:
        code: exit code; 128 + signal when a signal killed it.
        reason: Completed, Error or StartError.
        started: when it was started.
        finished: when it ended.
        signal: the signal that killed it, if one did.
        message: its last words, where terminationMessagePolicy asks for them.
    """

    code: int
    reason: str
    started: datetime
    finished: datetime
    signal: int | None = None
    message: str = ""


@dataclass(frozen=True)
class ContainerState:
    """Where a container stands; `running_since` or `terminated`, or else it waits.

    Attributes:
        waiting: why it waits.
        message: more about that.
        running_since: when the present run started.
        terminated: how the present run ended.
        last: how the run before ended.
        restarts: runs before this one.
    """

    waiting: str = "ContainerCreating"
    message: str = ""
    running_since: datetime | None = None
    terminated: Terminated | None = None
    last: Terminated | None = None
    restarts: int = 0

    def waits(self, reason: str, message: str = "") -> ContainerState:
        """The container cannot run (yet)."""
        last = self.terminated or self.last
        return ContainerState(reason, message, last=last, restarts=self.restarts)

    def runs(self, since: datetime) -> ContainerState:
        """A run has started; every one after the first is a restart."""
        last = self.terminated or self.last
        return ContainerState(running_since=since, last=last, restarts=self.restarts + bool(last))

    def ends(self, how: Terminated) -> ContainerState:
        """The present run has ended."""
        return replace(self, running_since=None, terminated=how)


@dataclass(frozen=True)
class PodState:
    """Everything that a pod's status is computed from.

    Attributes:
        containers: states by name, of init containers as well.
        started: when the kubelet took the pod on.
        over: no container will ever run again.
        reason: why the kubelet ended the pod, if it did.
        message: more about that.
    """

    containers: Mapping[str, ContainerState]
    started: datetime
    over: bool = False
    reason: str = ""
    message: str = ""


def pod_status(pod: JsonObject, state: PodState, now: datetime) -> JsonObject:
    """Computes the pod's whole status; conditions that others have set are kept."""
    spec = pod["spec"]
    init = spec.get("initContainers") or ()
    phase = _phase(spec, state)
    status = {
        **pod.get("status", {}),
        "phase": phase,
        "startTime": timestamp(state.started),
        "hostIP": LOOPBACK,
        "podIP": LOOPBACK,
        "podIPs": [{"ip": LOOPBACK}],
        "containerStatuses": _statuses(pod, spec["containers"], state),
        "conditions": _conditions(pod, phase, state, now),
    }
    if init:
        status["initContainerStatuses"] = _statuses(pod, init, state)
    if state.reason:
        status |= {"reason": state.reason, "message": state.message}
    return status


def _phase(spec: JsonObject, state: PodState) -> str:
    main = [state.containers[container["name"]] for container in spec["containers"]]
    if state.over:
        done = all(container.terminated and not container.terminated.code for container in main)
        return "Succeeded" if done and not state.reason else "Failed"
    begun = any(c.running_since or c.terminated or c.last for c in main)
    return "Running" if begun else "Pending"


def _statuses(
    pod: JsonObject, containers: Sequence[JsonObject], state: PodState
) -> list[JsonObject]:
    return [_status(pod, spec, state.containers[spec["name"]]) for spec in containers]


def _status(pod: JsonObject, spec: JsonObject, state: ContainerState) -> JsonObject:
    name, image = spec["name"], spec.get("image", "")
    running = state.running_since is not None
    status: JsonObject = {
        "name": name,
        "image": image,
        "imageID": "",
        "ready": running or (_is_init(pod, name) and _succeeded(state)),
        "started": running,
        "restartCount": state.restarts,
        "state": _render(pod, name, state),
        "lastState": {},
    }
    if state.last:
        status["lastState"] = {"terminated": _render_end(pod, name, state.last)}
    return status


def _is_init(pod: JsonObject, name: str) -> bool:
    return any(name == container["name"] for container in pod["spec"].get("initContainers") or ())


def _succeeded(state: ContainerState) -> bool:
    return state.terminated is not None and state.terminated.code == 0


def _render(pod: JsonObject, name: str, state: ContainerState) -> JsonObject:
    if state.running_since is not None:
        return {"running": {"startedAt": timestamp(state.running_since)}}
    if state.terminated is not None:
        return {"terminated": _render_end(pod, name, state.terminated)}
    waiting = {"reason": state.waiting}
    return {"waiting": {**waiting, "message": state.message} if state.message else waiting}


def _render_end(pod: JsonObject, name: str, end: Terminated) -> JsonObject:
    shown: JsonObject = {
        "exitCode": end.code,
        "reason": end.reason,
        "startedAt": timestamp(end.started),
        "finishedAt": timestamp(end.finished),
        "containerID": f"process://{pod['metadata']['uid']}/{name}",
    }
    if end.signal is not None:
        shown["signal"] = end.signal
    if end.message:
        shown["message"] = end.message
    return shown


def _conditions(pod: JsonObject, phase: str, state: PodState, now: datetime) -> list[JsonObject]:
    spec = pod["spec"]
    init = [state.containers[container["name"]] for container in spec.get("initContainers") or ()]
    main = [state.containers[container["name"]] for container in spec["containers"]]
    finished = phase in {"Succeeded", "Failed"}
    why = {"Succeeded": "PodCompleted", "Failed": "PodFailed"}.get(phase, "ContainersNotReady")
    ready = not finished and all(container.running_since for container in main)
    conditions = list(pod.get("status", {}).get("conditions") or ())
    for kind, holds in (
        ("Initialized", all(_succeeded(container) for container in init)),
        ("Ready", ready),
        ("ContainersReady", ready),
    ):
        reason = "" if holds else ("ContainersNotInitialized" if kind == "Initialized" else why)
        new = new_condition(kind, "True" if holds else "False", now, reason)
        conditions = with_condition(conditions, new)
    return conditions
