"""One stack on a cluster: published, and everything that may come in between.

    pytest tests/cluster

runs this on the devcluster; on kind as well, where kind and docker are and both images are named:

    LATTICEFORGE_TEST_OPERATOR_IMAGE=… LATTICEFORGE_TEST_TRAINER_IMAGE=… pytest tests/cluster

and with LATTICEFORGE_TEST_KUBECONFIG on that cluster too, which can pull the images and serves no
other LatticeForge operator: a namespace with operator, Hub and stacks of its own, the CRDs of this
version, a GPUPool and a ClusterRole; all but the CRDs are removed.

The stories run side by side, and each test waits for its own. Training is real but tiny, and the
same in every story, so whatever happened to it, it must end with the same loss.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio
from tests.cluster import objects
from tests.cluster.objects import GATE, PRICE_PER_HOUR, STEPS
from tests.cluster.world import World

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.asyncio(loop_scope="module"),
]

Story = Callable[[World], Awaitable[dict[str, Any]]]

BUDGET = 64
"""Pays for a few seconds more than the least that anything is started for."""


async def undisturbed(world: World) -> dict[str, Any]:
    """Returns the status at the end."""
    (stage,) = objects.stack("", "")["stages"]
    await world.apply("undisturbed", stages=[{**stage, "evaluate": [GATE]}])
    return await world.reaches("undisturbed", "Succeeded")


async def suspended(world: World) -> dict[str, Any]:
    """Suspended while it trains, and resumed; returns the status at the end."""
    await world.apply("suspended")
    reported = await world.trains("suspended", beyond=20)
    await world.apply("suspended", suspend=True)
    status = await world.reaches("suspended", "Suspended")
    assert status["message"] == "suspended; set spec.suspend to false to go on"
    assert await world.active_pods("suspended") == []
    await world.apply("suspended", suspend=False)
    await goes_on_from(world, "suspended", reported)
    return await world.reaches("suspended", "Succeeded")


async def evicted(world: World) -> dict[str, Any]:
    """Its pod deleted while it trains; returns the status at the end."""
    await world.apply("evicted")
    reported = await world.trains("evicted", beyond=20)
    (pod,) = await world.active_pods("evicted")
    await world.delete_pod(pod)

    async def next_attempt() -> bool:
        return len((await world.step("evicted")).get("attempts", [])) > 1

    await world.until("another attempt", next_attempt)
    await goes_on_from(world, "evicted", reported)
    return await world.reaches("evicted", "Succeeded")


async def orphaned(world: World) -> dict[str, Any]:
    """The operator killed while it trains; returns the status at the end."""
    await world.apply("orphaned")
    await world.trains("orphaned", beyond=20)
    await world.kill_operator()
    return await world.reaches("orphaned", "Succeeded")


async def overspent(world: World) -> dict[str, Any]:
    """A budget that ends while it trains; returns the status then."""
    await world.apply("overspent", budget={"limit": str(BUDGET)})
    return await world.reaches("overspent", "Suspended")


async def goes_on_from(world: World, name: str, reported: int) -> None:
    """Waits until it trains again, from the step that it had stopped after."""

    async def resumed_at() -> int:
        status = await world.status(name)
        assert status["phase"] != "Succeeded", f"{name} ended before it was seen to go on"
        meters = await world.meters(name)
        step: int = meters.get("checkpointStep") or 0
        return step if meters.get("step", 0) > step else 0

    assert await world.until(f"{name} trains again", resumed_at) >= reported


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def told(
    world: World,
) -> AsyncIterator[Callable[[Story], asyncio.Task[dict[str, Any]]]]:
    """The stories, all of them begun."""
    stories: list[Story] = [undisturbed, suspended, evicted, orphaned, overspent]
    begun = {story: asyncio.ensure_future(story(world)) for story in stories}
    yield begun.__getitem__
    for task in begun.values():
        task.cancel()
    await asyncio.gather(*begun.values(), return_exceptions=True)


def result(status: dict[str, Any]) -> dict[str, Any]:
    """What training came to: steps, tokens and losses, without what depends on the machine."""
    found: dict[str, Any] = next(s for s in status["steps"] if s["name"] == "math/train")["result"]
    return {key: value for key, value in found.items() if "econd" not in key}


def attempts(status: dict[str, Any]) -> dict[str, list[tuple[str, bool]]]:
    """Outcome of every attempt of every step, and whether it counts as a failure."""
    return {
        step["name"]: [(a["outcome"], a.get("counted", False)) for a in step["attempts"]]
        for step in status["steps"]
    }


ONCE = [("Done", False)]


async def test_a_spec_that_cannot_be_met_is_answered_with_a_sentence(world: World) -> None:
    await world.apply("unmet", compute={"pool": "nowhere"})
    status = await world.reaches("unmet", "Pending")
    assert "compute.pool nowhere does not exist" in status["message"]

    (stage,) = objects.stack("", "")["stages"]
    adapter = {**stage, "method": "LoRA"}
    other = {**adapter, "name": "cic", "lora": {"rank": 2}, "handoff": "ContinueAdapter"}
    await world.apply("refused", stages=[adapter, other])

    async def accepted() -> dict[str, Any]:
        conditions = (await world.status("refused")).get("conditions") or []
        return next((c for c in conditions if c["type"] == "Accepted"), {})

    condition = await world.until("a condition", accepted)
    assert (condition["status"], condition["observedGeneration"]) == ("False", 1)
    assert "stage cic: ContinueAdapter needs the same lora as stage math" in condition["message"]
    for name in ("unmet", "refused"):
        assert await world.left_of(name) == []


async def test_a_base_that_is_not_there_ends_it_with_the_trainers_sentence(world: World) -> None:
    await world.apply("baseless", base={"model": "lab/absent"})
    status = await world.reaches("baseless", "Failed")
    assert "lab/absent" in status["message"]
    assert attempts(status)["math/prepare"] == [("UserError", True)]
    assert await world.active_pods("baseless") == []


async def test_a_stack_is_published(
    world: World, told: Callable[[Story], asyncio.Task[dict[str, Any]]]
) -> None:
    status = await told(undisturbed)
    assert status["phase"] == "Succeeded"
    assert status["published"]["url"] in status["message"]
    assert {c["type"]: c["status"] for c in status["conditions"]}["Succeeded"] == "True"
    steps = [*STEPS[:2], "math/evaluate", STEPS[2]]
    assert attempts(status) == dict.fromkeys(steps, ONCE)
    assert float(status["cost"]["spent"]) > 0
    published = await world.hub("api/models/lab/undisturbed")
    assert published["sha"] == status["published"]["commit"]
    files = {file["rfilename"] for file in published["siblings"]}
    assert {"README.md", "config.json", "model.safetensors"} <= files
    assert result(status)["finalLoss"] < result(status)["firstLoss"]


async def test_a_suspended_stack_goes_on_exactly_where_it_stopped(
    told: Callable[[Story], asyncio.Task[dict[str, Any]]],
) -> None:
    status = await told(suspended)
    assert attempts(status) == dict.fromkeys(STEPS, ONCE)
    assert result(status) == result(await told(undisturbed))


async def test_a_deleted_pod_is_no_failure_and_training_goes_on(
    told: Callable[[Story], asyncio.Task[dict[str, Any]]],
) -> None:
    status = await told(evicted)
    assert attempts(status)["math/train"] == [("Interrupted", False), *ONCE]
    assert result(status) == result(await told(undisturbed))


async def test_without_its_operator_a_stack_goes_on_and_nothing_runs_twice(
    world: World, told: Callable[[Story], asyncio.Task[dict[str, Any]]]
) -> None:
    status = await told(orphaned)
    assert attempts(status) == dict.fromkeys(STEPS, ONCE)
    jobs = await world.children("orphaned", "jobs")
    steps = Counter(job["metadata"]["annotations"]["latticeforge.dev/step"] for job in jobs)
    assert steps == dict.fromkeys(STEPS, 1)
    assert result(status) == result(await told(undisturbed))


async def test_a_spent_budget_releases_the_pods_and_a_raised_one_goes_on(
    world: World, told: Callable[[Story], asyncio.Task[dict[str, Any]]]
) -> None:
    status = await told(overspent)
    assert status["message"] == f"the budget of {BUDGET} is spent; raise it to go on"
    assert 0 < float(status["cost"]["spent"]) <= BUDGET
    assert await world.active_pods("overspent") == []
    await world.apply("overspent", budget={"limit": str(PRICE_PER_HOUR)})
    await world.reaches("overspent", "Running")


async def test_deletion_leaves_nothing_whether_it_runs_or_is_done(
    world: World, told: Callable[[Story], asyncio.Task[dict[str, Any]]]
) -> None:
    await asyncio.gather(*map(told, (undisturbed, overspent)))
    for name in ("undisturbed", "overspent"):
        assert await world.left_of(name) != []
        await world.remove("StackedTraining", "latticeforge.dev/v1alpha1", name)
    for name in ("undisturbed", "overspent"):

        async def gone(name: str = name) -> bool:
            return not await world.left_of(name)

        await world.until(f"nothing left of {name}", gone)
