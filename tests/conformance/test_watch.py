"""Lists and watches: selectors, pages, continuing from a version, bookmarks, expiry."""

from __future__ import annotations

from typing import Any

import pytest
from tests.conformance.client import Api, Refused, take


@pytest.fixture
def path(api: Api) -> str:
    return api.ns("v1", "configmaps")


async def make(api: Api, name: str, **labels: str) -> dict[str, Any]:
    metadata = {"name": name, "labels": {**labels, "test": "watch"}}
    return await api.create(api.ns("v1", "configmaps"), {"metadata": metadata})


OURS = {"labelSelector": "test=watch"}


def names(found: dict[str, Any]) -> list[str]:
    return [item["metadata"]["name"] for item in found["items"]]


def summary(events: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(event["type"], event["object"]["metadata"]["name"]) for event in events]


@pytest.mark.parametrize(
    ("selector", "selected"),
    [
        ("color=red", ["a"]),
        ("color==red", ["a"]),
        ("color!=red", ["b", "c"]),
        ("color in (red, blue)", ["a", "b"]),
        ("color notin (red),color", ["b"]),
        ("!color", ["c"]),
        ("color=red,size=1", ["a"]),
        ("color=red,size=2", []),
    ],
)
async def test_label_selectors(api: Api, path: str, selector: str, selected: list[str]) -> None:
    await make(api, "a", color="red", size="1")
    await make(api, "b", color="blue")
    await make(api, "c")
    assert names(await api.get(path, labelSelector=f"test=watch,{selector}")) == selected


async def test_field_selectors(api: Api, path: str) -> None:
    await make(api, "a")
    await make(api, "b")
    assert names(await api.get(path, fieldSelector="metadata.name=a")) == ["a"]
    assert names(await api.get(path, fieldSelector="metadata.name!=a", **OURS)) == ["b"]
    with pytest.raises(Refused, match="field label not supported: data") as refused:
        await api.get(path, fieldSelector="data=a")
    assert refused.value.code == 400


async def test_events_are_found_by_what_they_are_about(api: Api) -> None:
    events = api.ns("v1", "events")
    for name in ("x", "y"):
        about = {"kind": "ConfigMap", "name": name, "namespace": api.namespace}
        body = {"metadata": {"name": f"about-{name}"}, "involvedObject": about, "reason": "Test"}
        await api.create(events, body)
    selector = "involvedObject.kind=ConfigMap,involvedObject.name=x,reason=Test"
    assert names(await api.get(events, fieldSelector=selector)) == ["about-x"]


async def test_pages_are_complete_and_disjoint(api: Api, path: str) -> None:
    for name in "abcde":
        await make(api, name)
    first = await api.get(path, limit=2, **OURS)
    assert len(first["items"]) == 2
    second = await api.get(path, limit=2, **OURS, **{"continue": first["metadata"]["continue"]})
    third = await api.get(path, limit=2, **OURS, **{"continue": second["metadata"]["continue"]})
    assert "continue" not in third["metadata"]
    assert names(first) + names(second) + names(third) == list("abcde")


async def test_a_watch_starts_with_what_exists(api: Api, path: str) -> None:
    await make(api, "a")
    async with api.watch(path, **OURS) as events:
        assert summary(await take(events, 1)) == [("ADDED", "a")]
        await api.merge(f"{path}/a", {"data": {"key": "1"}})
        await make(api, "b")
        await api.delete(f"{path}/a")
        assert summary(await take(events, 3)) == [
            ("MODIFIED", "a"),
            ("ADDED", "b"),
            ("DELETED", "a"),
        ]


async def test_a_watch_continues_from_a_version(api: Api, path: str) -> None:
    await make(api, "a")
    listed = await api.get(path)
    await make(api, "b")
    await api.delete(f"{path}/b")
    version = listed["metadata"]["resourceVersion"]
    async with api.watch(path, resourceVersion=version) as events:
        seen = await take(events, 2)
    assert summary(seen) == [("ADDED", "b"), ("DELETED", "b")]
    versions = [int(event["object"]["metadata"]["resourceVersion"]) for event in seen]
    assert int(version) < versions[0] < versions[1]


