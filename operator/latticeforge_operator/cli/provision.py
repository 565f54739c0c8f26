"""The objects that a one-machine run brings along, so that a stack finds what a cluster has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latticeforge_operator.api import StackedTraining
from latticeforge_operator.api.crds import all_crds
from latticeforge_operator.cli.stackfile import StackFile
from latticeforge_operator.core.launch import store_claim

TRAININGS = "/apis/latticeforge.dev/v1alpha1/namespaces/{namespace}/stackedtrainings/{name}"
DEFAULT_CLAIM_SIZE = "1Ti"
"""What a claim asks for when the spec names an existing one; a folder has no quota."""

Placed = tuple[str, dict[str, Any]]
"""The URL path of an object, and the object."""


def crds() -> list[Placed]:
    """LatticeForge's kinds."""
    root = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    return [(f"{root}/{crd['metadata']['name']}", crd) for crd in all_crds().values()]


def pool(manifest: dict[str, Any]) -> Placed:
    """A GPUPool."""
    return f"/apis/latticeforge.dev/v1alpha1/gpupools/{manifest['metadata']['name']}", manifest


def stack(manifest: dict[str, Any]) -> Placed:
    """The StackedTraining itself."""
    return TRAININGS.format(**_key(manifest)), manifest


def suspended(manifest: dict[str, Any]) -> dict[str, Any]:
    """The StackedTraining with `suspend: true`; applying the file again takes that back."""
    return {**manifest, "spec": {**manifest["spec"], "suspend": True}}


def surroundings(
    file: StackFile, folder: Path, local_pool: dict[str, Any], environment: Mapping[str, str]
) -> list[Placed]:
    """Everything that must exist before the stack, in the order in which to apply it.

    Args:
        file: The file to run.
        folder: The folder that is the storage volume, absolute.
        local_pool: The pool to offer when the file brings none.
        environment: Where the Hub token comes from.
    """
    training = file.training
    return [
        *([namespace(training.namespace)] if training.namespace != "default" else []),
        *map(pool, file.pools or [local_pool]),
        *storage(training, folder),
        *token(training, environment),
    ]


def namespace(name: str) -> Placed:
    """A namespace."""
    manifest = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    return f"/api/v1/namespaces/{name}", manifest


def storage(training: StackedTraining, folder: Path) -> list[Placed]:
    """A volume on `folder`, and the claim that the stack's pods will mount, bound to it."""
    size = training.spec.storage.size or DEFAULT_CLAIM_SIZE
    return claim(training.namespace, store_claim(training), folder, size)


def claim(namespace: str, name: str, folder: Path, size: str = DEFAULT_CLAIM_SIZE) -> list[Placed]:
    """A volume on an absolute `folder`, and a claim that is bound to it."""
    volume = f"{namespace}-{name}"
    modes = ["ReadWriteOnce"]
    persistent_volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": volume},
        "spec": {
            "capacity": {"storage": size},
            "accessModes": modes,
            # The folder is the user's: deleting a stack must never delete it.
            "persistentVolumeReclaimPolicy": "Retain",
            "hostPath": {"path": str(folder)},
        },
    }
    bound = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "accessModes": modes,
            "resources": {"requests": {"storage": size}},
            "volumeName": volume,
        },
    }
    claims = f"/api/v1/namespaces/{namespace}/persistentvolumeclaims"
    return [
        (f"/api/v1/persistentvolumes/{volume}", persistent_volume),
        (f"{claims}/{name}", bound),
    ]


def token(training: StackedTraining, environment: Mapping[str, str]) -> list[Placed]:
    """The Secret that the spec names, with the token from the environment; none without one."""
    key = token_key(training)
    if key is None or not environment.get("HF_TOKEN"):
        return []
    manifest = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": key[0], "namespace": training.namespace},
        "stringData": {key[1]: environment["HF_TOKEN"]},
    }
    return [(f"/api/v1/namespaces/{training.namespace}/secrets/{key[0]}", manifest)]


def token_key(training: StackedTraining) -> tuple[str, str] | None:
    """Name and key of the Secret that the spec names."""
    publish = training.spec.publish
    if publish is None or publish.token_secret is None:
        return None
    return publish.token_secret.name, publish.token_secret.key


def _key(manifest: dict[str, Any]) -> dict[str, str]:
    return {name: manifest["metadata"][name] for name in ("namespace", "name")}
