"""The life of a release: installed, upgraded and rolled back while a stack trains, uninstalled.

    pytest tests/cluster/test_chart.py

Real Helm installs the chart, cluster-wide and with everything that it brings; kubectl applies a
stack as its user would. One story is told on a devcluster of its own, and the tests are about it.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tests.cluster import objects
from tests.cluster.conftest import CAPACITY
from tests.cluster.objects import STEPS, TOKEN
from tests.cluster.release import release
from tests.cluster.sites import devcluster
from tests.cluster.test_stack import ONCE, attempts
from tests.cluster.world import World, furnish
from tests.conformance.client import Api, connect
from tests.fixtures.hub_server import HubServer
from tests.integration.real_clients import Client
from tests.tools import tool
from yarl import URL

from latticeforge_operator.api import API_VERSION

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
]

POOL, TEAM = "laptop", "team"
PRICE = {"accelerator": "CPU", "gpusPerNode": 0, "pricePerGPUHour": "1"}
DEARER = {**PRICE, "pricePerGPUHour": "2"}
LONG = 40
"""Epochs: it trains while Helm upgrades and rolls back."""


@dataclass
class Life:
    """What was seen."""

    installed: str = ""
    tested: str = ""
    probes: dict[str, int] = field(default_factory=dict)
    metrics: str = ""
    operators: list[str] = field(default_factory=list)
    """UIDs of the operator's pods, one after the other."""
    trainers: list[str] = field(default_factory=list)
    """UIDs of the train step's pod before and after each change of the release."""
    answers: dict[str, dict[str, int]] = field(default_factory=dict)
    """What the API server answered to whom, asked for what, by the pods' own tokens."""
    prices: list[str] = field(default_factory=list)
    """What the pool cost after each change."""
    ended: dict[str, Any] = field(default_factory=dict)
    published: dict[str, Any] = field(default_factory=dict)
    uninstalled: str = ""
    stayed: list[str] = field(default_factory=list)
    """Objects of the release that were there after it was uninstalled."""
    trains_alone: bool = False
    """Whether a stack went on training without an operator."""
    left_of_deleted: list[str] = field(default_factory=list)
    reinstalled: dict[str, Any] = field(default_factory=dict)
    """The first stack's status under an operator that was installed anew."""
    said: dict[str, str] = field(default_factory=dict)
    """Everything that pods and the API said, by where."""


