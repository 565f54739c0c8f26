"""The real Helm against the devcluster's API server: the life of a release."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.conformance.conftest import WIDGETS
from tests.integration.real_clients import Client, ClientError, running_server
from tests.tools import tool

from latticeforge_operator.devcluster.store import ResourceKey, Store

CONFIG_MAPS = ResourceKey("v1", "configmaps")
SECRETS = ResourceKey("v1", "secrets")
DEPLOYMENTS = ResourceKey("apps/v1", "deployments")
WIDGET_KEY = ResourceKey("conformance.latticeforge.dev/v1", "widgets")
CHART = "apiVersion: v2\nname: tiny\nversion: 0.1.0\n"
TEMPLATES = """
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {level: "{{ .Values.level }}"}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: runner}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: operator}
spec:
  replicas: 0
  selector: {matchLabels: {app: operator}}
  template:
    metadata: {labels: {app: operator}}
    spec:
      serviceAccountName: runner
      containers: [{name: main, image: "none:{{ .Values.level }}"}]
---
apiVersion: conformance.latticeforge.dev/v1
kind: Widget
metadata: {name: w}
spec: {size: {{ .Values.size }}}
"""


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[tuple[Store, Path]]:
    async with running_server(tmp_path) as running:
        yield running


@pytest.fixture
def store(server: tuple[Store, Path]) -> Store:
    return server[0]


@pytest.fixture
async def helm(server: tuple[Store, Path]) -> Client:
    return Client(tool("helm"), server[1])


@pytest.fixture
def chart(tmp_path: Path) -> str:
    folder = tmp_path / "tiny"
    (folder / "templates").mkdir(parents=True)
    (folder / "crds").mkdir()
    (folder / "Chart.yaml").write_text(CHART)
    (folder / "values.yaml").write_text('level: "1"\nsize: 1\n')
    (folder / "templates" / "all.yaml").write_text(TEMPLATES)
    (folder / "crds" / "widgets.json").write_text(json.dumps(WIDGETS))
    return str(folder)


def level(store: Store) -> str:
    data: dict[str, str] = store.get(CONFIG_MAPS, "default", "settings")["data"]
    return data["level"]


async def test_the_life_of_a_release(helm: Client, store: Store, chart: str) -> None:
    # Without --wait: nothing here is a Deployment controller.
    installed = await helm("install", "demo", chart)
    assert "STATUS: deployed" in installed
    assert level(store) == "1"
    assert store.get(WIDGET_KEY, "default", "w")["spec"]["size"] == 1
    await helm("upgrade", "demo", chart, "--set-string=level=2", "--set=size=5")
    assert level(store) == "2"
    assert store.get(WIDGET_KEY, "default", "w")["spec"]["size"] == 5
    image = store.get(DEPLOYMENTS, "default", "operator")["spec"]["template"]["spec"]
    assert [container["image"] for container in image["containers"]] == ["none:2"]

    await helm("rollback", "demo", "1")
    assert level(store) == "1"
    history = await helm.json("history", "demo")
    assert [entry["status"] for entry in history] == ["superseded", "superseded", "deployed"]
    assert [release["name"] for release in await helm.json("list")] == ["demo"]
    types = {secret["type"] for secret in store.list(SECRETS, "default")}
    assert types == {"helm.sh/release.v1"}

    await helm("uninstall", "demo", "--wait", "--timeout=60s")
    for key in (CONFIG_MAPS, SECRETS, DEPLOYMENTS, WIDGET_KEY):
        assert store.list(key, "default") == []


async def test_a_refused_object_fails_the_install(helm: Client, chart: str) -> None:
    with pytest.raises(ClientError, match=r"spec\.size: Invalid value: 0"):
        await helm("install", "demo", chart, "--set=size=0")


async def test_an_unknown_field_fails_the_install(helm: Client, store: Store, chart: str) -> None:
    template = Path(chart) / "templates" / "all.yaml"
    template.write_text(TEMPLATES.replace("{size:", "{bogus: 1, size:"))
    with pytest.raises(ClientError, match="bogus"):
        await helm("install", "demo", chart)
    assert WIDGET_KEY not in store.registry or store.list(WIDGET_KEY) == []


async def test_a_namespace_is_created_on_demand(helm: Client, store: Store, chart: str) -> None:
    await helm("install", "demo", chart, "--namespace=team", "--create-namespace")
    assert store.get(CONFIG_MAPS, "team", "settings")["data"] == {"level": "1"}
