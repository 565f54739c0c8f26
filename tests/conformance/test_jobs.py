"""What the operator relies on of Jobs."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.conformance.client import Api, eventually
from tests.conformance.conftest import KUBECONFIG
from tests.conformance.workloads import (
    PATIENCE,
    Workloads,
    conditions_of,
    devcluster,
    job,
)

SLEEP = "trap 'exit 0' TERM; while :; do sleep 0.1; done"


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


def exit_codes(action: str, *codes: int) -> dict[str, Any]:
    return {"action": action, "onExitCodes": {"operator": "In", "values": list(codes)}}


async def test_an_indexed_job_completes_every_index(work: Workloads) -> None:
    script = "echo index=$JOB_COMPLETION_INDEX host=$HOSTNAME"
    await work.start_job(job(script, completionMode="Indexed", completions=3, parallelism=2))
    done = await work.job_with("Complete", "Failed")
    assert conditions_of(done).keys() == {"Complete", "SuccessCriteriaMet"}
    status = done["status"]
    assert (status["succeeded"], status["completedIndexes"]) == (3, "0-2")
    assert status["completionTime"] >= status["startTime"]
    for pod in await work.pods():
        index = pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"]
        log = await work.log(pod["metadata"]["name"])
        assert log == f"index={index} host=j-{index}\n"


async def test_pods_belong_to_their_job(work: Workloads) -> None:
    await work.start_job(job("true"))
    done = await work.job_with("Complete")
    uid = done["metadata"]["uid"]
    assert done["spec"]["selector"]["matchLabels"] == {"batch.kubernetes.io/controller-uid": uid}
    [pod] = await work.pods()
    assert pod["metadata"]["labels"]["batch.kubernetes.io/controller-uid"] == uid
    [owner] = pod["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["uid"], owner["controller"]) == ("Job", uid, True)


async def test_a_failed_pod_is_replaced_until_the_limit(work: Workloads) -> None:
    await work.start_job(job("exit 3", backoffLimit=1))
    failed = await work.job_with("Failed", "Complete")
    assert conditions_of(failed)["Failed"] == "BackoffLimitExceeded"
    assert failed["status"]["failed"] == 2
    codes = [
        pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"]
        for pod in await work.pods()
    ]
    assert codes == [3, 3]


async def test_an_exit_code_can_fail_the_job_at_once(work: Workloads) -> None:
    policy = {"rules": [exit_codes("FailJob", 42)]}
    await work.start_job(job("exit 42", backoffLimit=6, podFailurePolicy=policy))
    failed = await work.job_with("Failed", "Complete")
    assert conditions_of(failed)["Failed"] == "PodFailurePolicy"
    assert len(await work.pods()) == 1


async def test_an_exit_code_can_be_ignored(work: Workloads) -> None:
    policy = {"rules": [exit_codes("Ignore", 7)]}
    obj = job("exit 7", backoffLimit=0, podFailurePolicy=policy)
    await work.start_job(obj)

    async def tried_again() -> bool:
        return len(await work.pods()) > 1

    await eventually(tried_again, PATIENCE)
    assert (await work.api.get(work.job_path))["status"].get("failed", 0) == 0


async def test_an_evicted_pod_is_replaced_and_not_counted(work: Workloads) -> None:
    disrupted = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}
    policy = {"rules": [disrupted]}
    await work.start_job(job(SLEEP, backoffLimit=0, podFailurePolicy=policy))
    [pod] = await work.running_pods(1)
    name = pod["metadata"]["name"]
    eviction = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": name, "namespace": work.api.namespace},
    }
    await work.api.create(work.api.ns("v1", "pods", name, "eviction"), eviction)

    async def replaced() -> bool:
        names = {pod["metadata"]["name"] for pod in await work.running_pods(1)}
        return name not in names

    await eventually(replaced, PATIENCE)
    status = (await work.api.get(work.job_path))["status"]
    assert status.get("failed", 0) == 0


async def test_a_suspended_job_holds_no_pods_and_resumes(work: Workloads) -> None:
    await work.start_job(job(SLEEP, suspend=True))
    await work.job_with("Suspended")
    assert await work.pods() == []
    await work.api.merge(work.job_path, {"spec": {"suspend": False}})
    await work.running_pods(1)
    started = (await work.api.get(work.job_path))["status"]["startTime"]
    await work.api.merge(work.job_path, {"spec": {"suspend": True}})

    async def none_left() -> bool:
        return not await work.pods()

    await eventually(none_left, PATIENCE)
    suspended = await work.job_with("Suspended")
    assert started
    assert suspended["status"].get("failed", 0) == 0
    assert suspended["status"].get("active", 0) == 0


async def test_a_job_ends_at_its_deadline(work: Workloads) -> None:
    await work.start_job(job(SLEEP, activeDeadlineSeconds=1))
    failed = await work.job_with("Failed", "Complete")
    assert conditions_of(failed)["Failed"] == "DeadlineExceeded"


async def test_deleting_a_job_deletes_its_pods(work: Workloads) -> None:
    await work.start_job(job(SLEEP))
    await work.running_pods(1)
    await work.api.delete(work.job_path, {"propagationPolicy": "Background"})

    async def all_gone() -> bool:
        return not await work.pods()

    await eventually(all_gone, PATIENCE)
    assert await work.api.gone(work.job_path)


async def test_a_finished_job_is_removed_after_its_time(work: Workloads) -> None:
    await work.start_job(job("true", ttlSecondsAfterFinished=0))
    await eventually(lambda: work.api.gone(work.job_path), PATIENCE)


async def test_events_tell_what_happened(work: Workloads) -> None:
    await work.start_job(job("exit 1", backoffLimit=0))
    await work.job_with("Failed")

    async def told() -> bool:
        path = work.api.ns("v1", "events")
        events = await work.api.get(path, fieldSelector="involvedObject.kind=Job")
        reasons = {event["reason"] for event in events["items"]}
        return reasons >= {"SuccessfulCreate", "BackoffLimitExceeded"}

    await eventually(told, PATIENCE)
