"""The operator is killed at every one of its API calls; nothing comes out differently.

One undisturbed run of a stack lists the operator's calls. Then the stack is run once for every
call, with an operator that is killed at that call before it reaches the API server, and once more,
for calls that change something, with one that is killed after the call took effect and before its
answer came. A new operator starts at once. In the end the Jobs, the attempts, the bill, what the
trainers were told and what was published must be the same as in the undisturbed run.
"""

from __future__ import annotations

import asyncio
import os
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.api_proxy import Answer, Call, ConnectionResetByTest, Gate, Site, used
from tests.fixtures.operator_world import OperatorWorld, world_in
from tests.integration.fake_trainer import HELD, Fate
from tests.unit.core.builders import spec, stage

pytestmark = pytest.mark.slow

SHARDS = 2
"""As many processes as `make test` uses."""
AT_ONCE = 6
"""Runs of one process at the same time: an operator that starts leaves a core idle."""
MAY_BE_MISSED = 0.05
"""Share of the kill points that a run may end without: calls differ a little with the timing."""
GATES = [{"suite": "json", "minimum": "0.5", "samples": 64}]
_PASSING = {
    "startedAt",
    "finishedAt",
    "endedAt",
    "lastTransitionTime",
    "volumeRemovedAt",
    "eta",
    "job",
}
"""Fields of a status that differ from run to run: times, and names that hold a UID."""


# --- stacks


@dataclass(frozen=True)
class Scenario:
    """A stack and what its user does to it.

    Attributes:
        fields: its spec.
        user: what its user does; ends with the stack.
        fates: how the first pods of its steps end.
        decisive: the resources at whose calls the operator is killed; empty: at every call.
    """

    fields: dict[str, Any]
    user: Callable[[OperatorWorld], Awaitable[None]]
    fates: dict[str, list[Fate]]
    decisive: frozenset[str] = frozenset()


async def _waits(world: OperatorWorld) -> None:
    await world.until(lambda: world.status.get("phase") == "Succeeded", "published")


STRAIGHT = Scenario(
    spec(
        stage("math", evaluate=GATES),
        stage("cic", evaluate=GATES, method="Full"),
        storage={"size": "1Gi"},
    ),
    _waits,
    {},
)
"""Two stages from preparation to publication, as they should go."""

_WINDING = spec(
    stage("one", evaluate=GATES), storage={"size": "1Gi"}, ttlAfterFinished="1s"
)


def _works(world: OperatorWorld, step: str, attempts: int) -> bool:
    found = world.step(step)
    return found.get("message") == "works" and len(found["attempts"]) == attempts


async def _meddles(world: OperatorWorld) -> None:
    await world.until(lambda: _works(world, "one/train", 2), "started again")
    world.apply(_WINDING | {"suspend": True})
    await world.until(lambda: world.status["phase"] == "Suspended", "suspended")
    world.apply(_WINDING | {"suspend": False})
    await world.until(lambda: _works(world, "one/evaluate", 1), "evaluated")
    faster = stage("one", evaluate=GATES, hyperparameters={"learningRate": "1e-6"})
    world.apply(_WINDING | {"stages": [faster]})
    await world.until(lambda: world.status.get("volumeRemovedAt"), "cleaned up")


WINDING = Scenario(
    _WINDING,
    _meddles,
    {"one/train": [Fate(80), Fate(HELD)], "one/evaluate": [Fate(HELD)]},
    decisive=frozenset({"jobs", "pods", "persistentvolumeclaims", "stackedtrainings/status"}),
)
"""A stack that is interrupted, suspended, resumed, edited while it is evaluated, and removed.

Its other calls are those of a straight stack. LATTICEFORGE_CRASH_ALL=1 has the operator killed at
them too.
"""

SCENARIOS = {"straight": STRAIGHT, "winding": WINDING}


# --- runs


class CrashGate(Gate):
    """Kills the operator at one call, once.

    Args:
        site: the call.
        after: whether it takes effect first.
    """

    def __init__(self, site: Site | None = None, *, after: bool = False) -> None:
        self.reached = False
        self.strike: Callable[[], Awaitable[None]] | None = None
        self._site, self._after = site, after
        self._struck: asyncio.Future[None] | None = None

    async def answer(self, call: Call, forward: Callable[[], Awaitable[Answer]]) -> Answer:
        if self.reached or call.site != self._site:
            return await forward()
        if self._after:
            await forward()
        await self._kill()
        raise ConnectionResetByTest

    async def connect(self, call: Call) -> Answer | None:
        if not self.reached and call.site == self._site:
            await self._kill()
            raise ConnectionResetByTest
        return None

    async def _kill(self) -> None:
        if self.strike is None:
            raise RuntimeError("there is no operator to kill")
        self.reached = True
        # This handler is cancelled when the operator's connection breaks; its successor must start.
        self._struck = asyncio.ensure_future(self.strike())
        await asyncio.shield(self._struck)


@dataclass(frozen=True)
class Outcome:
    """What a run came to."""

    status: dict[str, Any]
    jobs: list[str]
    """The step of every Job that was ever created, in order."""
    told: dict[str, str]
    """Fingerprints of what each Job was told."""
    owed: Decimal
    """Money for the time that the pods held their resources, as the kubelet knows it."""


@dataclass(frozen=True)
class Run:
    outcome: Outcome
    calls: list[Call]
    reached: bool


