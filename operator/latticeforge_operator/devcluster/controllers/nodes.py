"""The one node: what this machine offers to pods."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

import psutil

from latticeforge_operator.devcluster.controllers.objects import new_condition
from latticeforge_operator.devcluster.resources import JsonObject

NODE_NAME = "devcluster"
GPU = "nvidia.com/gpu"
_MOST_PODS = 110
_NVIDIA_SMI_SECONDS = 30


@dataclass(frozen=True)
class NodeCapacity:
    """What the node has.

    Attributes:
        cpu: cores.
        memory_bytes: bytes of main memory.
        gpus: number of GPUs.
        gpu_names: what CUDA_VISIBLE_DEVICES calls them; 0, 1, … when left out.
    """

    cpu: int
    memory_bytes: int
    gpus: int = 0
    gpu_names: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        """Checks that every GPU has a name.

        Raises:
            ValueError: names were given, but not one for each GPU.
        """
        if self.gpu_names and len(self.gpu_names) != self.gpus:
            raise ValueError(f"got {len(self.gpu_names)} GPU names for {self.gpus} GPUs")

    @property
    def devices(self) -> tuple[str, ...]:
        """The GPUs by name."""
        return self.gpu_names or tuple(str(index) for index in range(self.gpus))

    @classmethod
    def detect(cls, environment: Mapping[str, str] = os.environ) -> NodeCapacity:
        """Measures this machine.

        CUDA_VISIBLE_DEVICES, where it is set, says which GPUs may be used; otherwise `nvidia-smi`
        is asked.
        """
        names = _gpu_names(environment)
        return cls(
            cpu=_cores(),
            memory_bytes=psutil.virtual_memory().total,
            gpus=len(names),
            gpu_names=names,
        )


def _cores() -> int:
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _gpu_names(environment: Mapping[str, str]) -> tuple[str, ...]:
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = (name.strip() for name in visible.split(","))
        return tuple(name for name in names if name and name != "-1")
    return tuple(str(index) for index in range(_count_gpus()))


def _count_gpus() -> int:
    if shutil.which("nvidia-smi") is None:
        return 0
    listed = subprocess.run(
        ["nvidia-smi", "-L"],
        capture_output=True,
        text=True,
        timeout=_NVIDIA_SMI_SECONDS,
        check=False,
    )
    # A machine with the tool but without a driver has no usable GPU; that is no error.
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def make_node(capacity: NodeCapacity, now: datetime) -> JsonObject:
    """Makes the Node object."""
    resources = {
        "cpu": str(capacity.cpu),
        "memory": f"{capacity.memory_bytes // 1024}Ki",
        "pods": str(_MOST_PODS),
    }
    if capacity.gpus:
        resources[GPU] = str(capacity.gpus)
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}.get(
        platform.machine(), platform.machine()
    )
    return {
        "metadata": {
            "name": NODE_NAME,
            "labels": {
                "kubernetes.io/hostname": NODE_NAME,
                "kubernetes.io/os": platform.system().lower(),
                "kubernetes.io/arch": architecture,
            },
        },
        "spec": {},
        "status": {
            "capacity": resources,
            "allocatable": resources,
            "addresses": [
                {"type": "InternalIP", "address": "127.0.0.1"},
                {"type": "Hostname", "address": NODE_NAME},
            ],
            "conditions": [new_condition("Ready", "True", now, "KubeletReady", "devcluster")],
            "nodeInfo": {
                "architecture": architecture,
                "operatingSystem": platform.system().lower(),
                "kernelVersion": platform.release(),
                "osImage": platform.platform(),
                "containerRuntimeVersion": "process://1",
                "kubeletVersion": "v1.37.0",
                "kubeProxyVersion": "v1.37.0",
                "machineID": "",
                "systemUUID": "",
                "bootID": "",
            },
        },
    }
