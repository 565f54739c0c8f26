"""What a cluster needs before a stack can run: Hub, token, pool; and the stack itself.

Every pod fits the restricted Pod Security profile, which the namespace enforces.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latticeforge_operator.api import API_VERSION

Manifest = dict[str, Any]

HUB = "hub"
TOKEN = "hub-token"
FIXTURES = Path(__file__).parent.parent / "fixtures"
HUB_SOURCES = {
    "tests/cluster/hub_pod.py": Path(__file__).parent / "hub_pod.py",
    "tests/fixtures/hub_server.py": FIXTURES / "hub_server.py",
    "tests/fixtures/hub_state.py": FIXTURES / "hub_state.py",
}
HUB_PACKAGES = ("tests", "tests/cluster", "tests/fixtures")
PRICE_PER_HOUR = 3600
"""Of a pod of the pool: one dollar a second, so that a budget is soon spent."""
_USER_ID = 10001


@dataclass(frozen=True)
class HubAddress:
    """Where the Hub's pod is.

    Attributes:
        port: Where it listens.
        url: How pods call it.
        cdn: How they call it by another name.
    """

    port: int
    url: str
    cdn: str


def namespace(name: str) -> Manifest:
    """A namespace that refuses every pod that is not restricted."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def pool(name: str) -> Manifest:
    """A pool of CPUs: any node."""
    spec = {"accelerator": "CPU", "gpusPerNode": 0, "pricePerGPUHour": str(PRICE_PER_HOUR)}
    return {"apiVersion": API_VERSION, "kind": "GPUPool", "metadata": {"name": name}, "spec": spec}


def token(value: str) -> Manifest:
    """The Secret with the Hub token."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": TOKEN},
        "stringData": {"HF_TOKEN": value},
    }


# --- the Hub


def hub(address: HubAddress, image: str, model: Path, data: Path) -> list[Manifest]:
    """The Hub: a Service, its pod, and ConfigMaps with what the pod runs and serves.

    Args:
        address: Where it is.
        image: An image with aiohttp: the operator's.
        model: Folder of the model that it has from the start.
        data: Folder of the data set.
    """
    sources = {name.replace("/", "."): path.read_bytes() for name, path in HUB_SOURCES.items()}
    items = [{"key": name.replace("/", "."), "path": name} for name in HUB_SOURCES]
    # Packages, or one called `tests` that comes with a library of the image would be found first.
    sources["empty"] = b""
    items += [{"key": "empty", "path": f"{folder}/__init__.py"} for folder in HUB_PACKAGES]
    options = {
        "port": str(address.port),
        "url": address.url,
        "cdn": address.cdn,
        "models": "/seed/models",
        "datasets": "/seed/datasets",
    }
    container = {
        "name": "hub",
        "image": image,
        "command": ["python", "-m", "tests.cluster.hub_pod"],
        "args": [f"--{name}={value}" for name, value in options.items()],
        "env": _environment(PYTHONPATH="/hub", PYTHONDONTWRITEBYTECODE="1"),
        "volumeMounts": [
            {"name": "sources", "mountPath": "/hub"},
            {"name": "model", "mountPath": "/seed/models"},
            {"name": "data", "mountPath": "/seed/datasets"},
        ],
    }
    volumes = [
        {"name": "sources", "configMap": {"name": "hub-sources", "items": items}},
        {"name": "model", "configMap": {"name": "hub-model"}},
        {"name": "data", "configMap": {"name": "hub-data"}},
    ]
    return [
        _config_map("hub-sources", sources),
        _config_map("hub-model", _files(model)),
        _config_map("hub-data", _files(data)),
        _service(address.port),
        _deployment(HUB, container, volumes=volumes),
    ]


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def _config_map(name: str, files: Mapping[str, bytes]) -> Manifest:
    encoded = {key: base64.b64encode(value).decode() for key, value in files.items()}
    metadata = {"name": name}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "binaryData": encoded}


def _service(port: int) -> Manifest:
    ports = [{"name": "http", "port": port, "targetPort": port, "protocol": "TCP"}]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": HUB},
        "spec": {"selector": {"app": HUB}, "ports": ports},
    }


def _environment(**values: str) -> list[Manifest]:
    return [{"name": name, "value": value} for name, value in values.items()]


def _deployment(name: str, container: Manifest, volumes: list[Manifest]) -> Manifest:
    """One restricted pod, replaced only when the one before it is gone."""
    restricted = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    defaults = {
        "imagePullPolicy": "IfNotPresent",
        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}},
        "securityContext": restricted,
    }
    mounts = [*container.get("volumeMounts", []), {"name": "scratch", "mountPath": "/tmp"}]  # noqa: S108  (an emptyDir)
    pod = {
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER_ID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [{**defaults, **container, "volumeMounts": mounts}],
        "volumes": [*volumes, {"name": "scratch", "emptyDir": {}}],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": 1,
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": pod},
        },
    }


# --- the stack

STEPS = ["math/prepare", "math/train", "publish"]
GATE = {"suite": "math", "maximumDrop": "1", "against": "Base", "samples": 8}


def stack(pool_name: str, destination: str, **fields: Any) -> Manifest:
    """The spec of a stack of one stage that trains for some seconds.

    Args:
        pool_name: Where.
        destination: The Hub repository to publish to.
        fields: Further fields of the spec, or others than these.
    """
    hyperparameters = {
        "epochs": 40,
        "sequenceLength": 256,
        "globalBatchTokens": 256,
        "learningRate": "1e-3",
    }
    stage = {
        "name": "math",
        "method": "Full",
        "data": [{"source": "lab/tiny"}],
        "hyperparameters": hyperparameters,
    }
    publish = {"repository": destination, "private": False, "tokenSecret": {"name": TOKEN}}
    return {
        "base": {"model": "lab/tiny"},
        "stages": [stage],
        "compute": {"pool": pool_name},
        "storage": {"size": "1Gi"},
        "publish": publish,
        **fields,
    }
