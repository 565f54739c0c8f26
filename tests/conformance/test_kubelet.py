"""What the operator relies on of pods: how they get their inputs, how they run, how they end."""

from __future__ import annotations

import base64
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.conformance.client import Api, Refused, eventually
from tests.conformance.conftest import KUBECONFIG
from tests.conformance.workloads import (
    PATIENCE,
    Workloads,
    conditions_of,
    container,
    devcluster,
    pod,
)


@pytest.fixture
async def kubeconfig(tmp_path: Path) -> AsyncIterator[Path]:
    """The kubeconfig of a cluster that runs pods."""
    if named := os.environ.get(KUBECONFIG):
        yield Path(named)
        return
    async with devcluster(tmp_path) as path:
        yield path


@pytest.fixture
def work(api: Api) -> Workloads:
    return Workloads(api)


def terminated(of: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = of["status"]["containerStatuses"][0]["state"]["terminated"]
    return found


def mounted(name: str, at: str, **fields: Any) -> dict[str, Any]:
    return {"volumeMounts": [{"name": name, "mountPath": at, **fields}]}


async def test_a_pod_that_ends_well_has_succeeded(work: Workloads) -> None:
    done = await work.run_pod(pod("echo out; echo err >&2"))
    assert done["status"]["phase"] == "Succeeded"
    end = terminated(done)
    assert (end["exitCode"], end["reason"]) == (0, "Completed")
    assert end["finishedAt"] >= end["startedAt"]
    assert done["spec"]["nodeName"]
    assert sorted((await work.log()).split()) == ["err", "out"]


@pytest.mark.parametrize(("script", "code"), [("exit 42", 42), ("kill -9 $$$$", 137)])
async def test_a_pod_that_ends_badly_has_failed(work: Workloads, script: str, code: int) -> None:
    # A container's first process is immune to its own SIGKILL, so a child of it is killed; `$$` is
    # Kubernetes's escape of `$`.
    failed = await work.run_pod(pod(f"sh -c '{script}'; exit $?"))
    assert failed["status"]["phase"] == "Failed"
    assert (terminated(failed)["exitCode"], terminated(failed)["reason"]) == (code, "Error")


async def test_a_command_that_does_not_exist_cannot_start(work: Workloads) -> None:
    failed = await work.run_pod(pod("", main={"command": ["/no/such/program"]}))
    assert failed["status"]["phase"] == "Failed"
    assert terminated(failed)["exitCode"] == 128
    assert terminated(failed)["reason"] in {"StartError", "ContainerCannotRun"}


async def test_variables_come_from_everywhere(work: Workloads) -> None:
    await work.config_map("settings", LEVEL="high", MODE="fast")
    secret = {"metadata": {"name": "hub"}, "data": {"TOKEN": base64.b64encode(b"s3cret").decode()}}
    await work.api.create(work.api.ns("v1", "secrets"), secret)
    env = [
        {"name": "PLAIN", "value": "1"},
        {"name": "COMPOSED", "value": "$(PLAIN)-$(UNKNOWN)-$$(PLAIN)"},
        {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "TOKEN"}}},
        {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "NAMESPACE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}},
    ]
    script = 'echo "$PLAIN $COMPOSED $TOKEN $POD $NAMESPACE $S_LEVEL $0"'
    main = {
        "env": env,
        "envFrom": [{"configMapRef": {"name": "settings"}, "prefix": "S_"}],
        "args": ["$(S_MODE)"],
    }
    await work.run_pod(pod(script, main=main))
    expected = f"1 1-$(UNKNOWN)-$(PLAIN) s3cret p {work.api.namespace} high fast\n"
    assert await work.log() == expected


async def test_a_container_waits_for_the_secret_it_needs(work: Workloads) -> None:
    source = {"secretKeyRef": {"name": "late", "key": "K"}}
    await work.start_pod(pod("echo $K", main={"env": [{"name": "K", "valueFrom": source}]}))

    async def waits() -> bool:
        statuses = (await work.api.get(work.pod_path))["status"].get("containerStatuses") or [{}]
        waiting = statuses[0].get("state", {}).get("waiting", {})
        return bool(waiting.get("reason") == "CreateContainerConfigError")

    await eventually(waits, PATIENCE)
    with pytest.raises(AssertionError, match="is waiting to start: CreateContainerConfigError"):
        await work.log()
    secret = {"metadata": {"name": "late"}, "stringData": {"K": "here"}}
    await work.api.create(work.api.ns("v1", "secrets"), secret)
    await work.pod_in("Succeeded")
    assert await work.log() == "here\n"