def _lasting(value: Any) -> Any:
    """A status without what differs from run to run."""
    if isinstance(value, list):
        return [_lasting(item) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {key: _lasting(item) for key, item in value.items() if key not in _PASSING}
    return kept | {"pods": sorted(kept["pods"].values())} if "pods" in kept else kept


async def run(scenario: Scenario, folder: Path, gate: CrashGate | None = None, **how: Any) -> Run:
    """Runs a scenario to its end."""
    gate = gate or CrashGate()
    async with world_in(folder, gate, **how) as world:
        gate.strike = world.replace_operator
        for step, fates in scenario.fates.items():
            world.kubelet.fates[step].extend(fates)
        world.start_operator()
        world.apply(scenario.fields)
        await scenario.user(world)
        await world.until(world.settled, "at rest")
        outcome = Outcome(
            _lasting(world.status), world.observer.jobs, world.configs(), world.kubelet.owed
        )
    return Run(outcome, world.proxy.calls, gate.reached)


@dataclass(frozen=True)
class KillPoint:
    site: Site
    after: bool

    @property
    def shard(self) -> int:
        return zlib.crc32(repr(self).encode()) % SHARDS

    def __str__(self) -> str:
        verb, group, resource, ordinal = self.site
        when = "after" if self.after else "before"
        return f"{when} {verb} {group}/{resource} #{ordinal}"


def kill_points(scenario: Scenario, calls: list[Call]) -> list[KillPoint]:
    """Before every call, and after those that change something."""
    before = [KillPoint(call.site, after=False) for call in calls]
    after = [KillPoint(call.site, after=True) for call in calls if not call.reads]
    if not scenario.decisive or os.environ.get("LATTICEFORGE_CRASH_ALL"):
        return before + after
    return [point for point in before + after if point.site.resource in scenario.decisive]


def _differences(found: Outcome, expected: Outcome) -> list[str]:
    return [
        f"{name}: {getattr(found, name)!r}\n  instead of {getattr(expected, name)!r}"
        for name in ("jobs", "told", "owed", "status")
        if getattr(found, name) != getattr(expected, name)
    ]


async def _killed(
    scenario: Scenario, folder: Path, point: KillPoint, expected: Outcome
) -> tuple[bool, list[str]]:
    """Whether the point was reached, and what was different."""
    try:
        done = await run(scenario, folder, CrashGate(point.site, after=point.after))
    except AssertionError as error:
        return True, [f"killed {point}: {error}"]
    return done.reached, [f"killed {point}: {d}" for d in _differences(done.outcome, expected)]


USED = frozenset(
    {
        *((verb, "latticeforge.dev", "gpupools") for verb in ("list", "watch")),
        *((verb, "latticeforge.dev", "stackedtrainings") for verb in ("list", "watch")),
        ("patch", "latticeforge.dev", "stackedtrainings/status"),
        *((verb, "batch", "jobs") for verb in ("list", "watch", "patch", "delete")),
        *((verb, "", "pods") for verb in ("list", "watch")),
        *((verb, "", "configmaps") for verb in ("list", "watch", "patch")),
        *((verb, "", "persistentvolumeclaims") for verb in ("patch", "delete")),
        ("patch", "", "serviceaccounts"),
        ("create", "", "events"),
        *(("patch", "rbac.authorization.k8s.io", kind) for kind in ("roles", "rolebindings")),
    }
)
EVERYWHERE = frozenset(
    {
        *((verb, "apiextensions.k8s.io", "customresourcedefinitions") for verb in ("list", "watch")),
        *((verb, "", "namespaces") for verb in ("list", "watch")),
    }
)
"""What Kopf needs beside that to serve every namespace."""


@pytest.mark.parametrize("namespaces", [("default",), ()], ids=["namespace", "cluster"])
async def test_the_permissions_that_the_operator_makes_use_of(
    namespaces: tuple[str, ...], tmp_path: Path
) -> None:
    runs = [
        await run(scenario, tmp_path / name, namespaces=namespaces)
        for name, scenario in SCENARIOS.items()
    ]
    found = used([call for done in runs for call in done.calls])
    assert found == (USED if namespaces else USED | EVERYWHERE)


@pytest.mark.parametrize("shard", range(SHARDS))
@pytest.mark.parametrize("name", SCENARIOS)
async def test_an_operator_killed_at_any_call_changes_nothing(
    name: str, shard: int, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    scenario = SCENARIOS[name]
    undisturbed = await run(scenario, tmp_path / "undisturbed")
    assert Decimal(undisturbed.outcome.status["cost"]["spent"]) == undisturbed.outcome.owed
    points = [point for point in kill_points(scenario, undisturbed.calls) if point.shard == shard]
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> tuple[bool, list[str]]:
        async with slots:
            folder = tmp_path / str(number)
            return await _killed(scenario, folder, points[number], undisturbed.outcome)

    results = await asyncio.gather(*map(one, range(len(points))))
    missed = [str(p) for p, (reached, _) in zip(points, results, strict=True) if not reached]
    record_property(
        "endurance",
        f"operator killed at {len(points) - len(missed)} API calls of a {name} stack "
        f"(part {shard + 1} of {SHARDS}; {len(missed)} not reached)",
    )
    problems = [problem for _, different in results for problem in different]
    assert not problems, f"{len(problems)} differences\n" + "\n".join(problems[:20])
    assert len(missed) <= MAY_BE_MISSED * len(points), missed
