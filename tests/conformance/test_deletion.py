"""Deletion: finalizers, owners, propagation, namespaces, preconditions."""

from __future__ import annotations

from typing import Any

import pytest
from tests.conformance.client import Api, Refused, eventually


@pytest.fixture
def path(api: Api) -> str:
    return api.ns("v1", "configmaps")


async def make(api: Api, name: str, *owners: dict[str, Any], **metadata: Any) -> dict[str, Any]:
    references = [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "name": owner["metadata"]["name"],
            "uid": owner["metadata"]["uid"],
            "blockOwnerDeletion": True,
        }
        for owner in owners
    ]
    body = {"metadata": {"name": name, "ownerReferences": references, **metadata}}
    return await api.create(api.ns("v1", "configmaps"), body)


async def test_a_finalizer_holds_an_object(api: Api, path: str) -> None:
    await make(api, "a", finalizers=["example.com/hold"])
    held = await api.delete(f"{path}/a")
    assert held["metadata"]["deletionTimestamp"]
    assert (await api.get(f"{path}/a"))["metadata"]["finalizers"] == ["example.com/hold"]
    await api.merge(f"{path}/a", {"metadata": {"finalizers": None}})
    assert await api.gone(f"{path}/a")


async def test_deleting_twice_changes_nothing(api: Api, path: str) -> None:
    await make(api, "a", finalizers=["example.com/hold"])
    first = await api.delete(f"{path}/a")
    assert await api.delete(f"{path}/a") == first
    await api.merge(f"{path}/a", {"metadata": {"finalizers": None}})


async def test_marking_for_deletion_raises_the_generation(api: Api, widgets: str) -> None:
    metadata = {"name": "w", "finalizers": ["example.com/hold"]}
    body = {
        "apiVersion": "conformance.latticeforge.dev/v1",
        "kind": "Widget",
        "metadata": metadata,
        "spec": {"size": 1},
    }
    await api.create(widgets, body)
    marked = await api.delete(f"{widgets}/w")
    assert marked["metadata"]["generation"] == 2
    await api.merge(f"{widgets}/w", {"metadata": {"finalizers": None}})
    assert await api.gone(f"{widgets}/w")


async def test_dependents_go_with_their_owner(api: Api, path: str) -> None:
    owner = await make(api, "owner")
    child = await make(api, "child", owner)
    await make(api, "grandchild", child)
    await api.delete(f"{path}/owner", {"propagationPolicy": "Background"})
    await eventually(lambda: api.gone(f"{path}/grandchild"))
    assert await api.gone(f"{path}/child")


async def test_a_dependent_stays_while_one_owner_lives(api: Api, path: str) -> None:
    first = await make(api, "first")
    second = await make(api, "second")
    await make(api, "child", first, second)
    await api.delete(f"{path}/first")

    async def has_one_owner() -> bool:
        child = await api.get(f"{path}/child")
        return [o["name"] for o in child["metadata"]["ownerReferences"]] == ["second"]

    await eventually(has_one_owner)


async def test_a_dependent_of_a_dead_owner_is_collected(api: Api, path: str) -> None:
    owner = await make(api, "owner")
    await api.delete(f"{path}/owner")
    await make(api, "late", owner)
    await eventually(lambda: api.gone(f"{path}/late"))


async def test_orphans_stay(api: Api, path: str) -> None:
    owner = await make(api, "owner")
    await make(api, "child", owner)
    await api.delete(f"{path}/owner", {"propagationPolicy": "Orphan"})
    await eventually(lambda: api.gone(f"{path}/owner"))
    assert "ownerReferences" not in (await api.get(f"{path}/child"))["metadata"]