async def test_a_config_map_is_files_and_they_follow_it(work: Workloads) -> None:
    await work.config_map("step", **{"step.json": '{"n": 1}'})
    volume = {"name": "config", "configMap": {"name": "step"}}
    script = "cat /etc/step/step.json; until grep -q 2 /etc/step/step.json; do sleep 0.1; done"
    main = mounted("config", "/etc/step")
    await work.start_pod(pod(script, main=main, volumes=[volume]))
    await work.logged('{"n": 1}')
    patch = {"data": {"step.json": '{"n": 2}'}}
    await work.api.merge(work.api.ns("v1", "configmaps", "step"), patch)
    await work.pod_in("Succeeded")


async def test_volumes_are_shared_by_containers_and_vanish_with_the_pod(work: Workloads) -> None:
    scratch = {"name": "scratch", "emptyDir": {}}
    first = container("echo made > /scratch/sub/file", **mounted("scratch", "/scratch"))
    main = mounted("scratch", "/in", subPath="sub")
    spec = {"volumes": [scratch], "initContainers": [{**first, "name": "first"}]}
    spec["initContainers"][0]["command"][2] = f"mkdir -p /scratch/sub; {first['command'][2]}"
    done = await work.run_pod(pod("cat /in/file", main=main, **spec))
    assert done["status"]["phase"] == "Succeeded"
    assert await work.log() == "made\n"


async def test_secrets_and_projections_are_files(work: Workloads) -> None:
    secret = {"metadata": {"name": "hub"}, "stringData": {"token": "s3cret"}}
    await work.api.create(work.api.ns("v1", "secrets"), secret)
    sources = [
        {"secret": {"name": "hub", "items": [{"key": "token", "path": "deep/token"}]}},
        {"downwardAPI": {"items": [{"path": "n", "fieldRef": {"fieldPath": "metadata.name"}}]}},
    ]
    volumes = [{"name": "all", "projected": {"sources": sources}}]
    main = mounted("all", "/all")
    await work.run_pod(
        pod('echo "$(cat /all/deep/token) $(cat /all/n)"', main=main, volumes=volumes)
    )
    assert await work.log() == "s3cret p\n"


async def test_a_claim_keeps_files_from_pod_to_pod(work: Workloads) -> None:
    claim = {
        "metadata": {"name": "store"},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Mi"}},
        },
    }
    path = work.api.ns("v1", "persistentvolumeclaims")
    await work.api.create(path, claim)
    volumes = [{"name": "store", "persistentVolumeClaim": {"claimName": "store"}}]
    main = mounted("store", "/store")
    await work.run_pod(pod("echo kept > /store/file", main=main, volumes=volumes))
    bound = await work.api.get(f"{path}/store")
    assert bound["status"]["phase"] == "Bound"
    assert bound["spec"]["volumeName"]
    await work.api.delete(work.pod_path)
    await eventually(lambda: work.api.gone(work.pod_path), PATIENCE)
    await work.run_pod(pod("cat /store/file", main=main, volumes=volumes))
    assert await work.log() == "kept\n"
    await work.api.delete(work.pod_path)
    await work.api.delete(f"{path}/store")
    await eventually(lambda: work.api.gone(f"{path}/store"), PATIENCE)


async def test_deletion_gives_a_pod_time_to_end(work: Workloads) -> None:
    script = "trap 'echo saving; exit 0' TERM; echo ready; while :; do sleep 0.1; done"
    await work.start_pod(pod(script, terminationGracePeriodSeconds=30))
    await work.logged("ready")
    async with work.api.session.get(
        f"{work.api.url}/{work.pod_path}/log", params={"follow": "true"}
    ) as log:
        deleted = await work.api.delete(work.pod_path)
        assert deleted["metadata"]["deletionGracePeriodSeconds"] == 30
        lines = (await log.text()).splitlines()
        assert (lines[0], lines[-1]) == ("ready", "saving")
    await eventually(lambda: work.api.gone(work.pod_path), PATIENCE)


