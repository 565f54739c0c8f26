"""A Deployment keeps its replicas, and replaces the old version by the new."""

from __future__ import annotations

from typing import Any

from tests.unit.devcluster_pods.builders import NOW, pod

from latticeforge_operator.devcluster.controllers.deployments import (
    HASH,
    Rollout,
    decide,
    template_hash,
)


def deployment(replicas: int = 1, image: str = "a") -> dict[str, Any]:
    template = {
        "metadata": {"labels": {"app": "d"}},
        "spec": {"containers": [{"name": "main", "image": image}]},
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "d", "namespace": "n", "uid": "d-uid", "generation": 3},
        "spec": {"replicas": replicas, "template": template},
    }


def replica(of: dict[str, Any], name: str, phase: str = "Running", **fields: Any) -> dict[str, Any]:
    made = pod(name, phase, conditions=("Ready",), **fields)
    made["metadata"]["labels"] = {HASH: template_hash(of)}
    return made


def conditions(rollout: Rollout) -> dict[str, tuple[str, str]]:
    return {c["type"]: (c["status"], c["reason"]) for c in rollout.status["conditions"]}


def test_missing_replicas_are_created() -> None:
    wanted = deployment(2)
    rollout = decide(wanted, [replica(wanted, "x")], NOW)
    [made] = rollout.create
    assert made["metadata"]["labels"] == {"app": "d", HASH: template_hash(wanted)}
    assert made["metadata"]["ownerReferences"][0]["uid"] == "d-uid"
    assert conditions(rollout)["Available"] == ("False", "MinimumReplicasUnavailable")


def test_when_all_are_ready_the_rollout_is_done() -> None:
    wanted = deployment(1)
    rollout = decide(wanted, [replica(wanted, "x")], NOW)
    assert (rollout.create, rollout.delete) == ((), ())
    assert conditions(rollout)["Progressing"] == ("True", "NewReplicaSetAvailable")
    assert rollout.status["observedGeneration"] == 3
    assert rollout.status["availableReplicas"] == 1


def test_the_new_version_waits_for_the_end_of_the_old() -> None:
    old, new = deployment(image="a"), deployment(image="b")
    first = decide(new, [replica(old, "x")], NOW)
    assert (first.delete, first.create) == (("x",), ())
    assert conditions(first)["Progressing"] == ("True", "ReplicaSetUpdated")
    ending = decide(new, [replica(old, "x", deleted=True)], NOW)
    assert (ending.delete, ending.create) == ((), ())
    assert len(decide(new, [], NOW).create) == 1


def test_surplus_and_finished_pods_go() -> None:
    wanted = deployment(1)
    pods = [replica(wanted, "x"), replica(wanted, "y"), replica(wanted, "z", "Failed")]
    rollout = decide(wanted, pods, NOW)
    assert set(rollout.delete) == {"y", "z"}
    assert rollout.create == ()


def test_a_deployment_that_is_being_deleted_starts_nothing() -> None:
    dying = deployment(1)
    dying["metadata"]["deletionTimestamp"] = "2030-01-01T00:00:00Z"
    assert decide(dying, [], NOW).create == ()
