"""The operator is killed at every one of its API calls; nothing comes out differently.

One undisturbed run of a stack lists the operator's calls. Then the stack is run again and again
until an operator has been killed at every one of them before it reached the API server and, where
the call changes something, also after it took effect and before its answer came. A new operator
starts at once, and may be killed in its turn when it has brought the stack forward. In the end of
every run the Jobs, the attempts, the bill, what the trainers were told and what was published must
be the same as in the undisturbed run.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from decimal import Decimal
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import pytest
from tests.fixtures.api_proxy import Answer, Call, ConnectionResetByTest, Gate, Site, used
from tests.fixtures.operator_world import OperatorWorld, world_in
from tests.integration.fake_trainer import HELD, Fate
from tests.unit.core.builders import spec, stage

from latticeforge_operator.cluster import access

pytestmark = pytest.mark.slow

SHARDS = 2
"""As many processes as `make test` uses."""
AT_ONCE = 4
"""Runs of one process at the same time: an operator that starts leaves a core idle."""
UNDISTURBED_CALLS = 45
"""Calls that an operator makes before it is killed in its turn: its start takes 22 of them, and the
others go on where its predecessor died."""
MAY_BE_MISSED = 0.05
"""Share of the kill points that a run may end without: calls differ a little with the timing."""
GATES = [{"suite": "json", "minimum": "0.5", "samples": 64}]
_PASSING = {
    "queuedSeconds",
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
    """

    fields: dict[str, Any]
    user: Callable[[OperatorWorld], Awaitable[None]]
    fates: dict[str, list[Fate]]


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

_WINDING = spec(stage("one", evaluate=GATES), storage={"size": "1Gi"}, ttlAfterFinished="1s")


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
)
"""A stack that is interrupted, suspended, resumed, edited while it is evaluated, and removed."""

SCENARIOS = {"straight": STRAIGHT, "winding": WINDING}


# --- runs


class KillPoint(NamedTuple):
    """A call, and whether it takes effect before the operator is killed."""

    site: Site
    after: bool

    @property
    def shard(self) -> int:
        return zlib.crc32(repr(self).encode()) % SHARDS

    def __str__(self) -> str:
        verb, group, resource, subject = self.site
        return f"{'after' if self.after else 'before'} {verb} {group}/{resource} ({subject})"


class CrashGate(Gate):
    """Kills the operator.

    Args:
        todo: where; what is done is taken out.

    Attributes:
        killed: where this gate did.
        strike: kills the operator and starts another.
    """

    def __init__(self, todo: set[KillPoint] | None = None) -> None:
        self.killed: list[KillPoint] = []
        self.strike: Callable[[], Awaitable[None]] | None = None
        self._todo = set[KillPoint]() if todo is None else todo
        self._strikes: set[asyncio.Future[None]] = set()

    def _takes(self, call: Call, *, after: bool) -> bool:
        point = KillPoint(call.site, after)
        if point not in self._todo or (self.killed and call.number < UNDISTURBED_CALLS):
            return False
        self._todo.discard(point)
        self.killed.append(point)
        return True

    async def answer(self, call: Call, forward: Callable[[], Awaitable[Answer]]) -> Answer:
        if self._takes(call, after=False):
            await self._kill()
        if self._takes(call, after=True):
            await forward()
            await self._kill()
        return await forward()

    async def connect(self, call: Call) -> Answer | None:
        if self._takes(call, after=False):
            await self._kill()
        return None

    async def _kill(self) -> NoReturn:
        if self.strike is None:
            raise RuntimeError("there is no operator to kill")
        # This handler is cancelled when the operator's connection breaks; its successor must start.
        struck = asyncio.ensure_future(self.strike())
        self._strikes.add(struck)
        await asyncio.shield(struck)
        raise ConnectionResetByTest


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


