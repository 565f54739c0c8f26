"""The objects that real clusters are given, against the schemas of Kubernetes itself."""

from __future__ import annotations

from pathlib import Path

import kubernetes_validate
import pytest
from tests.cluster import objects
from tests.cluster.release import image, release
from tests.cluster.sites import (
    OPERATOR_IMAGE,
    TRAINER_IMAGE,
    RealCluster,
    kind_cluster,
    named_cluster,
)
from tests.fixtures.chart import render

from latticeforge_operator.api import StackedTrainingSpec

CLUSTER = RealCluster(Path("kubeconfig"), "registry/operator:1", "registry/trainer:1")
CONFIG_MAP_LIMIT = 2**20
"""Bytes that a ConfigMap may hold."""


def every_manifest(model: Path, data: Path) -> list[objects.Manifest]:
    address = CLUSTER.hub_address("ns")
    return [
        objects.namespace("ns"),
        objects.token("secret"),
        *objects.hub(address, CLUSTER.operator_image, model, data),
    ]


def test_every_object_is_valid_and_fits(model: Path, data: Path) -> None:
    for manifest in every_manifest(model, data):
        kubernetes_validate.validate(manifest, "1.37", strict=True)
        if manifest["kind"] == "ConfigMap":
            sizes = map(len, manifest["binaryData"].values())
            assert sum(sizes) < CONFIG_MAP_LIMIT, manifest["metadata"]["name"]


def test_the_release_runs_the_images_of_the_site() -> None:
    assert image("registry:5000/operator:1") == {"repository": "registry:5000/operator", "tag": "1"}
    assert image("registry:5000/operator") == {"repository": "registry:5000/operator"}
    assert image("none") == {"repository": "none"}
    made = release(CLUSTER, "r", "ns", "http://hub")
    assert render(made.values)


def test_the_stack_is_valid() -> None:
    spec = objects.stack("pool", "lab/result", suspend=True)
    assert StackedTrainingSpec.model_validate(spec).suspend


def test_the_hub_is_called_by_two_names_and_read_through_the_api_server() -> None:
    address = CLUSTER.hub_address("ns")
    assert (address.url, address.cdn) == ("http://hub.ns.svc:8080", "http://hub:8080")
    url = CLUSTER.hub_url("https://api", "ns", address)
    assert url == "https://api/api/v1/namespaces/ns/services/hub:http/proxy"


@pytest.mark.parametrize("missing", [OPERATOR_IMAGE, TRAINER_IMAGE])
async def test_clusters_without_images_are_skipped_with_the_reason(
    missing: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in (OPERATOR_IMAGE, TRAINER_IMAGE, "LATTICEFORGE_TEST_KUBECONFIG"):
        monkeypatch.setenv(name, "something")
    monkeypatch.delenv(missing)
    for cluster in (named_cluster(), kind_cluster(tmp_path)):
        with pytest.raises(pytest.skip.Exception, match=missing):
            await cluster.__aenter__()
