"""Field sets: the algebra, and what apply builds on it, checked with random objects."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticeforge_operator.devcluster import fieldsets
from latticeforge_operator.devcluster.apply import ApplyRequest, apply, claim
from latticeforge_operator.devcluster.resources import Resource, ResourceKey
from latticeforge_operator.devcluster.store import utc_now

ITEM = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "a": {"type": "integer"}, "b": {"type": "integer"}},
}
SCHEMA = {
    "type": "object",
    "properties": {
        "metadata": {"type": "object", "properties": {"name": {"type": "string"}}},
        "number": {"type": "integer"},
        "nested": {"type": "object", "properties": {"x": {"type": "integer"}}},
        "map": {"type": "object", "additionalProperties": {"type": "integer"}},
        "list": {
            "type": "array",
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["name"],
            "items": ITEM,
        },
        "set": {
            "type": "array",
            "x-kubernetes-list-type": "set",
            "items": {"type": "string"},
        },
        "atomic": {"type": "array", "items": {"type": "integer"}},
    },
}
THINGS = Resource(ResourceKey("test/v1", "things"), "Thing", load_schema=lambda: SCHEMA)

numbers = st.integers(0, 2)
names = st.sampled_from("xyz")
items = st.fixed_dictionaries({"name": names}, optional={"a": numbers, "b": numbers})
objects = st.fixed_dictionaries(
    {},
    optional={
        "number": numbers,
        "nested": st.fixed_dictionaries({}, optional={"x": numbers}),
        "map": st.dictionaries(names, numbers, max_size=3),
        "list": st.lists(items, max_size=3, unique_by=lambda item: item["name"]),
        "set": st.lists(names, max_size=3, unique=True),
        "atomic": st.lists(numbers, max_size=2),
    },
)
field_sets = objects.map(lambda value: fieldsets.of(value, SCHEMA))


def members(fields: fieldsets.FieldSet) -> set[str]:
    return set(fieldsets.paths(fields))


@given(field_sets, field_sets)
def test_the_algebra_is_that_of_sets(a: fieldsets.FieldSet, b: fieldsets.FieldSet) -> None:
    assert members(fieldsets.union(a, b)) == members(a) | members(b)
    assert members(fieldsets.difference(a, b)) == members(a) - members(b)
    assert members(fieldsets.intersection(a, b)) == members(a) & members(b)


@given(objects, objects)
def test_what_a_comparison_adds_and_removes(old: dict[str, Any], new: dict[str, Any]) -> None:
    found = fieldsets.compare(old, new, SCHEMA)
    before, after = members(fieldsets.of(old, SCHEMA)), members(fieldsets.of(new, SCHEMA))
    # A map is a member only for as long as it is empty: its members come and go, it stays.
    maps = {".nested", ".map"}
    assert after - before - maps <= members(found.written)
    assert before - after - maps <= members(found.touched)
    assert members(found.removed).isdisjoint(members(found.written))
    assert bool(found.touched) == (ordered(old) != ordered(new))


def ordered(value: dict[str, Any]) -> dict[str, Any]:
    """The object with its granular lists in one order: a comparison does not see theirs."""
    shown = dict(value)
    if "list" in value:
        shown["list"] = sorted(value["list"], key=lambda item: str(item["name"]))
    if "set" in value:
        shown["set"] = sorted(value["set"])
    return shown


def request(manager: str) -> ApplyRequest:
    return ApplyRequest(manager, force=True, subresource=None, now=utc_now())


def thing(value: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "test/v1", "kind": "Thing", "metadata": {"name": "t"}, **value}


def managers(obj: dict[str, Any]) -> dict[str, fieldsets.FieldSet]:
    entries = obj["metadata"].get("managedFields", ())
    return {entry["manager"]: entry["fieldsV1"] for entry in entries}


@given(objects, objects)
def test_a_forced_apply_gets_its_way(first: dict[str, Any], second: dict[str, Any]) -> None:
    live = claim(THINGS, thing(first), thing(first), request("first"))
    merged = apply(THINGS, live, thing(second), request("second"))
    mine = fieldsets.of(second, SCHEMA)
    assert managers(merged).get("second", {}) == mine
    assert not fieldsets.compare(fieldsets.merge(merged, second, SCHEMA), merged, SCHEMA).touched


@given(objects, objects)
def test_applying_again_changes_nothing(first: dict[str, Any], second: dict[str, Any]) -> None:
    live = claim(THINGS, thing(first), thing(first), request("first"))
    once = apply(THINGS, live, thing(second), request("second"))
    assert apply(THINGS, once, thing(second), request("second")) == once


@given(objects, objects)
def test_dropping_everything_leaves_what_others_own(
    first: dict[str, Any], second: dict[str, Any]
) -> None:
    live = claim(THINGS, thing(first), thing(first), request("first"))
    both = apply(THINGS, live, thing(second), request("second"))
    theirs = managers(both).get("first", {})
    left = apply(THINGS, both, thing({}), request("second"))
    assert managers(left) == ({"first": theirs} if theirs else {})
    rest = {field: value for field, value in left.items() if field in SCHEMA["properties"]}
    rest.pop("metadata")
    assert members(fieldsets.of(rest, SCHEMA)) - members(theirs) <= {".nested", ".map"}


@pytest.mark.parametrize(
    ("live", "config", "merged"),
    [
        ("abc", "b", "abc"),
        ("abc", "cb", "acb"),
        ("ab", "c", "abc"),
        ("abc", "xb", "axbc"),
        ("abc", "bx", "abcx"),
        ("", "ba", "ba"),
        ("abcd", "dca", "bdca"),
    ],
)
def test_the_configuration_orders_a_merged_list(live: str, config: str, merged: str) -> None:
    schema = {"x-kubernetes-list-type": "set", "type": "array"}
    assert fieldsets.merge(list(live), list(config), schema) == list(merged)


def test_paths_are_readable() -> None:
    value = {"list": [{"name": "x", "a": 1}], "set": ["y"], "map": {"z": 1}}
    assert set(fieldsets.paths(fieldsets.of(value, SCHEMA))) == {
        '.list[name="x"]',
        '.list[name="x"].name',
        '.list[name="x"].a',
        '.set[="y"]',
        ".map.z",
    }
