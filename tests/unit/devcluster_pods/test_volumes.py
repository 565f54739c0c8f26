"""Claims find their folders, keep them while they are used, and give them back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from latticeforge_operator.devcluster.controllers.volumes import (
    PROTECTION,
    decide_claim,
    orphaned,
)

ROOT = Path("/volumes")


def claim(phase: str = "Pending", *, deleted: bool = False, **spec: Any) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "name": "data",
        "namespace": "n",
        "uid": "claim-uid",
        "finalizers": [PROTECTION],
    }
    if deleted:
        metadata["deletionTimestamp"] = "2030-01-01T00:00:00Z"
    resources = {"requests": {"storage": "1Gi"}}
    return {
        "metadata": metadata,
        "spec": {"resources": resources, **spec},
        "status": {"phase": phase},
    }


def volume(**spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "disk"},
        "spec": {"hostPath": {"path": "/mnt/disk"}, **spec},
        "status": {"phase": "Bound" if "claimRef" in spec else "Available"},
    }


def pod(phase: str = "Running", node: str | None = "devcluster") -> dict[str, Any]:
    volumes = [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]
    return {"spec": {"nodeName": node, "volumes": volumes}, "status": {"phase": phase}}


def test_a_new_claim_is_protected_first() -> None:
    new = claim()
    del new["metadata"]["finalizers"]
    assert decide_claim(new, [], [], ROOT).protected is True


def test_a_claim_gets_a_folder_of_its_own() -> None:
    actions = decide_claim(claim(), [], [], ROOT)
    assert actions.provision is not None
    assert actions.provision["spec"]["hostPath"]["path"] == "/volumes/n/data"
    assert actions.provision["spec"]["persistentVolumeReclaimPolicy"] == "Delete"
    assert actions.bind_to == actions.provision["metadata"]["name"] == "pvc-claim-uid"


def test_what_was_provisioned_before_is_not_provisioned_again() -> None:
    made = decide_claim(claim(), [], [], ROOT).provision
    assert made is not None
    again = decide_claim(claim(), [made], [], ROOT)
    assert (again.provision, again.bind_to) == (None, "pvc-claim-uid")


def test_a_bound_claim_needs_nothing() -> None:
    actions = decide_claim(claim("Bound", volumeName="disk"), [volume()], [pod()], ROOT)
    assert actions == type(actions)()


def test_a_claim_binds_the_volume_that_it_names() -> None:
    actions = decide_claim(claim(volumeName="disk"), [volume()], [], ROOT)
    assert (actions.bind_to, actions.provision) == ("disk", None)


def test_a_volume_reserved_for_the_claim_is_bound() -> None:
    reserved = volume(claimRef={"namespace": "n", "name": "data"})
    assert decide_claim(claim(volumeName="disk"), [reserved], [], ROOT).bind_to == "disk"


@pytest.mark.parametrize(
    ("spec", "volumes", "message"),
    [
        ({"volumeName": "disk"}, [], 'volume "disk" not found'),
        (
            {"volumeName": "disk"},
            [volume(claimRef={"namespace": "n", "name": "other"})],
            "already bound to a different claim",
        ),
        (
            {"volumeName": "disk"},
            [volume(claimRef={"namespace": "n", "name": "data", "uid": "earlier"})],
            "already bound to a different claim",
        ),
        (
            {"volumeName": "disk"},
            [{"metadata": {"name": "disk"}, "spec": {"nfs": {}}}],
            "has no hostPath",
        ),
        ({"storageClassName": ""}, [], "name it in spec.volumeName"),
    ],
)
def test_why_a_claim_waits_is_said(
    spec: dict[str, Any], volumes: list[dict[str, Any]], message: str
) -> None:
    actions = decide_claim(claim(**spec), volumes, [], ROOT)
    assert actions.bind_to is None
    assert actions.event is not None
    assert message in actions.event.message


@pytest.mark.parametrize(
    ("user", "held"),
    [(pod(), True), (pod("Succeeded"), False), (pod("Pending", node=None), False)],
)
def test_a_deleted_claim_waits_for_its_pods(user: dict[str, Any], held: bool) -> None:
    actions = decide_claim(claim("Bound", deleted=True), [], [user], ROOT)
    assert actions.protected is held


def test_a_volume_whose_claim_is_gone_is_orphaned() -> None:
    bound = volume(claimRef={"namespace": "n", "name": "data", "uid": "claim-uid"})
    assert orphaned([bound, volume()], {"claim-uid"}) == []
    assert orphaned([bound, volume()], {"another"}) == [bound]