async def test_an_object_enters_and_leaves_a_selection(api: Api, path: str) -> None:
    version = (await api.get(path))["metadata"]["resourceVersion"]
    selector = {"labelSelector": "color=red", "resourceVersion": version}
    async with api.watch(path, **selector) as events:
        await make(api, "a", color="blue")
        await api.merge(f"{path}/a", {"metadata": {"labels": {"color": "red"}}})
        await api.merge(f"{path}/a", {"data": {"key": "1"}})
        await api.merge(f"{path}/a", {"metadata": {"labels": {"color": "blue"}}})
        seen = await take(events, 3)
    assert summary(seen) == [("ADDED", "a"), ("MODIFIED", "a"), ("DELETED", "a")]


async def test_a_watch_of_one_name(api: Api, path: str) -> None:
    await make(api, "a")
    await make(api, "b")
    async with api.watch(path, fieldSelector="metadata.name=b") as events:
        await api.merge(f"{path}/a", {"data": {"key": "1"}})
        await api.merge(f"{path}/b", {"data": {"key": "1"}})
        assert summary(await take(events, 2)) == [("ADDED", "b"), ("MODIFIED", "b")]


async def test_a_streamed_list_ends_in_a_marked_bookmark(api: Api, path: str) -> None:
    await make(api, "a")
    query = {
        "sendInitialEvents": "true",
        "resourceVersionMatch": "NotOlderThan",
        "allowWatchBookmarks": "true",
        **OURS,
    }
    async with api.watch(path, **query) as events:
        added, bookmark = await take(events, 2)
    assert summary([added]) == [("ADDED", "a")]
    assert bookmark["type"] == "BOOKMARK"
    metadata = bookmark["object"]["metadata"]
    assert metadata["annotations"] == {"k8s.io/initial-events-end": "true"}
    assert int(metadata["resourceVersion"]) >= int(added["object"]["metadata"]["resourceVersion"])


async def test_a_watch_sends_a_bookmark_before_it_ends(api: Api, path: str) -> None:
    version = (await api.get(path))["metadata"]["resourceVersion"]
    query = {"allowWatchBookmarks": "true", "timeoutSeconds": "3", "resourceVersion": version}
    async with api.watch(path, **query, labelSelector="none=such") as events:
        kinds = [event["type"] async for event in events]
    assert set(kinds) == {"BOOKMARK"}


async def test_a_watch_ends_at_its_timeout(api: Api, path: str) -> None:
    async with api.watch(path, timeoutSeconds=1, labelSelector="none=such") as events:
        assert [event async for event in events] == []


async def test_a_version_too_old_expires(api: Api, path: str, is_devcluster: bool) -> None:
    if not is_devcluster:
        pytest.skip("a real cluster forgets versions only every five minutes")
    from tests.conformance.conftest import HISTORY_LIMIT  # noqa: PLC0415  # of the devcluster only

    version = (await make(api, "a"))["metadata"]["resourceVersion"]
    for number in range(2 * HISTORY_LIMIT + 1):
        await api.merge(f"{path}/a", {"data": {"key": str(number)}})
    async with api.watch(path, resourceVersion=version) as events:
        (event,) = await take(events, 1)
    assert event["type"] == "ERROR"
    assert (event["object"]["code"], event["object"]["reason"]) == (410, "Expired")


async def test_a_version_of_the_future_is_not_waited_for(
    api: Api, path: str, is_devcluster: bool
) -> None:
    """A client that survived a restart of the devcluster must list again, not wait forever."""
    if not is_devcluster:
        pytest.skip("a real cluster's versions survive its restart")
    async with api.watch(path, resourceVersion=10**9) as events:
        (event,) = await take(events, 1)
    assert event["object"]["code"] == 410


async def test_a_table_is_rendered_for_kubectl(api: Api, widgets: str) -> None:
    await api.create(widgets, {
        "apiVersion": "conformance.latticeforge.dev/v1", "kind": "Widget",
        "metadata": {"name": "w"}, "spec": {"size": 7},
    })  # fmt: skip
    await api.merge(f"{widgets}/w/status", {"status": {"phase": "Running"}})
    accept = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"
    table = await api.get(widgets, accept=accept)
    assert table["kind"] == "Table"
    headings = [(c["name"], c["priority"]) for c in table["columnDefinitions"]]
    assert headings == [("Name", 0), ("Phase", 0), ("Size", 1), ("Age", 0)]
    assert table["rows"][0]["cells"][:3] == ["w", "Running", 7]