class Story:
    """Tells it."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world, self.folder, self.life = world, folder, Life()
        self.kubectl = Client(tool("kubectl"), world.site.kubeconfig, world.site.patience)

    async def tell(self) -> Life:
        """From the first install to the last."""
        await self.install()
        await self.change_while_it_trains()
        await self.uninstall()
        await self.install_again()
        return self.life

    async def install(self) -> None:
        life, release_ = self.life, self.world.release
        life.installed = await release_.put(gpuPools={POOL: PRICE})
        life.tested = await release_.helm("test", release_.name)
        await self.look_at_the_operator()
        (pod,) = await self.world.operator_pods()
        (container,) = pod["spec"]["containers"]
        probes = [container[f"{kind}Probe"]["httpGet"] for kind in ("liveness", "readiness")]
        for path in (*(probe["path"] for probe in probes), "/metrics"):
            url = f"http://127.0.0.1:{release_.port}{path}"
            async with self.world.api.session.get(url) as answer:
                life.probes[path], life.metrics = answer.status, await answer.text()

    async def change_while_it_trains(self) -> None:
        world, life = self.world, self.life
        await self.apply("first")
        await world.trains("first", beyond=5)
        await self.look_at_the_trainer()
        await self.knock()
        await world.release.put(gpuPools={POOL: DEARER}, podAnnotations={"version": "2"})
        await self.look_at_the_operator()
        await self.look_at_the_trainer()
        await world.release.helm("rollback", world.release.name, "1", "--wait")
        await self.look_at_the_operator()
        await self.look_at_the_trainer()
        life.ended = await world.reaches("first", "Succeeded")
        life.published = await world.hub("api/models/lab/first")
        await self.listen()

    async def uninstall(self) -> None:
        world, life = self.world, self.life
        await self.apply("second")
        reported = await world.trains("second", beyond=5)
        manifest = await world.release.helm("get", "manifest", world.release.name)
        await self.listen()
        life.uninstalled = await world.release.remove()
        found = await self.kubectl(
            "get", "-f", "-", "--ignore-not-found", "--output=name", stdin=manifest
        )
        life.stayed = found.split()
        life.trains_alone = await self.reports_beyond("second", reported)
        await self.kubectl("delete", "stackedtraining", "second", f"--namespace={TEAM}")

        async def gone() -> bool:
            life.left_of_deleted = await world.left_of("second")
            return not life.left_of_deleted

        await world.until("nothing left of second", gone)

    async def install_again(self) -> None:
        await self.world.release.put(gpuPools={POOL: PRICE})
        await self.look_at_the_operator()
        self.life.reinstalled = await self.world.status("first")

    # --- what it does and sees

    async def apply(self, name: str) -> None:
        spec = objects.stack(POOL, f"lab/{name}")
        spec["stages"][0]["hyperparameters"]["epochs"] = LONG
        manifest = {"apiVersion": API_VERSION, "kind": "StackedTraining"}
        file = self.folder / f"{name}.json"
        file.write_text(json.dumps({**manifest, "metadata": {"name": name}, "spec": spec}))
        await self.kubectl("apply", "-f", str(file), f"--namespace={TEAM}")

    async def look_at_the_operator(self) -> None:
        (pod,) = await self.world.operator_pods()
        self.life.operators.append(pod["metadata"]["uid"])
        pool = await self.world.api.get(self.world.api.cluster(API_VERSION, "gpupools", POOL))
        self.life.prices.append(pool["spec"]["pricePerGPUHour"])

    async def look_at_the_trainer(self) -> None:
        trainers = await self.world.active_pods("first")
        self.life.trainers += [pod["metadata"]["uid"] for pod in trainers]

    async def knock(self) -> None:
        """Ask with the tokens of the operator and of a pod of a step."""
        api = self.world.api
        (operator,) = await self.world.operator_pods()
        (trainer,) = await self.world.active_pods("first")
        stack = trainer["spec"]["serviceAccountName"]
        job = trainer["metadata"]["labels"]["batch.kubernetes.io/job-name"]
        asked = {
            "secrets": api.ns("v1", "secrets"),
            "the token": api.ns("v1", "secrets", TOKEN),
            "stacks": api.ns(API_VERSION, "stackedtrainings"),
            "reports": api.ns("v1", "configmaps", stack),
            "a config": api.ns("v1", "configmaps", job),
        }
        for who, pod in (("operator", operator), ("trainer", trainer)):
            folder = self.folder / "devcluster" / "pods" / pod["metadata"]["uid"]
            token = (folder / "account" / "token").read_text()
            self.life.answers[who] = {}
            for what, path in asked.items():
                headers = {"Authorization": f"Bearer {token}"}
                server = URL(api.url).origin() / path
                async with api.session.get(server, headers=headers) as answer:
                    self.life.answers[who][what] = answer.status

    async def reports_beyond(self, name: str, step: int) -> bool:
        """Wait until a trainer reports more steps, as only it can: no operator is there."""

        async def reported() -> bool:
            maps = await self.world.children(name, "configmaps")
            reports = [json.loads(v) for m in maps for v in (m.get("data") or {}).values()]
            steps = [((r.get("train") or {}).get("step") or 0) for r in reports]
            return max(steps, default=0) > step

        return await self.world.until(f"{name} reports beyond step {step}", reported)

    async def listen(self) -> None:
        """Keep every log and every object but the Secrets themselves."""
        for log in (self.folder / "devcluster" / "pods").rglob("*.log"):
            self.life.said[str(log)] = log.read_text(errors="replace")
        api = self.world.api
        for version, plural in (
            ("v1", "pods"),
            ("v1", "configmaps"),
            ("v1", "events"),
            ("batch/v1", "jobs"),
            ("apps/v1", "deployments"),
            (API_VERSION, "stackedtrainings"),
        ):
            listed = await api.get(api.cluster(version, plural))
            assert listed["items"], f"no {plural}"
            self.life.said[f"{plural} {len(self.life.said)}"] = json.dumps(listed)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def life(
    model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Life]:
    """The story, told to its end."""
    folder = tmp_path_factory.mktemp("life")
    async with (
        devcluster(folder / "devcluster", CAPACITY) as site,
        connect(site.kubeconfig) as (session, url),
    ):
        address = site.hub_address(TEAM)
        operator = release(site, "latticeforge", "system", address.url)
        world = World(Api(session, url, TEAM), site, address, operator)
        await furnish(world, model, data)
        yield await Story(world, folder).tell()


def test_it_is_installed_and_says_what_comes_next(life: Life) -> None:
    assert "STATUS: deployed" in life.installed
    assert "kubectl apply -f stack.yaml" in life.installed
    assert "Phase:          Succeeded" in life.tested


def test_the_operator_serves_its_probes_and_metrics(life: Life) -> None:
    assert life.probes == {"/healthz": 200, "/readyz": 200, "/metrics": 200}
    assert "latticeforge_reconcile_duration_seconds_count" in life.metrics


def test_a_stack_that_kubectl_applies_ends_published(life: Life) -> None:
    assert life.ended["phase"] == "Succeeded"
    assert life.published["sha"] == life.ended["published"]["commit"]


def test_neither_upgrade_nor_rollback_restarts_a_pod_of_the_stack(life: Life) -> None:
    assert len(set(life.operators)) == 4, "installed, upgraded, rolled back, installed again"
    assert len(life.trainers) == 3
    assert len(set(life.trainers)) == 1
    assert attempts(life.ended) == dict.fromkeys(STEPS, ONCE)


def test_operator_and_pods_see_no_secret_and_no_more_than_they_need(life: Life) -> None:
    secrets = {"secrets": 403, "the token": 403}
    assert life.answers == {
        "operator": {**secrets, "stacks": 200, "reports": 200, "a config": 200},
        "trainer": {**secrets, "stacks": 403, "reports": 200, "a config": 403},
    }


def test_pools_follow_the_values_and_are_never_taken_away(life: Life) -> None:
    # The first version made it by a hook, which a rollback does not repeat.
    assert life.prices == ["1", "2", "2", "1"]


def test_uninstalling_says_what_stays_and_takes_the_rest(life: Life) -> None:
    definitions = {f"{kind}.latticeforge.dev" for kind in ("stackedtrainings", "gpupools")}
    for name in definitions:
        assert name in life.uninstalled
    assert "kept due to the resource policy" in life.uninstalled
    kinds = "customresourcedefinition.apiextensions.k8s.io"
    assert set(life.stayed) == {f"{kinds}/{name}" for name in definitions}


def test_without_the_release_stacks_go_on_and_can_be_deleted(life: Life) -> None:
    assert life.trains_alone
    assert life.left_of_deleted == []


def test_installed_again_it_knows_what_it_did(life: Life) -> None:
    assert life.reinstalled == life.ended


def test_no_token_is_printed(life: Life) -> None:
    assert [where for where, text in life.said.items() if HubServer.token in text] == []
    # It was there to be printed: the pods name the Secret that it comes from.
    assert any(TOKEN in text for text in life.said.values())
