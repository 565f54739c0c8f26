"""What the conformance tests run against: the devcluster, or a cluster that you name.

`LATTICEFORGE_TEST_KUBECONFIG=~/.kube/config pytest tests/conformance` runs them against that
cluster: they work in namespaces and a CustomResourceDefinition of their own, and remove both.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
from tests.conformance.client import Api, Refused, connect, eventually

from latticeforge_operator.devcluster import cluster
from latticeforge_operator.devcluster.controllers.nodes import NodeCapacity
from latticeforge_operator.devcluster.store import Store

KUBECONFIG = "LATTICEFORGE_TEST_KUBECONFIG"
HISTORY_LIMIT = 500


@pytest.fixture
async def kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Path]:
    """The kubeconfig of the server under test."""
    if named := os.environ.get(KUBECONFIG):
        yield Path(named)
        return
    # A short memory, so that a test can outlive it.
    monkeypatch.setattr(cluster, "Store", partial(Store, history_limit=HISTORY_LIMIT))
    capacity = NodeCapacity(cpu=4, memory_bytes=2**33, gpus=2)
    devcluster = await cluster.DevCluster.start(data_dir=tmp_path / "devcluster", capacity=capacity)
    yield devcluster.kubeconfig
    await devcluster.aclose()


@pytest.fixture
def is_devcluster() -> bool:
    """Whether the server under test is the devcluster."""
    return KUBECONFIG not in os.environ


@pytest.fixture
async def api(kubeconfig: Path) -> AsyncIterator[Api]:
    """A client in a namespace of this test alone."""
    name = f"conformance-{uuid.uuid4().hex[:8]}"
    async with connect(kubeconfig) as (session, url):
        api = Api(session, url, name)
        await api.create("api/v1/namespaces", {"metadata": {"name": name}})
        yield api
        await api.delete(f"api/v1/namespaces/{name}")


WIDGET_GROUP = "conformance.latticeforge.dev"
WIDGET_VERSION = f"{WIDGET_GROUP}/v1"
WIDGET_SPEC = {
    "type": "object",
    "required": ["size"],
    "x-kubernetes-validations": [
        {
            "rule": "!has(self.limit) || self.size <= self.limit",
            "message": "size must not exceed limit",
            "fieldPath": ".size",
        },
        {"rule": "self.mode == oldSelf.mode", "message": "mode cannot be changed"},
    ],
    "properties": {
        "size": {"type": "integer", "minimum": 1, "maximum": 100},
        "limit": {"type": "integer"},
        "mode": {"type": "string", "enum": ["Run", "Plan"], "default": "Run"},
        "title": {"type": "string", "pattern": "^[a-z]+$", "maxLength": 8},
        "options": {
            "type": "object",
            "properties": {"retries": {"type": "integer", "default": 3}},
        },
        "stages": {
            "type": "array",
            "maxItems": 4,
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["name"],
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {
                    "name": {"type": "string"},
                    "weight": {"type": "integer", "default": 1},
                    "method": {"type": "string"},
                },
            },
        },
        "tags": {"type": "array", "items": {"type": "string"}},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
    },
}
WIDGET_STATUS = {
    "type": "object",
    "properties": {"phase": {"type": "string"}, "ready": {"type": "integer"}},
}
WIDGETS = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": f"widgets.{WIDGET_GROUP}"},
    "spec": {
        "group": WIDGET_GROUP,
        "scope": "Namespaced",
        "names": {
            "plural": "widgets",
            "singular": "widget",
            "kind": "Widget",
            "shortNames": ["wd"],
        },
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "subresources": {"status": {}},
                "additionalPrinterColumns": [
                    {"name": "Phase", "type": "string", "jsonPath": ".status.phase"},
                    {"name": "Size", "type": "integer", "jsonPath": ".spec.size", "priority": 1},
                    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
                ],
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "description": "A thing to test with.",
                        "properties": {"spec": WIDGET_SPEC, "status": WIDGET_STATUS},
                    }
                },
            }
        ],
    },
}


@pytest.fixture
async def widgets(api: Api) -> AsyncIterator[str]:
    """The path of a custom resource that exercises what StackedTraining relies on."""
    definitions = "apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    path = f"{definitions}/{WIDGETS['metadata']['name']}"  # type: ignore[index]  # a literal above
    await api.create(definitions, WIDGETS)

    async def is_served() -> bool:
        try:
            await api.get(api.ns(WIDGET_VERSION, "widgets"))
        except Refused:
            return False
        return True

    await eventually(is_served)
    yield api.ns(WIDGET_VERSION, "widgets")
    await api.delete(path)
    await eventually(lambda: api.gone(path))
