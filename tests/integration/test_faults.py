"""The API server and the network do their worst, at random; the stack still ends right.

Every seed is a stack from preparation to publication, with an operator whose every fifth call or
watch event goes wrong. What must hold at any moment is watched in the API server itself: what was
spent never falls, no attempt is forgotten, an end is an end, and no step has two live attempts.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.api_proxy import Answer, Call, Gate, refusal
from tests.fixtures.faults import FaultGate
from tests.fixtures.operator_world import world_in
from tests.integration.test_crash import SCENARIOS, Outcome, _differences, _lasting, run

pytestmark = pytest.mark.slow

SEEDS = 12
SHARE = 0.2
AT_ONCE = 6
IMPATIENT: dict[str, Any] = {
    "program.INACTIVITY_TIMEOUT": 1.5,
    "program.WATCH_BACKOFFS": [0.05] * 100,
    "program.FIRST_RETRY": 0.05,
    "program.LONGEST_RETRY": 0.2,
    "program.EXIT_SECONDS": 0.2,
    "reconciler.LONGEST_BACKOFF": 0.3,
    "reconciler.RESYNC_SECONDS": 1.0,
    "settle.PATIENCE": timedelta(seconds=1),
}
"""What takes a minute in production takes a second here."""


async def _faulty(seed: int, folder: Path, expected: Outcome) -> tuple[Counter[str], list[str]]:
    """What went wrong in a run, and what it did to the stack."""
    scenario = SCENARIOS["straight"]
    gate = FaultGate(seed, SHARE)
    try:
        async with world_in(folder, gate, constants=IMPATIENT, revived=True) as world:
            world.start_operator()
            world.apply(scenario.fields)
            await scenario.user(world)
            gate.active = False
            await world.replace_operator()
            await world.until(world.settled, "at rest")
            found = Outcome(
                _lasting(world.status), world.observer.jobs, world.configs(), world.kubelet.owed
            )
            gate.counted["operator ended"] += world.revived or 0
            if Decimal(world.status["cost"]["spent"]) != world.kubelet.owed:
                return gate.counted, [f"spent {world.status['cost']}, not {world.kubelet.owed}"]
    except AssertionError as error:
        return gate.counted, [str(error)]
    # The model card's cost is what was known when it was written.
    known = {step: text for step, text in found.told.items() if not step.startswith("publish")}
    return gate.counted, _differences(
        replace(found, told=known | {s: t for s, t in expected.told.items() if s not in known}),
        expected,
    )


async def test_whatever_the_api_does_the_stack_ends_right(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    undisturbed = await run(SCENARIOS["straight"], tmp_path / "undisturbed")
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(seed: int) -> tuple[Counter[str], list[str]]:
        async with slots:
            return await _faulty(seed, tmp_path / str(seed), undisturbed.outcome)

    results = await asyncio.gather(*map(one, range(SEEDS)))
    counted = sum((faults for faults, _ in results), start=Counter[str]())
    shown = ", ".join(f"{number} x {fault}" for fault, number in sorted(counted.items()))
    record_property("endurance", f"stacks published through {counted.total()} faults: {shown}")
    problems = [f"seed {seed}: {p}" for seed, (_, found) in enumerate(results) for p in found]
    assert not problems, "\n".join(problems)


class PastGate(Gate):
    """Shows the stacks, from some moment on, as the first list of them was.

    Attributes:
        deceives: whether that moment has come.
        refuted: how often the operator then asked for one stack alone, and was told the truth.
    """

    def __init__(self) -> None:
        self.deceives = False
        self.refuted = 0
        self._first: Answer | None = None

    async def answer(self, call: Call, forward: Callable[[], Awaitable[Answer]]) -> Answer:
        if call.site[:3] != ("list", "latticeforge.dev", "stackedtrainings"):
            return await forward()
        if "fieldSelector" in call.query:
            self.refuted += 1
            self.deceives = False
            return await forward()
        self._first = self._first or await forward()
        return self._first if self.deceives else await forward()

    async def connect(self, call: Call) -> Answer | None:
        if self.deceives and call.site.resource == "stackedtrainings":
            return refusal(503, "ServiceUnavailable")
        return None


async def test_an_operator_that_is_told_of_the_past_overwrites_nothing(tmp_path: Path) -> None:
    scenario = SCENARIOS["straight"]
    undisturbed = await run(scenario, tmp_path / "undisturbed")
    gate = PastGate()
    async with world_in(tmp_path / "past", gate, constants=IMPATIENT) as world:
        world.apply(scenario.fields)
        world.start_operator()
        await world.until(lambda: world.step("math/merge").get("phase") == "Done", "merged")
        gate.deceives = True
        await world.replace_operator()
        await world.until(lambda: gate.refuted, "refuted")
        await scenario.user(world)
        await world.until(world.settled, "at rest")
        assert world.observer.jobs == undisturbed.outcome.jobs
        assert _lasting(world.status) == undisturbed.outcome.status
