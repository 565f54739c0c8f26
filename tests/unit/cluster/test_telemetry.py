"""What monitoring sees, over HTTP as it asks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import ClientSession
from prometheus_client.parser import text_string_to_metric_families

from latticeforge_operator.cluster.telemetry import (
    STUCK_SECONDS,
    Server,
    StackCollector,
    Telemetry,
    application,
)


def stack(name: str, status: Any, namespace: str = "default") -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": namespace}, "status": status}


def step(name: str, phase: str, *attempts: dict[str, Any]) -> dict[str, Any]:
    numbered = [{"number": i, "job": f"j{i}", **attempt} for i, attempt in enumerate(attempts)]
    return {"name": name, "digest": "d", "phase": phase, "attempts": numbered}


TRAINING = {
    "phase": "Running",
    "plan": {"pool": "h200", "gpus": 8, "steps": []},
    "cost": {"spent": "10.50", "lost": "2.25", "currency": "USD"},
    "steps": [
        step("math/prepare", "Done", {"outcome": "Done"}),
        step(
            "math/train",
            "Running",
            {"outcome": "Stalled", "gpusPerPod": 8, "pods": {"gone": 9.0}},
            {"gpusPerPod": 8, "pods": {"a": 1.0, "b": 2.0, "gone": 3.0}},
        ),
    ],
}


class World:
    def __init__(self) -> None:
        self.now, self.ready = 0.0, False
        self.stacks: list[dict[str, Any]] = []
        self.telemetry = Telemetry(clock=lambda: self.now)
        self.telemetry.registry.register(
            StackCollector(lambda: self.stacks, lambda: {("default", "j1"): 2})
        )
        self.url = ""

    async def get(self, path: str) -> tuple[int, str]:
        async with ClientSession() as session, session.get(self.url + path) as answer:
            return answer.status, await answer.text()

    async def samples(self) -> dict[tuple[str, ...], float]:
        status, text = await self.get("/metrics")
        assert status == 200
        return {
            (
                sample.name.removeprefix("latticeforge_"),
                *sorted(sample.labels.values()),
            ): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    server = Server(application(made.telemetry, lambda: made.ready), 0, "127.0.0.1")
    made.url = f"http://127.0.0.1:{await server.start()}"
    yield made
    await server.aclose()


async def test_stacks_are_summed_by_namespace_and_pool(world: World) -> None:
    world.stacks = [
        stack("a", TRAINING),
        stack("b", TRAINING | {"phase": "Succeeded", "steps": []}),
        stack("c", None, namespace="other"),
        stack("d", {"phase": "Nonsense"}),
    ]
    samples = await world.samples()
    assert samples["stacks", "Running", "default"] == 1
    assert samples["stacks", "Unreadable", "default"] == 1
    assert samples["stacks", "Pending", "other"] == 1
    assert samples["spent", "USD", "default", "h200"] == 21
    assert samples["lost", "USD", "default", "h200"] == 4.5
    assert samples["gpus_held", "default", "h200"] == 16
    assert samples["steps", "Running", "default", "train"] == 1
    assert samples["attempts", "Stalled", "default"] == 1
    assert samples["attempts", "Done", "default"] == 1


async def test_the_speed_of_running_steps_is_summed_by_pool(world: World) -> None:
    def trains(job: str, **meters: Any) -> dict[str, Any]:
        gauges = {"step": 3, "totalSteps": 9, **meters}
        running = step("math/train", "Running", {"outcome": "Stalled"}, {"job": job})
        return TRAINING | {"steps": [running | {"meters": gauges}, step("publish", "Pending")]}

    world.stacks = [stack("a", trains("j1", tokensPerSecond=90, modelFlopsPerSecond=8e12))]
    assert (await world.samples())["tokens_per_second", "default", "h200"] == 90
    world.stacks += [
        stack("b", trains("j1", tokensPerSecond=10)),
        stack("c", trains("suspended", tokensPerSecond=5, modelFlopsPerSecond=1e12)),
        stack("d", trains("j1", tokensPerSecond="of another trainer")),
        stack("e", trains("j1", tokensPerSecond=7) | {"plan": None}),
    ]
    samples = await world.samples()
    assert samples["tokens_per_second", "default", "h200"] == 100
    assert samples["model_flops_per_second", "default", "h200"] == 8e12
    assert samples["tokens_per_second", "", "default"] == 7
    assert ("model_flops_per_second", "", "default") not in samples


@pytest.mark.parametrize(
    ("fields", "idle"),
    [
        ({}, 16),
        ({"meters": {"step": 0, "totalSteps": 9}}, 16),
        ({"meters": {"step": 3, "totalSteps": 9, "tokensPerSecond": 90}}, 0),
        ({"name": "math/evaluate"}, 16),
        ({"name": "math/evaluate", "fraction": 0.1}, 0),
    ],
)
async def test_gpus_are_idle_until_their_step_reports_work(
    world: World, fields: dict[str, Any], idle: int
) -> None:
    running = step("math/train", "Running", {"outcome": "Stalled"}, {"gpusPerPod": 8})
    world.stacks = [stack("a", TRAINING | {"steps": [running | fields]})]
    samples = await world.samples()
    assert samples["gpus_held", "default", "h200"] == 16
    assert samples.get(("gpus_idle", "default", "h200"), 0) == idle


@pytest.mark.parametrize(
    ("budget", "phase", "used"),
    [
        ({"limit": "42"}, "Running", 0.25),
        ({"limit": "42"}, "Suspended", 0.25),
        ({"limit": "42"}, "Failed", None),
        ({"limit": "0"}, "Running", None),
        ({"limit": "much"}, "Running", None),
        (None, "Running", None),
    ],
)
async def test_how_much_of_its_budget_a_stack_has_used(
    world: World, budget: dict[str, str] | None, phase: str, used: float | None
) -> None:
    world.stacks = [stack("a", TRAINING | {"phase": phase}) | {"spec": {"budget": budget}}]
    assert (await world.samples()).get(("budget_used_ratio", "a", "default")) == used


async def test_passes_are_counted_and_timed(world: World) -> None:
    for result in ("done", "done", "unavailable"):
        with world.telemetry.timed_pass("a"):
            world.now += 2
        world.telemetry.passed(result)
    world.telemetry.first_step(7)
    samples = await world.samples()
    assert samples["reconciles_total", "done"] == 2
    assert samples["reconciles_total", "unavailable"] == 1
    assert samples["reconcile_duration_seconds_sum",] == 6
    assert samples["time_to_first_step_seconds_bucket", "5.0"] == 0
    assert samples["time_to_first_step_seconds_bucket", "10.0"] == 1


async def test_it_is_alive_as_long_as_passes_move(world: World) -> None:
    assert (await world.get("/healthz"))[0] == 200
    world.telemetry.woken("a")
    world.now += STUCK_SECONDS
    world.telemetry.woken("a")
    assert (await world.get("/healthz"))[0] == 200
    world.now += 1
    assert await world.get("/healthz") == (503, "a stack waits for its pass for 301 s\n")
    with world.telemetry.timed_pass("a"):
        pass
    assert (await world.get("/healthz"))[0] == 200


async def test_it_is_ready_when_everything_has_been_listed(world: World) -> None:
    assert await world.get("/readyz") == (503, "starting\n")
    world.ready = True
    assert await world.get("/readyz") == (200, "ok\n")


async def test_a_taken_port_is_told(world: World) -> None:
    port = int(world.url.rpartition(":")[2])
    server = Server(application(world.telemetry, lambda: True), port, "127.0.0.1")
    with pytest.raises(OSError, match="address already in use"):
        await server.start()
    await server.aclose()
