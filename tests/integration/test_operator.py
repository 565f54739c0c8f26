"""The real operator process against the devcluster, with trainers that only pretend."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession
from tests.integration.fake_trainer import HELD, FakeKubelet, Fate, fake_kubelet
from tests.unit.core.builders import spec, stage

from latticeforge_operator.api import API_VERSION
from latticeforge_operator.api.crds import all_crds
from latticeforge_operator.cluster.names import STEP_ANNOTATION
from latticeforge_operator.core.walk import APPROVE_ANNOTATION
from latticeforge_operator.devcluster.cluster import DevCluster
from latticeforge_operator.devcluster.controllers.objects import (
    CLAIMS,
    CONFIG_MAPS,
    EVENTS,
    JOBS,
    PODS,
    SERVICE_ACCOUNTS,
    find,
)
from latticeforge_operator.devcluster.resources import ResourceKey
from latticeforge_operator.devcluster.store import Store

pytestmark = pytest.mark.slow

CRDS = ResourceKey("apiextensions.k8s.io/v1", "customresourcedefinitions")
TRAININGS = ResourceKey(API_VERSION, "stackedtrainings")
POOLS = ResourceKey(API_VERSION, "gpupools")
ROLES = ResourceKey("rbac.authorization.k8s.io/v1", "roles")
BINDINGS = ResourceKey("rbac.authorization.k8s.io/v1", "rolebindings")
DEADLINE = 120
GATES = [{"suite": "json", "minimum": "0.5", "samples": 64}]
TWO_STAGES = spec(
    stage("math", evaluate=GATES),
    stage("cic", evaluate=GATES, method="Full"),
    storage={"size": "1Gi"},
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class World:
    """A devcluster with a stack, a kubelet that pretends, and an operator that can be killed."""

    def __init__(self, store: Store, kubelet: FakeKubelet, kubeconfig: Path, log: Path) -> None:
        self.store, self.kubelet, self._kubeconfig, self._log = store, kubelet, kubeconfig, log
        self.port = free_port()
        self.jobs_added: list[str] = []
        self.deadly: set[int] = set()
        """How many Jobs there are when the operator is killed, before it can write that down."""
        self._operator: asyncio.subprocess.Process | None = None

    async def start_operator(self) -> None:
        with self._log.open("ab") as log:
            self._operator = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "latticeforge_operator.cluster",
                "-n",
                "default",
                "--metrics-port",
                str(self.port),
                stdout=log,
                stderr=log,
                env={
                    **os.environ,
                    "KUBECONFIG": str(self._kubeconfig),
                    "HF_HUB_OFFLINE": "1",
                    "PYTHONPATH": os.pathsep.join(sys.path),
                },
            )

    async def end_operator(self, number: signal.Signals = signal.SIGKILL) -> int | None:
        """Ends the operator; returns its exit status."""
        operator, self._operator = self._operator, None
        if operator is None:
            return None
        if operator.returncode is None:
            operator.send_signal(number)
        return await asyncio.wait_for(operator.wait(), DEADLINE)

    async def follow_jobs(self) -> None:
        async for event in self.store.watch(JOBS):
            if event.type == "ADDED":
                self.jobs_added.append(event.object["metadata"]["name"])
                if len(self.jobs_added) in self.deadly and self._operator is not None:
                    self._operator.kill()

    async def until(self, condition: Callable[[], object]) -> None:
        """Waits until a condition holds; tells where the stack stands if it never does."""
        try:
            async with asyncio.timeout(DEADLINE):
                while not condition():
                    if self._died_unasked():
                        pytest.fail(f"the operator ended:\n{self._log.read_text()}")
                    await asyncio.sleep(0.02)
        except TimeoutError:
            status = [t.get("status", {}) for t in self.store.list(TRAININGS)]
            shown = [(s.get("phase"), s.get("message")) for s in status]
            pytest.fail(f"it never came to be; {shown}\n{self._log.read_text()}")

    def is_at(self, revision: int) -> bool:
        """Whether so much has been written, or the operator is dead before that."""
        dead = self._operator is None or self._operator.returncode is not None
        return dead or self.store.revision >= revision or self.status().get("phase") == "Succeeded"

    def _died_unasked(self) -> bool:
        code = None if self._operator is None else self._operator.returncode
        return code is not None and code != -signal.SIGKILL

    # --- the stack

    def apply(self, fields: dict[str, Any], name: str = "elle") -> None:
        manifest = {
            "apiVersion": API_VERSION,
            "kind": "StackedTraining",
            "metadata": {"name": name, "namespace": "default"},
            "spec": fields,
        }
        self.store.apply(TRAININGS, "default", name, manifest, manager="kubectl", force=True)

    def status(self, name: str = "elle") -> dict[str, Any]:
        found: dict[str, Any] = self.store.get(TRAININGS, "default", name).get("status", {})
        return found

    def reaches(self, phase: str, name: str = "elle") -> Callable[[], bool]:
        return lambda: self.status(name).get("phase") == phase

    def steps_of(self, names: list[str]) -> list[str]:
        """The steps whose Jobs these are; Jobs that are gone are left out."""
        jobs = [find(self.store, JOBS, "default", name) for name in names]
        return [job["metadata"]["annotations"][STEP_ANNOTATION] for job in jobs if job]

    def runs(self, step: str) -> Callable[[], bool]:
        """Whether a pod of the step is running."""
        label = step.replace("/", ".")
        return lambda: any(
            pod["metadata"]["labels"]["latticeforge.dev/step"] == label
            and pod.get("status", {}).get("phase") == "Running"
            and "deletionTimestamp" not in pod["metadata"]
            for pod in self.store.list(PODS)
        )

    def events(self) -> list[str]:
        return [
            event["reason"]
            for event in self.store.list(EVENTS)
            if event["involvedObject"]["kind"] == "StackedTraining"
        ]


@asynccontextmanager
async def world_in(folder: Path) -> AsyncIterator[World]:
    cluster = await DevCluster.start(data_dir=folder / "cluster", run_pods=False)
    try:
        store = cluster.store
        for crd in all_crds().values():
            store.create(CRDS, "", crd)
        pool = {
            "metadata": {"name": "h200"},
            "spec": {"accelerator": "H200", "pricePerGPUHour": "3600"},
        }
        store.create(POOLS, "", pool)
        async with fake_kubelet(store) as kubelet:
            world = World(store, kubelet, cluster.kubeconfig, folder / "operator.log")
            follower = asyncio.create_task(world.follow_jobs())
            try:
                yield world
                assert not kubelet.overlaps, "two pods of one step at the same time"
            finally:
                await world.end_operator()
                follower.cancel()
    finally:
        await cluster.aclose()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with world_in(tmp_path) as made:
        await made.start_operator()
        yield made


LINE = [
    "math/prepare",
    "cic/prepare",
    "math/train",
    "math/merge",
    "math/evaluate",
    "cic/train",
    "cic/evaluate",
    "publish",
]


async def test_a_stack_runs_to_its_end_and_its_deletion_leaves_nothing(world: World) -> None:
    world.apply(TWO_STAGES)
    await world.until(world.reaches("Succeeded"))
    assert world.steps_of(world.jobs_added) == LINE
    status = world.status()
    assert status["published"]["url"] == "https://hub/owner/result"
    assert [step["phase"] for step in status["steps"]] == ["Done"] * len(LINE)
    assert {c["type"]: c["status"] for c in status["conditions"]} == {
        "Accepted": "True",
        "Planned": "True",
        "Progressing": "False",
        "Succeeded": "True",
    }
    await world.until(lambda: "Succeeded" in world.events())
    counted = Counter(world.events())
    assert counted == {"StepDone": 8, "GatePassed": 2, "Succeeded": 1}

    world.apply(TWO_STAGES | {"ttlAfterFinished": "1h"})
    await world.until(lambda: world.status()["observedGeneration"] == 2)
    assert world.status()["phase"] == "Succeeded"
    assert len(world.jobs_added) == len(LINE)

    assert await world.end_operator(signal.SIGTERM) == 0
    world.store.delete(TRAININGS, "default", "elle")
    kinds = (JOBS, PODS, CONFIG_MAPS, SERVICE_ACCOUNTS, ROLES, BINDINGS, CLAIMS)

    def left() -> list[str]:
        listed = [obj for kind in kinds for obj in world.store.list(kind, "default")]
        return [obj["metadata"]["name"] for obj in listed if obj["metadata"].get("labels")]

    await world.until(lambda: not left())
    assert find(world.store, TRAININGS, "default", "elle") is None


async def test_monitoring_sees_what_happened(world: World) -> None:
    world.apply(TWO_STAGES)
    await world.until(world.reaches("Succeeded"))
    found = {}
    async with ClientSession(f"http://127.0.0.1:{world.port}") as session:
        for path in ("/readyz", "/healthz", "/metrics"):
            async with session.get(path) as answer:
                assert answer.status == 200
                found[path] = await answer.text()
    assert (
        'latticeforge_steps{kind="train",namespace="default",phase="Done"} 2.0'
        in (found["/metrics"])
    )
    assert "latticeforge_time_to_first_step_seconds_count 1.0" in found["/metrics"]
    assert 'latticeforge_reconciles_total{result="defect"}' not in found["/metrics"]


async def test_an_operator_that_is_killed_again_and_again_does_nothing_twice(
    tmp_path: Path,
) -> None:
    chance = random.Random(2)  # noqa: S311  (moments, not secrets)
    async with world_in(tmp_path) as world:
        world.deadly = {1, 4, 7}
        world.apply(TWO_STAGES)
        for _ in range(6):
            await world.start_operator()
            moment = world.store.revision + chance.randint(1, 60)
            await world.until(partial(world.is_at, moment))
            await world.end_operator()
        await world.start_operator()
        await world.until(world.reaches("Succeeded"))
        assert world.steps_of(world.jobs_added) == LINE
        assert all(len(step["attempts"]) == 1 for step in world.status()["steps"])


async def test_an_edit_runs_again_what_it_changes_and_nothing_else(world: World) -> None:
    world.apply(TWO_STAGES)
    await world.until(world.reaches("Succeeded"))
    spent = float(world.status()["cost"]["spent"])
    edited = spec(
        stage("math", evaluate=GATES),
        stage("cic", evaluate=GATES, method="Full", hyperparameters={"learningRate": "1e-6"}),
        storage={"size": "1Gi"},
    )
    world.apply(edited)
    await world.until(lambda: world.status()["observedGeneration"] == 2)
    await world.until(world.reaches("Succeeded"))
    assert world.steps_of(world.jobs_added[len(LINE) :]) == [
        "cic/train",
        "cic/evaluate",
        "publish",
    ]
    assert float(world.status()["cost"]["spent"]) >= spent


async def test_an_edit_while_it_runs_ends_the_old_job_first(world: World) -> None:
    world.kubelet.fates["math/train"].append(Fate(HELD))
    world.apply(TWO_STAGES)
    await world.until(world.runs("math/train"))
    (old,) = [name for name in world.jobs_added if "-train-" in name]
    edited = [
        stage("math", evaluate=GATES, hyperparameters={"learningRate": "1e-6"}),
        TWO_STAGES["stages"][1],
    ]
    world.kubelet.lingering.add("math/train")
    world.apply(TWO_STAGES | {"stages": edited})
    await world.until(lambda: "of a deleted Job to end" in world.status()["message"])
    world.kubelet.let_go()
    await world.until(world.reaches("Succeeded"))
    assert find(world.store, JOBS, "default", old) is None
    assert len([name for name in world.jobs_added if "-train-" in name]) == 3


async def test_suspension_and_resumption_keep_the_attempt(world: World) -> None:
    world.kubelet.fates["math/train"].append(Fate(HELD))
    world.apply(TWO_STAGES)
    await world.until(world.runs("math/train"))
    world.apply(TWO_STAGES | {"suspend": True})
    await world.until(world.reaches("Suspended"))
    assert not world.runs("math/train")()
    world.apply(TWO_STAGES | {"suspend": False})
    await world.until(world.reaches("Succeeded"))
    train = next(s for s in world.status()["steps"] if s["name"] == "math/train")
    assert len(train["attempts"]) == 1
    assert world.kubelet.started.count("math/train") == 2


async def test_gates_stop_or_wait_for_approval(world: World) -> None:
    world.kubelet.fates["one/evaluate"] += [Fate(good=False), Fate(good=False)]
    world.apply(spec(stage("one", evaluate=GATES)))
    await world.until(world.reaches("Failed"))
    assert "stage one did not pass its gate" in world.status()["message"]
    assert "publish" not in world.steps_of(world.jobs_added)

    asks = spec(stage("one", evaluate=GATES, onGateFailure="RequireApproval"))
    world.apply(asks)
    await world.until(world.reaches("AwaitingApproval"))
    approval = {"metadata": {"annotations": {APPROVE_ANNOTATION: "one"}}}
    world.store.merge_patch(TRAININGS, "default", "elle", approval)
    await world.until(world.reaches("Succeeded"))


async def test_failures_are_treated_by_their_exit_code(world: World) -> None:
    world.kubelet.fates["one/train"] += [Fate(80), Fate(80), Fate(1)]
    world.kubelet.fates["one/evaluate"].append(Fate(81))
    world.apply(spec(stage("one", evaluate=GATES), failure={"maxRestarts": 1}))
    await world.until(world.reaches("Failed"))
    assert world.status()["message"] == "one/evaluate failed: it ended with 81"
    train = next(s for s in world.status()["steps"] if s["name"] == "one/train")
    assert [(a["outcome"], a["counted"]) for a in train["attempts"]] == [
        ("Interrupted", False),
        ("Interrupted", False),
        ("Failed", True),
        ("Done", False),
    ]
    await world.until(lambda: "StepFailed" in world.events())


async def test_a_job_that_is_deleted_is_made_again(world: World) -> None:
    world.kubelet.fates["math/train"].append(Fate(HELD))
    world.apply(TWO_STAGES)
    await world.until(world.runs("math/train"))
    (job,) = [name for name in world.jobs_added if "-train-" in name]
    world.kubelet.lingering.add("math/train")
    world.store.delete(JOBS, "default", job)
    await world.until(lambda: "of a deleted Job to end" in world.status()["message"])
    world.kubelet.let_go()
    await world.until(world.reaches("Succeeded"))
    train = next(s for s in world.status()["steps"] if s["name"] == "math/train")
    assert [a["outcome"] for a in train["attempts"]] == ["Vanished", "Done"]


async def test_bad_specs_become_conditions(world: World) -> None:
    # The API server refuses most; what only the operator can tell becomes a condition.
    impossible = [{"suite": "json", "minimum": "0.95", "samples": 64}]
    world.apply(spec(stage("one", evaluate=impossible)))
    await world.until(world.reaches("Failed"))
    (accepted,) = [c for c in world.status()["conditions"] if c["type"] == "Accepted"]
    assert (accepted["status"], accepted["observedGeneration"]) == ("False", 1)
    assert "give samples: 73 or more" in accepted["message"]
    assert not world.jobs_added
    world.apply(spec(stage("one"), compute={"pool": "nowhere"}))
    await world.until(world.reaches("Pending"))
    assert "compute.pool nowhere does not exist (there are: h200)" in world.status()["message"]
    nowhere = {"metadata": {"name": "nowhere"}, "spec": {"accelerator": "CPU", "gpusPerNode": 0}}
    world.store.create(POOLS, "", nowhere)
    await world.until(world.reaches("Succeeded"))


async def test_a_namesake_of_a_deleted_stack_starts_from_nothing(world: World) -> None:
    fields = spec(stage("one"), storage={"size": "1Gi"})
    world.apply(fields)
    await world.until(world.reaches("Succeeded"))
    first = list(world.jobs_added)
    world.store.delete(TRAININGS, "default", "elle")
    world.apply(fields)
    await world.until(world.reaches("Succeeded"))
    assert len(world.jobs_added) == 2 * len(first)
    assert not set(first) & set(world.jobs_added[len(first) :])