async def test_deletion_ends_what_does_not_end_itself(work: Workloads) -> None:
    script = "trap '' TERM; echo ready; while :; do sleep 0.1; done"
    await work.start_pod(pod(script))
    await work.logged("ready")
    await work.api.delete(work.pod_path, {"gracePeriodSeconds": 1})
    await eventually(lambda: work.api.gone(work.pod_path), PATIENCE)


async def test_a_pod_ends_at_its_deadline(work: Workloads) -> None:
    script = "trap 'exit 0' TERM; while :; do sleep 0.1; done"
    failed = await work.run_pod(pod(script, activeDeadlineSeconds=1))
    assert (failed["status"]["phase"], failed["status"]["reason"]) == ("Failed", "DeadlineExceeded")


async def test_on_failure_a_container_is_restarted(work: Workloads) -> None:
    volumes = [{"name": "scratch", "emptyDir": {}}]
    script = "echo run >> /scratch/runs; test $(wc -l < /scratch/runs) -eq 3"
    main = mounted("scratch", "/scratch")
    done = await work.run_pod(pod(script, main=main, volumes=volumes, restartPolicy="OnFailure"))
    assert done["status"]["phase"] == "Succeeded"
    status = done["status"]["containerStatuses"][0]
    assert status["restartCount"] == 2
    assert status["lastState"]["terminated"]["exitCode"] == 1


async def test_the_last_words_of_a_failure_are_kept(work: Workloads) -> None:
    main = {"terminationMessagePolicy": "FallbackToLogsOnError"}
    failed = await work.run_pod(pod("echo out of memory; exit 1", main=main))
    assert terminated(failed)["message"] == "out of memory\n"


async def test_logs_can_be_cut(work: Workloads) -> None:
    await work.run_pod(pod("printf '1\\n2\\n3\\n'"))
    assert await work.log(tailLines="2") == "2\n3\n"


async def test_a_pod_runs_once(work: Workloads) -> None:
    claim = {
        "metadata": {"name": "store"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}},
    }
    await work.api.create(work.api.ns("v1", "persistentvolumeclaims"), claim)
    volumes = [{"name": "store", "persistentVolumeClaim": {"claimName": "store"}}]
    main = mounted("store", "/store")
    first = {**container("echo run >> /store/runs; exit 1", **main), "name": "first"}
    await work.run_pod(pod("true", initContainers=[first], volumes=volumes))
    await work.api.delete(work.pod_path)
    await eventually(lambda: work.api.gone(work.pod_path), PATIENCE)
    await work.run_pod(pod("sleep 0.5; cat /store/runs", main=main, volumes=volumes))
    assert await work.log() == "run\n"


async def test_a_failed_init_container_fails_the_pod(work: Workloads) -> None:
    first = {**container("exit 5"), "name": "first"}
    failed = await work.run_pod(pod("echo never", initContainers=[first]))
    assert failed["status"]["phase"] == "Failed"
    ended = failed["status"]["initContainerStatuses"][0]["state"]["terminated"]
    assert ended["exitCode"] == 5
    assert "waiting" in failed["status"]["containerStatuses"][0]["state"]


async def test_a_pod_that_fits_nowhere_is_told_why(work: Workloads) -> None:
    resources = {"limits": {"nvidia.com/gpu": "100"}}
    await work.start_pod(pod("true", main={"resources": resources}))

    async def told() -> str:
        conditions = (await work.api.get(work.pod_path))["status"].get("conditions") or []
        return "".join(c.get("message", "") for c in conditions if c["type"] == "PodScheduled")

    assert "Insufficient nvidia.com/gpu" in await eventually(told, PATIENCE)
    await work.api.delete(work.pod_path)
    assert await work.api.gone(work.pod_path)


async def test_a_gated_pod_waits(work: Workloads) -> None:
    await work.start_pod(pod("true", schedulingGates=[{"name": "example.com/wait"}]))

    async def gated() -> bool:
        conditions = (await work.api.get(work.pod_path))["status"].get("conditions") or []
        return any(c.get("reason") == "SchedulingGated" for c in conditions)

    await eventually(gated, PATIENCE)
    await work.api.merge(work.pod_path, {"spec": {"schedulingGates": None}})
    done = await work.pod_in("Succeeded")
    assert conditions_of(done).keys() >= {"PodScheduled", "Initialized"}


async def test_a_log_of_no_pod_is_404(work: Workloads) -> None:
    with pytest.raises(Refused) as refused:
        await work.api.get(f"{work.pod_path}/log")
    assert refused.value.code == 404
