"""Whatever a client sends, it is stored or refused: nothing is a server's fault."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.conformance.conftest import WIDGETS

from latticeforge_operator.devcluster import patch
from latticeforge_operator.devcluster.store import ApiError, ResourceKey, Store

JOB = {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "a"}]}}}
KINDS: dict[ResourceKey, dict[str, Any]] = {
    ResourceKey("v1", "configmaps"): {"data": {"a": "b"}},
    ResourceKey("v1", "secrets"): {"stringData": {"a": "b"}},
    ResourceKey("v1", "pods"): {"spec": {"containers": [{"name": "a", "image": "b"}]}},
    ResourceKey("batch/v1", "jobs"): {"spec": JOB},
    ResourceKey("apiextensions.k8s.io/v1", "customresourcedefinitions"): {"spec": WIDGETS["spec"]},
    ResourceKey("conformance.latticeforge.dev/v1", "widgets"): {
        "spec": {"size": 1, "stages": [{"name": "a"}]}
    },
}
FIELDS = [
    "apiVersion",
    "kind",
    "metadata",
    "name",
    "namespace",
    "labels",
    "ownerReferences",
    "finalizers",
    "managedFields",
    "uid",
    "spec",
    "data",
    "stringData",
    "template",
    "containers",
    "restartPolicy",
    "size",
    "mode",
    "stages",
    "status",
    "conditions",
    "names",
    "versions",
    "schema",
    "openAPIV3Schema",
    "group",
    "plural",
]

numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | numbers | st.text("aé/-.", max_size=3)
junk = st.recursive(
    scalars,
    lambda below: (
        st.lists(below, max_size=2)
        | st.dictionaries(st.sampled_from(FIELDS) | st.text("ab", max_size=2), below, max_size=4)
    ),
    max_leaves=8,
)
bodies = st.dictionaries(st.sampled_from(FIELDS), junk, max_size=4)


def replaced(value: Any, draw: Callable[[st.SearchStrategy[Any]], Any]) -> Any:
    """A copy of an object with one part of it replaced by junk."""
    if not value or not isinstance(value, dict | list) or draw(st.integers(0, 3)) == 0:
        return draw(junk)
    copy: Any = dict(value) if isinstance(value, dict) else list(value)
    key = draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value))))
    copy[key] = replaced(value[key], draw)
    return copy


def served() -> Store:
    store = Store()
    definitions = ResourceKey("apiextensions.k8s.io/v1", "customresourcedefinitions")
    store.create(definitions, "", WIDGETS)
    return store


def body_of(store: Store, key: ResourceKey, **metadata: Any) -> dict[str, Any]:
    resource = store.registry[key]
    return {
        "apiVersion": key.group_version,
        "kind": resource.kind,
        "metadata": {"name": "x", "labels": {"a": "b"}, **metadata},
        **KINDS[key],
    }


@pytest.mark.parametrize("key", KINDS, ids=lambda key: key.plural)
@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_creating_and_applying(key: ResourceKey, data: st.DataObject) -> None:
    store = served()
    namespace = "default" if store.registry[key].namespaced else ""
    whole = body_of(store, key)
    body = replaced(whole, data.draw)
    with contextlib.suppress(ApiError):
        store.create(key, namespace, body)
    with contextlib.suppress(ApiError):
        store.apply(key, namespace, "x", body, manager="m", force=True)
    for found in store.list(key):
        assert isinstance(found["metadata"]["name"], str)


@pytest.mark.parametrize("key", KINDS, ids=lambda key: key.plural)
@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_changing(key: ResourceKey, data: st.DataObject) -> None:
    store = served()
    namespace = "default" if store.registry[key].namespaced else ""
    if key.plural == "customresourcedefinitions":
        name = WIDGETS["metadata"]["name"]  # type: ignore[index]  # a literal
    else:
        name = store.create(key, namespace, body_of(store, key))["metadata"]["name"]
    whole = store.get(key, namespace, name)
    change = replaced(whole, data.draw) if data.draw(st.booleans()) else data.draw(bodies)
    resource = store.registry[key]
    for subresource in (None, "status") if resource.has_status else (None,):
        with contextlib.suppress(ApiError):
            store.merge_patch(key, namespace, name, change, subresource=subresource)
        with contextlib.suppress(ApiError):
            store.patch(
                key,
                namespace,
                name,
                lambda live: patch.strategic_merge(live, change, resource.schema),
                subresource=subresource,
            )
        with contextlib.suppress(ApiError):
            store.apply(
                key, namespace, name, change, manager="m", force=True, subresource=subresource
            )