def _lasting(value: Any) -> Any:
    """A status without what differs from run to run."""
    if isinstance(value, list):
        return [_lasting(item) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {key: _lasting(item) for key, item in value.items() if key not in _PASSING}
    # Pods' names are not foreseeable; the seconds that they held are.
    return kept | {key: sorted(kept[key].values()) for key in ("pods", "idle") if key in kept}


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
    return Run(outcome, world.proxy.calls)


def kill_points(calls: list[Call]) -> set[KillPoint]:
    """Before every call, and after those that change something."""
    before = {KillPoint(call.site, after=False) for call in calls}
    return before | {KillPoint(call.site, after=True) for call in calls if not call.reads}


def _differences(found: Outcome, expected: Outcome) -> list[str]:
    return [
        difference
        for name in ("jobs", "told", "owed", "status")
        for difference in _unlike(getattr(found, name), getattr(expected, name), name)
    ]


def _unlike(found: Any, expected: Any, where: str) -> list[str]:
    """Where two values differ, path by path."""
    if isinstance(found, dict) and isinstance(expected, dict):
        keys = sorted(found.keys() | expected.keys(), key=str)
        pairs = [(found.get(key), expected.get(key), f"{where}.{key}") for key in keys]
    elif isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        triples = zip(found, expected, range(len(found)), strict=True)
        pairs = [(one, other, f"{where}[{index}]") for one, other, index in triples]
    else:
        return [] if found == expected else [f"{where}: {found!r} instead of {expected!r}"]
    return [difference for pair in pairs for difference in _unlike(*pair)]


async def _killed(
    scenario: Scenario, folder: Path, todo: set[KillPoint], expected: Outcome
) -> tuple[list[KillPoint], list[str]]:
    """Where the operator was killed in a run, and what was different."""
    gate = CrashGate(todo)
    try:
        found = _differences((await run(scenario, folder, gate)).outcome, expected)
    except AssertionError as error:
        found = [str(error)]
    where = "\n  ".join(map(str, gate.killed))
    return gate.killed, [f"{difference}\nkilled\n  {where}" for difference in found]


RARE = {
    ("get", "", "configmaps"),  # only granted on to the pods
    ("create", "batch", "jobs"),  # of a server-side apply the proxy sees a patch
    *(("create", "", kind) for kind in ("configmaps", "serviceaccounts")),
    *(("create", "rbac.authorization.k8s.io", kind) for kind in ("roles", "rolebindings")),
    *((verb, "", "services") for verb in ("create", "patch")),  # of several pods
    ("list", "", "events"),  # of a Job without pods
}
"""Permissions that no scenario here makes use of."""


def granted(rules: Iterable[access.Rule]) -> set[tuple[str, str, str]]:
    return {(v, rule.group, r) for rule in rules for v in rule.verbs for r in rule.resources}


@pytest.mark.parametrize("namespaces", [("default",), ()], ids=["namespace", "cluster"])
async def test_the_permissions_that_the_operator_makes_use_of(
    namespaces: tuple[str, ...], tmp_path: Path
) -> None:
    runs = [
        await run(scenario, tmp_path / name, namespaces=namespaces)
        for name, scenario in SCENARIOS.items()
    ]
    found = used([call for done in runs for call in done.calls])
    rules = (*access.IN_NAMESPACE, *access.IN_CLUSTER, *(() if namespaces else access.EVERYWHERE))
    assert found == granted(rules) - RARE


@pytest.mark.parametrize("shard", range(SHARDS))
@pytest.mark.parametrize("name", SCENARIOS)
async def test_an_operator_killed_at_any_call_changes_nothing(
    name: str, shard: int, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    scenario = SCENARIOS[name]
    undisturbed = await run(scenario, tmp_path / "undisturbed")
    assert Decimal(undisturbed.outcome.status["cost"]["spent"]) == undisturbed.outcome.owed
    points = {p for p in kill_points(undisturbed.calls) if p.shard == shard}
    todo, runs = set(points), count()

    async def work() -> list[str]:
        while todo:
            folder = tmp_path / str(next(runs))
            killed, problems = await _killed(scenario, folder, todo, undisturbed.outcome)
            if problems or not killed:
                return problems
        return []

    results = await asyncio.gather(*(work() for _ in range(AT_ONCE)))
    record_property(
        "endurance",
        f"{name} stack: operator killed at {len(points) - len(todo)} points in {next(runs)} runs "
        f"(part {shard + 1} of {SHARDS}; {len(todo)} points not reached)",
    )
    problems = [problem for problems in results for problem in problems]
    assert not problems, "\n".join(problems)
    assert len(todo) <= MAY_BE_MISSED * len(points), [str(point) for point in todo]
