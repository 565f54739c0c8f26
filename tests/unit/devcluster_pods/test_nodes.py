"""What the node says it has."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
from tests.unit.devcluster_pods.builders import NOW

from latticeforge_operator.devcluster.controllers.nodes import NodeCapacity, make_node


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        ("0,2", ("0", "2")),
        ("GPU-8932f937, GPU-1c2b", ("GPU-8932f937", "GPU-1c2b")),
        ("", ()),
        ("-1", ()),
    ],
)
def test_visible_devices_are_what_may_be_used(visible: str, names: tuple[str, ...]) -> None:
    capacity = NodeCapacity.detect({"CUDA_VISIBLE_DEVICES": visible})
    assert (capacity.gpus, capacity.devices) == (len(names), names)


def test_otherwise_the_driver_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    listing = "GPU 0: H200 (UUID: a)\\n  MIG 1g.18gb Device 0: (UUID: b)\\nGPU 1: H200 (UUID: c)\\n"
    tool.write_text(f"#!/bin/sh\nprintf '{listing}'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert NodeCapacity.detect({}).devices == ("0", "1")
    tool.write_text("#!/bin/sh\necho no driver\nexit 9\n")
    assert NodeCapacity.detect({}).devices == ()


def test_the_machine_is_measured() -> None:
    capacity = NodeCapacity.detect({"CUDA_VISIBLE_DEVICES": ""})
    assert 0 < capacity.cpu <= (psutil.cpu_count() or 1)
    assert capacity.memory_bytes == psutil.virtual_memory().total


def test_names_must_fit_the_count() -> None:
    with pytest.raises(ValueError, match="got 1 GPU names for 2 GPUs"):
        NodeCapacity(cpu=1, memory_bytes=1, gpus=2, gpu_names=("0",))


def test_the_node_object() -> None:
    node = make_node(NodeCapacity(cpu=4, memory_bytes=2**31, gpus=2), NOW)
    allocatable = node["status"]["allocatable"]
    assert allocatable == {
        "cpu": "4",
        "memory": "2097152Ki",
        "pods": "110",
        "nvidia.com/gpu": "2",
    }
    assert node["status"]["conditions"][0]["type"] == "Ready"
    without = make_node(NodeCapacity(cpu=4, memory_bytes=2**31), NOW)
    assert "nvidia.com/gpu" not in without["status"]["capacity"]
