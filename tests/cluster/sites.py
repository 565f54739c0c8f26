"""Clusters to test on: this project's devcluster, kind, or one that somebody names.

They differ in where their kubeconfig comes from, which images they run, and how the Hub's pod is
called; everything else is one code path, so what runs on the devcluster is what runs elsewhere.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest
from tests.cluster.objects import HUB, HubAddress

from latticeforge_operator.devcluster.cluster import DevCluster
from latticeforge_operator.devcluster.controllers.nodes import NodeCapacity

KUBECONFIG = "LATTICEFORGE_TEST_KUBECONFIG"
OPERATOR_IMAGE = "LATTICEFORGE_TEST_OPERATOR_IMAGE"
TRAINER_IMAGE = "LATTICEFORGE_TEST_TRAINER_IMAGE"

_KIND_MINUTES = 10
_CLUSTER_PATIENCE = 900
"""Seconds: images of gigabytes are pulled, and volumes made."""


class Site(Protocol):
    """A cluster that is there."""

    @property
    def kubeconfig(self) -> Path:
        """How to reach it, as somebody who may do everything."""

    @property
    def operator_image(self) -> str:
        """The operator."""

    @property
    def trainer_image(self) -> str:
        """The trainer."""

    @property
    def patience(self) -> float:
        """Seconds after which what has not happened will not."""

    def metrics_port(self) -> int:
        """Where an operator may serve its metrics."""

    def hub_address(self, namespace: str) -> HubAddress:
        """Where the Hub's pod is to listen, and how pods of the namespace call it."""

    def hub_url(self, api_url: str, namespace: str, address: HubAddress) -> str:
        """How these tests call the Hub."""


@dataclass(frozen=True)
class RealCluster:
    """A cluster with container images and cluster DNS."""

    kubeconfig: Path
    operator_image: str
    trainer_image: str
    patience: float = _CLUSTER_PATIENCE

    def metrics_port(self) -> int:
        """The chart's own: every pod has its address."""
        return 8080

    def hub_address(self, namespace: str) -> HubAddress:
        """By the Service's name; the CDN by its short one."""
        return HubAddress(8080, f"http://{HUB}.{namespace}.svc:8080", f"http://{HUB}:8080")

    def hub_url(self, api_url: str, namespace: str, address: HubAddress) -> str:  # noqa: ARG002  (one port for all)
        """Through the API server, which passes requests on to Services."""
        return f"{api_url}/api/v1/namespaces/{namespace}/services/{HUB}:http/proxy"


@dataclass(frozen=True)
class OneMachine:
    """The devcluster: pods are processes of this machine, whatever image they name."""

    kubeconfig: Path
    operator_image: str = "none"
    trainer_image: str = "none"
    patience: float = 900

    def metrics_port(self) -> int:
        """A free one: pods share the loopback."""
        return _free_port()

    def hub_address(self, namespace: str) -> HubAddress:  # noqa: ARG002  (pods share the loopback)
        """On the loopback, by both of its names."""
        port = _free_port()
        return HubAddress(port, f"http://127.0.0.1:{port}", f"http://localhost:{port}")

    def hub_url(self, api_url: str, namespace: str, address: HubAddress) -> str:  # noqa: ARG002  (as above)
        """Directly."""
        return address.url


@asynccontextmanager
async def devcluster(folder: Path, capacity: NodeCapacity) -> AsyncIterator[OneMachine]:
    """A devcluster in this process."""
    cluster = await DevCluster.start(data_dir=folder, capacity=capacity)
    try:
        yield OneMachine(cluster.kubeconfig)
    finally:
        await cluster.aclose()


@asynccontextmanager
async def named_cluster() -> AsyncIterator[RealCluster]:
    """The cluster in the environment; skips without one."""
    kubeconfig = os.environ.get(KUBECONFIG)
    if kubeconfig is None:
        pytest.skip(f"{KUBECONFIG} names no cluster")
    yield RealCluster(Path(kubeconfig), *_images())


@asynccontextmanager
async def kind_cluster(folder: Path) -> AsyncIterator[RealCluster]:
    """A kind cluster with the images in the environment; skips where it cannot be made."""
    images = _images()
    for command in ("kind", "docker"):
        if shutil.which(command) is None:
            pytest.skip(f"{command} is not installed")
    if _run("docker", "info", check=False).returncode:
        pytest.skip("docker does not run")
    name, kubeconfig = f"latticeforge-{uuid.uuid4().hex[:8]}", folder / "kubeconfig"
    try:
        _run("kind", "create", "cluster", "--name", name, "--kubeconfig", str(kubeconfig))
        # Under a tag of their own: what is called latest would be pulled whatever is loaded.
        loaded = f"operator:{name}", f"trainer:{name}"
        for image, tag in zip(images, loaded, strict=True):
            _run("docker", "tag", image, tag)
            _run("kind", "load", "docker-image", tag, "--name", name)
        yield RealCluster(kubeconfig, *loaded)
    finally:
        _run("kind", "delete", "cluster", "--name", name, check=False)


def _images() -> tuple[str, str]:
    """Both images; skips where one is not named."""
    missing = [name for name in (OPERATOR_IMAGE, TRAINER_IMAGE) if not os.environ.get(name)]
    if missing:
        pytest.skip(f"{' and '.join(missing)}: no image named")
    return os.environ[OPERATOR_IMAGE], os.environ[TRAINER_IMAGE]


def _run(*command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, check=check, capture_output=True, text=True, timeout=60 * _KIND_MINUTES
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
