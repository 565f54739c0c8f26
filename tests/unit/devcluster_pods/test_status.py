"""A pod's phase, conditions and container statuses from what its containers do."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from tests.unit.devcluster_pods.builders import NOW, at

from latticeforge_operator.devcluster.kubelet.status import (
    ContainerState,
    PodState,
    Terminated,
    pod_status,
)

LATER = NOW + timedelta(seconds=5)
WAITING = ContainerState()
RUNNING = WAITING.runs(NOW)
GOOD = RUNNING.ends(Terminated(0, "Completed", NOW, LATER))
BAD = RUNNING.ends(Terminated(137, "Error", NOW, LATER, signal=9, message="last words"))


def status(
    *main: ContainerState, init: ContainerState | None = None, **state: Any
) -> dict[str, Any]:
    states = {f"c{index}": each for index, each in enumerate(main)}
    spec: dict[str, Any] = {"containers": [{"name": name, "image": "i"} for name in states]}
    if init is not None:
        spec["initContainers"] = [{"name": "init"}]
        states["init"] = init
    disrupted = {"type": "DisruptionTarget", "status": "True", "lastTransitionTime": at(0)}
    before = {"conditions": [disrupted], "qosClass": "Burstable"}
    pod = {"metadata": {"uid": "u"}, "spec": spec, "status": before}
    return pod_status(pod, PodState(states, NOW, **state), LATER)


def conditions(of: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {c["type"]: (c["status"], c.get("reason", "")) for c in of["conditions"]}


@pytest.mark.parametrize(
    ("main", "state", "phase"),
    [
        ([WAITING], {}, "Pending"),
        ([RUNNING, WAITING], {}, "Running"),
        ([GOOD, RUNNING], {}, "Running"),
        ([GOOD.waits("CrashLoopBackOff")], {}, "Running"),
        ([GOOD, GOOD], {"over": True}, "Succeeded"),
        ([GOOD, BAD], {"over": True}, "Failed"),
        ([WAITING], {"over": True}, "Failed"),
        ([GOOD], {"over": True, "reason": "DeadlineExceeded"}, "Failed"),
    ],
)
def test_the_phase(main: list[ContainerState], state: dict[str, Any], phase: str) -> None:
    assert status(*main, **state)["phase"] == phase


def test_a_running_pod_is_ready() -> None:
    found = conditions(status(RUNNING, init=GOOD))
    assert found["Initialized"] == found["Ready"] == found["ContainersReady"] == ("True", "")


def test_a_pod_whose_init_container_runs_is_not() -> None:
    found = conditions(status(WAITING, init=RUNNING))
    assert found["Initialized"] == ("False", "ContainersNotInitialized")
    assert found["Ready"] == ("False", "ContainersNotReady")


@pytest.mark.parametrize(("end", "reason"), [(GOOD, "PodCompleted"), (BAD, "PodFailed")])
def test_a_finished_pod_says_why_it_is_not_ready(end: ContainerState, reason: str) -> None:
    assert conditions(status(end, over=True))["Ready"] == ("False", reason)


def test_what_others_say_is_kept() -> None:
    assert conditions(status(RUNNING))["DisruptionTarget"][0] == "True"
    assert status(RUNNING)["qosClass"] == "Burstable"


def test_how_a_container_ended_is_told() -> None:
    told = status(BAD, over=True)["containerStatuses"][0]
    assert told["state"]["terminated"] == {
        "exitCode": 137,
        "signal": 9,
        "reason": "Error",
        "message": "last words",
        "startedAt": at(0),
        "finishedAt": at(5),
        "containerID": "process://u/c0",
    }
    assert (told["ready"], told["restartCount"]) == (False, 0)


def test_a_restart_is_counted_and_the_last_end_remembered() -> None:
    waiting = BAD.waits("CrashLoopBackOff", "back-off 10s")
    told = status(waiting)["containerStatuses"][0]
    assert told["state"] == {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}}
    assert told["lastState"]["terminated"]["exitCode"] == 137
    assert told["restartCount"] == 0
    again = status(waiting.runs(LATER))["containerStatuses"][0]
    assert again["restartCount"] == 1
    assert again["lastState"]["terminated"]["exitCode"] == 137


def test_a_pod_that_the_kubelet_ended_says_why() -> None:
    told = status(BAD, over=True, reason="DeadlineExceeded", message="too long")
    assert (told["reason"], told["message"]) == ("DeadlineExceeded", "too long")


def test_waiting_again_does_not_forget_restarts() -> None:
    twice = replace(BAD, restarts=3).waits("CrashLoopBackOff").waits("CreateContainerConfigError")
    assert (twice.restarts, twice.last) == (3, BAD.terminated)
