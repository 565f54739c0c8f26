"""Which cluster a module's tests run on: each of them in turn, those that are absent skipped."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
import pytest_asyncio
from tests.cluster.sites import Site, devcluster, kind_cluster, named_cluster
from tests.cluster.world import World, world_on
from tests.fixtures.tiny_model import make_model

from latticeforge_operator.devcluster.controllers.nodes import NodeCapacity
from latticeforge_trainer.domain.datasets import write_dataset

CAPACITY = NodeCapacity(cpu=4, memory_bytes=2**34)
"""What the devcluster pretends to have: three trainers at a time, however many cores there are."""


@pytest_asyncio.fixture(
    scope="module", loop_scope="module", params=["devcluster", "kind", "kubeconfig"]
)
async def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Site]:
    """A cluster."""
    folder = tmp_path_factory.mktemp("site")
    clusters: dict[str, AbstractAsyncContextManager[Site]] = {
        "devcluster": devcluster(folder / "devcluster", CAPACITY),
        "kind": kind_cluster(folder),
        "kubeconfig": named_cluster(),
    }
    async with clusters[request.param] as made:
        yield made


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model that fits into a ConfigMap."""
    shape = {"hidden_size": 64, "intermediate_size": 128}
    return make_model(tmp_path_factory.mktemp("model"), **shape)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of a few samples."""
    folder = tmp_path_factory.mktemp("data")
    write_dataset("math", 24, 1, "train", folder / "train.jsonl")
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(site: Site, model: Path, data: Path) -> AsyncIterator[World]:
    """A namespace with operator and Hub."""
    async with world_on(site, model, data) as made:
        yield made
