"""PersistentVolumeClaims on one machine: each is a folder, or binds a hostPath volume by its name.

A claim without `volumeName` gets a volume of its own: `<data>/volumes/<namespace>/<claim>`. The
folder outlives the devcluster: a claim of the same name finds its files again after a restart. It
is removed when the claim is deleted. Requested sizes are recorded, not enforced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from latticeforge_operator.devcluster.controllers.objects import VOLUMES, is_deleted, is_finished
from latticeforge_operator.devcluster.controllers.recorder import Event
from latticeforge_operator.devcluster.resources import JsonObject, Resource

PERSISTENT_VOLUME = Resource(
    key=VOLUMES,
    kind="PersistentVolume",
    namespaced=False,
    short_names=("pv",),
    subresources=("status",),
)
PROTECTION = "kubernetes.io/pvc-protection"


@dataclass(frozen=True)
class ClaimActions:
    """What to do for one claim.

    Attributes:
        provision: a volume to create, its folder included.
        bind_to: name of the volume that the claim and the volume shall agree on.
        protected: whether the claim must stay while it is being deleted; None leaves it as it is.
        event: why the claim must wait, if it must.
    """

    provision: JsonObject | None = None
    bind_to: str | None = None
    protected: bool | None = None
    event: Event | None = None


def decide_claim(
    claim: JsonObject, volumes: Sequence[JsonObject], pods: Sequence[JsonObject], root: Path
) -> ClaimActions:
    """Decides what happens to a claim.

    Args:
        claim: the PersistentVolumeClaim.
        volumes: all PersistentVolumes.
        pods: the pods of the claim's namespace.
        root: folder under which volumes are provisioned.
    """
    if is_deleted(claim):
        return ClaimActions(protected=_in_use(claim, pods))
    if PROTECTION not in (claim["metadata"].get("finalizers") or ()):
        return ClaimActions(protected=True)
    if claim.get("status", {}).get("phase") == "Bound":
        return ClaimActions()
    wanted = claim["spec"].get("volumeName")
    if wanted:
        return _bind_named(claim, wanted, volumes)
    if claim["spec"].get("storageClassName") == "":
        message = 'storageClassName "" asks for an existing volume; name it in spec.volumeName'
        return ClaimActions(event=Event("Normal", "FailedBinding", message))
    volume = _provisioned(claim, root)
    name = volume["metadata"]["name"]
    exists = any(known["metadata"]["name"] == name for known in volumes)
    return ClaimActions(provision=None if exists else volume, bind_to=name)


def _in_use(claim: JsonObject, pods: Sequence[JsonObject]) -> bool:
    name = claim["metadata"]["name"]
    return any(
        volume.get("persistentVolumeClaim", {}).get("claimName") == name
        for pod in pods
        if pod["spec"].get("nodeName") and not is_finished(pod)
        for volume in pod["spec"].get("volumes") or ()
    )


def _bind_named(claim: JsonObject, wanted: str, volumes: Sequence[JsonObject]) -> ClaimActions:
    volume = next((v for v in volumes if v["metadata"]["name"] == wanted), None)
    if volume is None:
        message = f'volume "{wanted}" not found; create it, or leave volumeName out'
    elif "hostPath" not in volume["spec"]:
        message = f'volume "{wanted}" has no hostPath, which is all the devcluster can mount'
    elif _claimed_by_other(volume, claim):
        message = f'volume "{wanted}" already bound to a different claim.'
    else:
        return ClaimActions(bind_to=wanted)
    return ClaimActions(event=Event("Warning", "FailedBinding", message))


def _claimed_by_other(volume: JsonObject, claim: JsonObject) -> bool:
    reference = volume["spec"].get("claimRef")
    if not reference:
        return False
    metadata = claim["metadata"]
    same = (reference["namespace"], reference["name"]) == (metadata["namespace"], metadata["name"])
    return not same or reference.get("uid", metadata["uid"]) != metadata["uid"]


def claim_reference(claim: JsonObject) -> JsonObject:
    """What a volume says of the claim that it is bound to."""
    metadata = claim["metadata"]
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "namespace": metadata["namespace"],
        "name": metadata["name"],
        "uid": metadata["uid"],
    }


def _provisioned(claim: JsonObject, root: Path) -> JsonObject:
    metadata, spec = claim["metadata"], claim["spec"]
    folder = root / metadata["namespace"] / metadata["name"]
    return {
        "metadata": {
            "name": f"pvc-{metadata['uid']}",
            "annotations": {"pv.kubernetes.io/provisioned-by": "devcluster"},
        },
        "spec": {
            "accessModes": spec.get("accessModes") or ["ReadWriteOnce"],
            "capacity": {"storage": spec["resources"]["requests"]["storage"]},
            "claimRef": claim_reference(claim),
            "hostPath": {"path": str(folder), "type": "DirectoryOrCreate"},
            "persistentVolumeReclaimPolicy": "Delete",
            "storageClassName": spec.get("storageClassName") or "devcluster",
            "volumeMode": "Filesystem",
        },
    }


def orphaned(volumes: Sequence[JsonObject], claim_uids: set[str]) -> list[JsonObject]:
    """The bound volumes whose claim no longer exists."""
    return [
        volume
        for volume in volumes
        if volume.get("status", {}).get("phase") == "Bound"
        and volume["spec"].get("claimRef", {}).get("uid") not in claim_uids
    ]
