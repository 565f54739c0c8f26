"""The store in-process: what controllers and the kubelet rely on, and what HTTP cannot show."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from latticeforge_operator.devcluster.collection import Query, Stored
from latticeforge_operator.devcluster.eviction import evict
from latticeforge_operator.devcluster.store import ApiError, ResourceKey, Store, WatchEvent

CONFIG_MAPS = ResourceKey("v1", "configmaps")
PODS = ResourceKey("v1", "pods")
START = datetime(2030, 1, 1, tzinfo=UTC)


@pytest.fixture
def store() -> Store:
    return Store(now=lambda: START)


def make_pod(store: Store, *, node: str = "", **metadata: Any) -> dict[str, Any]:
    spec = {"nodeName": node, "containers": [{"name": "main", "image": "none"}]}
    return store.create(PODS, "default", {"metadata": {"name": "p", **metadata}, "spec": spec})


def test_what_is_passed_in_may_be_changed_later(store: Store) -> None:
    obj = {"metadata": {"name": "a"}, "data": {"key": "1"}}
    store.create(CONFIG_MAPS, "default", obj)
    obj["data"]["key"] = "2"
    assert store.get(CONFIG_MAPS, "default", "a")["data"] == {"key": "1"}


def test_old_versions_are_never_changed(store: Store) -> None:
    before = store.create(CONFIG_MAPS, "default", {"metadata": {"name": "a"}, "data": {"k": "1"}})
    copy = {**before, "data": dict(before["data"])}
    store.merge_patch(CONFIG_MAPS, "default", "a", {"data": {"k": "2"}})
    assert before == copy


def test_timestamps_are_those_of_the_given_clock(store: Store) -> None:
    assert make_pod(store)["metadata"]["creationTimestamp"] == "2030-01-01T00:00:00Z"


async def test_a_watch_begins_with_what_exists(store: Store) -> None:
    store.create(CONFIG_MAPS, "default", {"metadata": {"name": "a"}})
    seen: list[WatchEvent] = []
    async with asyncio.timeout(60):
        async for event in store.watch(CONFIG_MAPS, "default"):
            seen.append(event)
            if len(seen) == 1:
                store.merge_patch(CONFIG_MAPS, "default", "a", {"data": {"key": "1"}})
                store.create(CONFIG_MAPS, "kube-system", {"metadata": {"name": "elsewhere"}})
                store.delete(CONFIG_MAPS, "default", "a")
            if len(seen) == 3:
                break
    assert [event.type for event in seen] == ["ADDED", "MODIFIED", "DELETED"]


async def test_a_watch_can_continue(store: Store) -> None:
    store.create(CONFIG_MAPS, "default", {"metadata": {"name": "a"}})
    since = store.revision
    store.create(CONFIG_MAPS, "default", {"metadata": {"name": "b"}})
    async for event in store.watch(CONFIG_MAPS, since=since):
        assert event.object["metadata"]["name"] == "b"
        break


async def test_a_watch_too_far_back_expires() -> None:
    store = Store(history_limit=2)
    for number in range(9):
        store.create(CONFIG_MAPS, "default", {"metadata": {"name": f"a{number}"}})
    with pytest.raises(ApiError, match="too old") as refused:
        await anext(aiter(store.watch(CONFIG_MAPS, since=1)))
    assert refused.value.code == 410


async def test_a_waiting_watch_leaves_nothing_behind(store: Store) -> None:
    follower = store.follow(CONFIG_MAPS, store.revision)
    assert await follower.next(timeout=0.01) == []
    store.create(CONFIG_MAPS, "default", {"metadata": {"name": "a"}})
    assert len(await follower.next()) == 1


class TestPodDeletion:
    def test_a_running_pod_waits_for_its_kubelet(self, store: Store) -> None:
        make_pod(store, node="n")
        marked = store.delete(PODS, "default", "p")
        assert marked["metadata"]["deletionGracePeriodSeconds"] == 30
        assert marked["metadata"]["deletionTimestamp"] == "2030-01-01T00:00:30Z"
        store.delete(PODS, "default", "p", grace_period_seconds=0)
        assert store.list(PODS) == []

    def test_a_second_delete_may_only_shorten_the_grace(self, store: Store) -> None:
        make_pod(store, node="n")
        store.delete(PODS, "default", "p", grace_period_seconds=10)
        assert store.delete(PODS, "default", "p")["metadata"]["deletionGracePeriodSeconds"] == 10
        shorter = store.delete(PODS, "default", "p", grace_period_seconds=5)
        assert shorter["metadata"]["deletionGracePeriodSeconds"] == 5

    def test_a_finished_pod_goes_at_once(self, store: Store) -> None:
        make_pod(store, node="n")
        status = {"status": {"phase": "Succeeded"}}
        store.merge_patch(PODS, "default", "p", status, subresource="status")
        store.delete(PODS, "default", "p")
        assert store.list(PODS) == []

    def test_a_pod_that_no_node_has_goes_at_once(self, store: Store) -> None:
        make_pod(store)
        store.delete(PODS, "default", "p")
        assert store.list(PODS) == []

    def test_a_finalizer_outlasts_the_kubelet(self, store: Store) -> None:
        make_pod(store, node="n", finalizers=["batch.kubernetes.io/job-tracking"])
        store.delete(PODS, "default", "p", grace_period_seconds=0)
        assert len(store.list(PODS)) == 1
        store.merge_patch(PODS, "default", "p", {"metadata": {"finalizers": []}})
        assert store.list(PODS) == []

    def test_dropping_the_finalizer_does_not_cut_the_grace_short(self, store: Store) -> None:
        make_pod(store, node="n", finalizers=["batch.kubernetes.io/job-tracking"])
        store.delete(PODS, "default", "p")
        store.merge_patch(PODS, "default", "p", {"metadata": {"finalizers": []}})
        assert len(store.list(PODS)) == 1

    def test_an_eviction_says_why(self, store: Store) -> None:
        make_pod(store, node="n")
        evict(store, "default", "p", {"deleteOptions": {"gracePeriodSeconds": 7}})
        pod = store.get(PODS, "default", "p")
        assert pod["metadata"]["deletionGracePeriodSeconds"] == 7
        (condition,) = pod["status"]["conditions"]
        assert (condition["type"], condition["reason"]) == (
            "DisruptionTarget",
            "EvictionByEvictionAPI",
        )


def test_a_pod_is_bound_once_and_its_spec_is_fixed(store: Store) -> None:
    make_pod(store)
    store.merge_patch(PODS, "default", "p", {"spec": {"nodeName": "n"}})
    with pytest.raises(ApiError, match="pod updates may not change fields"):
        store.merge_patch(PODS, "default", "p", {"spec": {"nodeName": "other"}})


def test_a_definitions_objects_go_with_it() -> None:
    definitions = ResourceKey("apiextensions.k8s.io/v1", "customresourcedefinitions")
    things = ResourceKey("test.dev/v1", "things")
    store = Store()
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {
        "name": "v1",
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": schema},
    }
    spec = {
        "group": "test.dev",
        "scope": "Namespaced",
        "names": {"plural": "things", "kind": "Thing"},
        "versions": [version],
    }
    store.create(definitions, "", {"metadata": {"name": "things.test.dev"}, "spec": spec})
    held = {"metadata": {"name": "a", "finalizers": ["test.dev/hold"]}}
    store.create(things, "default", held)
    store.delete(definitions, "", "things.test.dev")
    assert store.get(things, "default", "a")["metadata"]["deletionTimestamp"]
    store.merge_patch(things, "default", "a", {"metadata": {"finalizers": None}})
    assert things not in store.registry
    assert store.list(definitions) == []


def test_an_owner_in_another_namespace_is_no_owner(store: Store) -> None:
    owner = store.create(CONFIG_MAPS, "kube-system", {"metadata": {"name": "owner"}})
    reference = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "name": "owner",
        "uid": owner["metadata"]["uid"],
    }
    metadata = {"name": "child", "ownerReferences": [reference]}
    store.create(CONFIG_MAPS, "default", {"metadata": metadata})
    assert store.list(CONFIG_MAPS, "default") == []


@pytest.mark.parametrize(
    ("namespace", "label_selector", "looked_at"),
    [
        ("default", "stack=s7", 1),
        (None, "stack=s7", 1),
        ("default", "stack=s7,all=yes", 1),
        ("default", "all=yes", 50),
        ("kube-system", "", 1),
        ("default", "stack=none-such", 0),
    ],
)
def test_a_list_looks_only_at_what_its_smallest_index_holds(
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    namespace: str | None,
    label_selector: str,
    looked_at: int,
) -> None:
    for number in range(50):
        labels = {"stack": f"s{number}", "all": "yes"}
        metadata = {"name": f"a{number}", "labels": labels}
        store.create(CONFIG_MAPS, "default", {"metadata": metadata})
    store.create(CONFIG_MAPS, "kube-system", {"metadata": {"name": "elsewhere"}})
    seen = []
    matches = Query.matches

    def counted(query: Query, stored: Stored) -> bool:
        seen.append(stored)
        return matches(query, stored)

    monkeypatch.setattr(Query, "matches", counted)
    store.list(CONFIG_MAPS, namespace, label_selector=label_selector)
    assert len(seen) == looked_at


def test_indexes_follow_changes(store: Store) -> None:
    store.create(CONFIG_MAPS, "default", {"metadata": {"name": "a", "labels": {"color": "red"}}})
    store.merge_patch(CONFIG_MAPS, "default", "a", {"metadata": {"labels": {"color": "blue"}}})
    assert store.list(CONFIG_MAPS, label_selector="color=red") == []
    assert len(store.list(CONFIG_MAPS, label_selector="color=blue")) == 1
    store.delete(CONFIG_MAPS, "default", "a")
    assert store.list(CONFIG_MAPS, label_selector="color=blue") == []