async def test_foreground_deletion_waits_for_dependents(api: Api, path: str) -> None:
    owner = await make(api, "owner")
    await make(api, "child", owner, finalizers=["example.com/hold"])
    await api.delete(f"{path}/owner", {"propagationPolicy": "Foreground"})
    waiting = await api.get(f"{path}/owner")
    assert waiting["metadata"]["finalizers"] == ["foregroundDeletion"]

    async def child_is_terminating() -> bool:
        return "deletionTimestamp" in (await api.get(f"{path}/child"))["metadata"]

    await eventually(child_is_terminating)
    await api.merge(f"{path}/child", {"metadata": {"finalizers": None}})
    await eventually(lambda: api.gone(f"{path}/owner"))
    assert await api.gone(f"{path}/child")


async def test_jobs_orphan_unless_told_otherwise(api: Api) -> None:
    """The default that every client overrides, and a raw DELETE does not."""
    jobs = api.ns("batch/v1", "jobs")
    containers = [{"name": "main", "image": "none"}]
    template = {"spec": {"restartPolicy": "Never", "containers": containers}}
    spec = {"suspend": True, "template": template}
    owner = await api.create(jobs, {"metadata": {"name": "a"}, "spec": spec})
    reference = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "name": "a",
        "uid": owner["metadata"]["uid"],
    }
    child = api.ns("v1", "configmaps", "child")
    body = {"metadata": {"name": "child", "ownerReferences": [reference]}}
    await api.create(api.ns("v1", "configmaps"), body)
    await api.delete(f"{jobs}/a")
    await eventually(lambda: api.gone(f"{jobs}/a"))
    assert "ownerReferences" not in (await api.get(child))["metadata"]


async def test_preconditions_protect_a_successor(api: Api, path: str) -> None:
    await make(api, "a")
    with pytest.raises(Refused, match="Precondition failed: UID") as refused:
        await api.delete(f"{path}/a", {"preconditions": {"uid": "another"}})
    assert refused.value.code == 409
    assert not await api.gone(f"{path}/a")


async def test_a_collection_is_deleted_by_selector(api: Api, path: str) -> None:
    await make(api, "a", labels={"drop": "yes"})
    await make(api, "b")
    await api.delete(path, labelSelector="drop=yes")
    await eventually(lambda: api.gone(f"{path}/a"))
    assert not await api.gone(f"{path}/b")


async def test_a_namespace_takes_its_contents_along(api: Api) -> None:
    name = f"{api.namespace}-inner"
    await api.create("api/v1/namespaces", {"metadata": {"name": name}})
    body = {"metadata": {"name": "a", "finalizers": ["example.com/hold"]}}
    inner = f"api/v1/namespaces/{name}"
    await api.create(f"{inner}/configmaps", body)
    await api.delete(inner)

    async def is_terminating() -> bool:
        phase: str = (await api.get(inner))["status"]["phase"]
        return phase == "Terminating"

    await eventually(is_terminating)
    with pytest.raises(Refused, match="is being terminated") as refused:
        await api.create(f"{inner}/configmaps", {"metadata": {"name": "b"}})
    assert refused.value.code == 403
    await api.merge(f"{inner}/configmaps/a", {"metadata": {"finalizers": None}})
    await eventually(lambda: api.gone(inner), seconds=60)


async def test_a_namespace_must_exist(api: Api) -> None:
    with pytest.raises(Refused, match='namespaces "none-such" not found') as refused:
        await api.create("api/v1/namespaces/none-such/configmaps", {"metadata": {"name": "a"}})
    assert refused.value.code == 404


async def test_a_pod_without_a_node_is_deleted_at_once(api: Api) -> None:
    pods = api.ns("v1", "pods")
    # No node is as big as this, so nothing ever runs the pod.
    resources = {"limits": {"nvidia.com/gpu": "4096"}, "requests": {"nvidia.com/gpu": "4096"}}
    spec = {"containers": [{"name": "main", "image": "none", "resources": resources}]}
    created = await api.create(pods, {"metadata": {"name": "a"}, "spec": spec})
    assert created["status"]["phase"] == "Pending"
    assert created["spec"]["terminationGracePeriodSeconds"] == 30
    await api.delete(f"{pods}/a")
    assert await api.gone(f"{pods}/a")
