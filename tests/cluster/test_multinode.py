"""Training on two nodes: two pods of one process each, ZeRO-3 over gloo, on the devcluster.

Its node pretends to have two GPUs, and the trainer, which finds none, computes on the CPU. A kind
cluster cannot run this: a volume that several nodes share is more than its storage class offers.
"""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tests.cluster import objects
from tests.cluster.objects import STEPS
from tests.cluster.sites import devcluster
from tests.cluster.test_stack import ONCE, attempts, result
from tests.cluster.world import World, world_on

from latticeforge_operator.devcluster.controllers.nodes import NodeCapacity

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.asyncio(loop_scope="module"),
]

CAPACITY = NodeCapacity(cpu=4, memory_bytes=2**34, gpus=2)
POOL = "nodes"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(
    model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[World]:
    """Nodes with one GPU each."""
    async with (
        devcluster(tmp_path_factory.mktemp("nodes"), CAPACITY) as site,
        world_on(site, model, data) as made,
    ):
        pool = {**objects.pool(POOL), "spec": {"accelerator": "H200", "gpusPerNode": 1}}
        await made.put(pool)
        yield made
        await made.remove("GPUPool", pool["apiVersion"], POOL)


def stages() -> list[dict[str, Any]]:
    """The stage of every other test here, but shorter: a step takes two processes much longer."""
    (stage,) = copy.deepcopy(objects.stack("", "")["stages"])
    stage["hyperparameters"] |= {"epochs": 6, "globalBatchTokens": 512}
    return [stage]


async def train_pods(world: World, name: str) -> dict[str, dict[str, Any]]:
    """The running pods of the train step, by their index."""
    index = "batch.kubernetes.io/job-completion-index"
    return {
        pod["metadata"]["annotations"][index]: pod
        for pod in await world.active_pods(name)
        if pod["metadata"]["labels"]["latticeforge.dev/step"] == "math.train"
    }


async def loses(world: World, name: str, beyond: int, **options: Any) -> int:
    """Deletes the second of its pods while it trains.

    Returns:
        The step after which the next attempt has gone on.
    """
    await world.trains(name, beyond)
    before, last = await train_pods(world, name), await world.meters(name)
    assert sorted(before) == ["0", "1"]
    await world.delete_pod(before["1"], **options)
    uids = {pod["metadata"]["uid"] for pod in before.values()}

    async def replaced() -> bool:
        now = [pod["metadata"]["uid"] for pod in (await train_pods(world, name)).values()]
        return len(now) == 2 and uids.isdisjoint(now)

    async def went_on() -> int:
        assert (await world.status(name))["phase"] == "Running", f"{name} was not seen to go on"
        meters = await world.meters(name)
        saved: int = meters.get("checkpointStep") or 0
        # A step before the last one is made again; a new checkpoint is the killed attempt's.
        return saved if saved != last.get("checkpointStep") or meters["step"] < last["step"] else 0

    await world.until("two other pods", replaced)
    return await world.until(f"{name} goes on", went_on)


async def test_a_lost_pod_costs_the_attempt_and_nothing_else(world: World) -> None:
    compute = {"pool": POOL, "gpus": 2}
    await world.apply("whole", stages=stages(), compute=compute)
    whole = await world.reaches("whole", "Succeeded")
    assert attempts(whole) == dict.fromkeys(STEPS, ONCE)

    await world.apply("broken", stages=stages(), compute=compute)
    stopped = await loses(world, "broken", beyond=4)
    assert stopped > 4
    again = await loses(world, "broken", beyond=stopped + 20, gracePeriodSeconds=0)
    assert again == stopped, "a pod that is killed leaves no other checkpoint"
    broken = await world.reaches("broken", "Succeeded")

    deleted, killed, last = attempts(broken)["math/train"]
    assert (deleted, last) == (("Interrupted", False), *ONCE)
    # Its peer hears of it from the broken connection or, sooner, from the Job controller.
    assert killed in {("Failed", True), ("Interrupted", False)}
    assert result(broken) == result(whole)
