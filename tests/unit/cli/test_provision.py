"""What a one-machine run brings along."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from latticeforge_operator.api import GPUPool
from latticeforge_operator.cli import machine, provision
from latticeforge_operator.cli.stackfile import StackFile, load_stack

TEXT = """\
apiVersion: latticeforge.dev/v1alpha1
kind: StackedTraining
metadata: {name: demo}
spec:
  base: {model: ./model}
  stages: [{name: math, data: [{source: ./data.jsonl}]}]
  storage: STORAGE
  publish: {repository: owner/name, tokenSecret: {name: hub, key: TOKEN}}
"""
FOLDER = Path("/work")
POOL = machine.local_pool([], 8 << 30)


def stack_file(tmp_path: Path, storage: str = "{claimName: store}", extra: str = "") -> StackFile:
    path = tmp_path / "stack.yaml"
    path.write_text(TEXT.replace("STORAGE", storage) + extra)
    return load_stack(path, None)


def kinds(placed: list[provision.Placed]) -> list[tuple[str, str]]:
    return [(manifest["kind"], manifest["metadata"]["name"]) for _, manifest in placed]


def test_surroundings_of_a_stack(tmp_path: Path) -> None:
    placed = provision.surroundings(stack_file(tmp_path), FOLDER, POOL, {"HF_TOKEN": "hf_1"})
    assert kinds(placed) == [
        ("GPUPool", "local"),
        ("PersistentVolume", "default-store"),
        ("PersistentVolumeClaim", "store"),
        ("Secret", "hub"),
    ]
    volume, claim, secret = (manifest for _, manifest in placed[1:])
    assert volume["spec"]["hostPath"] == {"path": "/work"}
    assert volume["spec"]["persistentVolumeReclaimPolicy"] == "Retain"
    assert claim["spec"]["volumeName"] == "default-store"
    assert secret["stringData"] == {"TOKEN": "hf_1"}


def test_a_file_that_brings_a_pool_gets_no_other(tmp_path: Path) -> None:
    pool = "---\napiVersion: latticeforge.dev/v1alpha1\nkind: GPUPool\nmetadata: {name: own}\n"
    file = stack_file(tmp_path, extra=f"{pool}spec: {{accelerator: CPU}}\n")
    placed = provision.surroundings(file, FOLDER, POOL, {})
    assert [name for kind, name in kinds(placed) if kind == "GPUPool"] == ["own"]


def test_without_a_token_there_is_no_secret(tmp_path: Path) -> None:
    for environment in ({}, {"HF_TOKEN": ""}):
        placed = provision.surroundings(stack_file(tmp_path), FOLDER, POOL, environment)
        assert "Secret" not in dict(kinds(placed))


def test_a_volume_of_a_size_is_the_claim_that_the_operator_will_apply(tmp_path: Path) -> None:
    placed = provision.storage(stack_file(tmp_path, "{size: 5Gi}").training, FOLDER)
    (path, volume), (claim_path, claim) = placed
    assert claim["metadata"]["name"] == "demo-store"
    assert claim["spec"]["resources"] == {"requests": {"storage": "5Gi"}}
    assert volume["spec"]["capacity"] == {"storage": "5Gi"}
    assert path == "/api/v1/persistentvolumes/default-demo-store"
    assert claim_path == "/api/v1/namespaces/default/persistentvolumeclaims/demo-store"


def test_a_claim_is_a_folder_of_any_size() -> None:
    (path, volume), (claim_path, claim) = provision.claim("default", "quickstart", FOLDER)
    assert volume["spec"]["hostPath"] == {"path": "/work"}
    assert claim["spec"]["volumeName"] == volume["metadata"]["name"] == "default-quickstart"
    assert (path, claim_path) == (
        "/api/v1/persistentvolumes/default-quickstart",
        "/api/v1/namespaces/default/persistentvolumeclaims/quickstart",
    )


def test_suspending_changes_one_field_and_leaves_the_manifest(tmp_path: Path) -> None:
    manifest = stack_file(tmp_path).manifest
    suspended = provision.suspended(manifest)
    assert suspended["spec"] == {**manifest["spec"], "suspend": True}
    assert "suspend" not in manifest["spec"]


@pytest.mark.parametrize(
    ("names", "accelerator", "gpus"),
    [
        ([], "CPU", 0),
        (["NVIDIA H200"] * 8, "H200", 8),
        (["NVIDIA H100 80GB HBM3"], "H100", 1),
        (["NVIDIA A100-SXM4-80GB"] * 2, "A100", 2),
        (["NVIDIA L40S", "NVIDIA L40S", "NVIDIA H100 PCIe"], "L40S", 2),
        (["NVIDIA GeForce RTX 4090"], "CPU", 0),
    ],
)
def test_the_pool_of_a_machine(names: list[str], accelerator: str, gpus: int) -> None:
    pool: dict[str, Any] = machine.local_pool(names, 64 << 30, "h200")
    assert (pool["spec"]["accelerator"], pool["spec"]["gpusPerNode"]) == (accelerator, gpus)
    assert GPUPool.from_object(pool).name == "h200"
    assert pool["spec"]["hostMemory"] == "65536Mi"
