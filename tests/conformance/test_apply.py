"""Server-side apply: who owns which field, and what follows from it."""

from __future__ import annotations

from typing import Any

import pytest
from tests.conformance.client import Api, Refused


def config_map(**data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": data}


def widget(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "conformance.latticeforge.dev/v1",
        "kind": "Widget",
        "metadata": {"name": "w"},
        "spec": spec,
    }


def managers(obj: dict[str, Any]) -> dict[tuple[str, str], Any]:
    """FieldsV1 by manager and operation."""
    entries = obj["metadata"]["managedFields"]
    return {(entry["manager"], entry["operation"]): entry["fieldsV1"] for entry in entries}


@pytest.fixture
def path(api: Api) -> str:
    return api.ns("v1", "configmaps", "a")


async def test_apply_creates_and_owns_what_it_says(api: Api, path: str) -> None:
    created = await api.apply(path, config_map(key="1"), "first")
    assert created["data"] == {"key": "1"}
    assert managers(created) == {("first", "Apply"): {"f:data": {"f:key": {}}}}


async def test_applying_the_same_again_is_no_new_version(api: Api, path: str) -> None:
    created = await api.apply(path, config_map(key="1"), "first")
    assert await api.apply(path, config_map(key="1"), "first") == created


async def test_a_conflict_names_the_manager_and_the_field(api: Api, path: str) -> None:
    await api.apply(path, config_map(key="1"), "first")
    with pytest.raises(Refused, match=r'conflict with "first": \.data\.key') as refused:
        await api.apply(path, config_map(key="2"), "second")
    assert (refused.value.code, refused.value.reason) == (409, "Conflict")
    assert refused.value.causes == [
        {
            "reason": "FieldManagerConflict",
            "message": 'conflict with "first"',
            "field": ".data.key",
        }
    ]


async def test_several_conflicts_are_listed(api: Api, path: str) -> None:
    await api.apply(path, config_map(a="1", b="1"), "first")
    with pytest.raises(Refused, match="Apply failed with 2 conflicts") as refused:
        await api.apply(path, config_map(a="2", b="2"), "second")
    assert {cause["field"] for cause in refused.value.causes} == {".data.a", ".data.b"}


async def test_force_takes_ownership(api: Api, path: str) -> None:
    await api.apply(path, config_map(key="1", other="1"), "first")
    taken = await api.apply(path, config_map(key="2"), "second", force="true")
    assert taken["data"] == {"key": "2", "other": "1"}
    assert managers(taken) == {
        ("first", "Apply"): {"f:data": {"f:other": {}}},
        ("second", "Apply"): {"f:data": {"f:key": {}}},
    }


async def test_equal_values_are_owned_together(api: Api, path: str) -> None:
    await api.apply(path, config_map(key="1"), "first")
    shared = await api.apply(path, config_map(key="1"), "second")
    assert set(managers(shared)) == {("first", "Apply"), ("second", "Apply")}
    silent = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}}
    left = await api.apply(path, silent, "first")
    assert left["data"] == {"key": "1"}
    assert set(managers(left)) == {("second", "Apply")}


async def test_a_field_that_its_only_owner_drops_disappears(api: Api, path: str) -> None:
    await api.apply(path, config_map(keep="1", drop="1"), "first")
    left = await api.apply(path, config_map(keep="1"), "first")
    assert left["data"] == {"keep": "1"}


async def test_a_struct_disappears_with_the_last_of_its_fields(api: Api, widgets: str) -> None:
    await api.apply(f"{widgets}/w", widget(size=1, options={"retries": 1}), "first")
    left = await api.apply(f"{widgets}/w", widget(size=1), "first")
    assert left["spec"] == {"size": 1, "mode": "Run"}


async def test_a_struct_stays_for_what_others_own_in_it(api: Api, path: str) -> None:
    labelled = config_map()
    labelled["metadata"]["labels"] = {"a": "1"}
    await api.apply(path, labelled, "first")
    await api.merge(path, {"metadata": {"labels": {"b": "2"}}}, fieldManager="editor")
    left = await api.apply(path, config_map(), "first")
    assert left["metadata"]["labels"] == {"b": "2"}


async def test_an_update_owns_what_it_changes(api: Api, path: str) -> None:
    await api.apply(path, config_map(key="1", other="1"), "first")
    updated = await api.merge(path, {"data": {"key": "2"}}, fieldManager="editor")
    assert managers(updated) == {
        ("first", "Apply"): {"f:data": {"f:other": {}}},
        ("editor", "Update"): {"f:data": {"f:key": {}}},
    }
    with pytest.raises(Refused, match='conflict with "editor" using v1'):
        await api.apply(path, config_map(key="1", other="1"), "first")


async def test_applying_the_editors_value_shares_it(api: Api, path: str) -> None:
    await api.apply(path, config_map(key="1"), "first")
    await api.merge(path, {"data": {"key": "2"}}, fieldManager="editor")
    shared = await api.apply(path, config_map(key="2"), "first")
    assert set(managers(shared)) == {("first", "Apply"), ("editor", "Update")}


async def test_what_others_added_stays(api: Api, path: str) -> None:
    await api.apply(path, config_map(key="1"), "first")
    await api.merge(path, {"data": {"more": "1"}, "metadata": {"labels": {"a": "b"}}})
    kept = await api.apply(path, config_map(key="1"), "first")
    assert kept["data"] == {"key": "1", "more": "1"}
    assert kept["metadata"]["labels"] == {"a": "b"}


async def test_apply_needs_a_manager_and_a_type(api: Api, path: str) -> None:
    with pytest.raises(Refused, match="fieldManager"):
        await api.request("PATCH", path, config_map(), content_type="application/apply-patch+yaml")
    with pytest.raises(Refused) as refused:
        await api.apply(path, {"metadata": {"name": "a"}}, "first")
    assert refused.value.code == 400


async def test_apply_must_not_bring_managed_fields(api: Api, path: str) -> None:
    body = config_map()
    body["metadata"]["managedFields"] = [{"manager": "x", "operation": "Apply"}]
    with pytest.raises(Refused, match="managedFields must be nil") as refused:
        await api.apply(path, body, "first")
    assert refused.value.code == 400


async def test_apply_under_another_name_is_refused(api: Api, path: str) -> None:
    body = config_map()
    body["metadata"]["name"] = "other"
    with pytest.raises(Refused) as refused:
        await api.apply(path, body, "first")
    assert refused.value.code == 400


async def test_apply_with_an_old_version_conflicts(api: Api, path: str) -> None:
    created = await api.apply(path, config_map(key="1"), "first")
    await api.merge(path, {"data": {"other": "1"}})
    body = config_map(key="1")
    body["metadata"]["resourceVersion"] = created["metadata"]["resourceVersion"]
    with pytest.raises(Refused, match="modified") as refused:
        await api.apply(path, body, "first")
    assert refused.value.code == 409


async def test_map_lists_of_a_crd_merge_by_key(api: Api, widgets: str) -> None:
    first = widget(size=1, stages=[{"name": "a", "weight": 2}, {"name": "b"}])
    await api.apply(f"{widgets}/w", first, "first")
    second = widget(size=1, stages=[{"name": "b", "method": "LoRA"}, {"name": "c"}])
    merged = await api.apply(f"{widgets}/w", second, "second")
    assert merged["spec"]["stages"] == [
        {"name": "a", "weight": 2},
        {"name": "b", "weight": 1, "method": "LoRA"},
        {"name": "c", "weight": 1},
    ]
    left = await api.apply(f"{widgets}/w", widget(size=1), "first")
    assert [stage["name"] for stage in left["spec"]["stages"]] == ["b", "c"]


async def test_atomic_lists_are_replaced_whole(api: Api, widgets: str) -> None:
    await api.apply(f"{widgets}/w", widget(size=1, tags=["a", "b"]), "first")
    with pytest.raises(Refused, match=r"\.spec\.tags"):
        await api.apply(f"{widgets}/w", widget(tags=["c"]), "second")
    taken = await api.apply(f"{widgets}/w", widget(tags=["c"]), "second", force="true")
    assert taken["spec"]["tags"] == ["c"]


async def test_defaults_are_not_owned(api: Api, widgets: str) -> None:
    created = await api.apply(f"{widgets}/w", widget(size=1), "first")
    assert created["spec"]["mode"] == "Run"
    assert managers(created) == {("first", "Apply"): {"f:spec": {"f:size": {}}}}


async def test_status_is_applied_through_its_subresource(api: Api, widgets: str) -> None:
    path = f"{widgets}/w"
    await api.apply(path, {**widget(size=1), "status": {"phase": "Made up"}}, "first")
    status = {**widget(size=9), "status": {"phase": "Running"}}
    written = await api.apply(f"{path}/status", status, "operator")
    assert written["status"] == {"phase": "Running"}
    assert written["spec"]["size"] == 1
    entries = {entry["manager"]: entry for entry in written["metadata"]["managedFields"]}
    assert entries["operator"]["subresource"] == "status"
    assert entries["operator"]["fieldsV1"] == {"f:status": {"f:phase": {}}}
    gone = await api.apply(f"{path}/status", {**widget(), "status": {"ready": 1}}, "operator")
    assert gone["status"] == {"ready": 1}


async def test_applying_status_claims_nothing_else(api: Api, widgets: str) -> None:
    path = f"{widgets}/w"
    await api.apply(path, widget(size=1), "user")
    body = {**widget(size=1), "status": {"phase": "Running"}}
    body["metadata"]["labels"] = {"a": "b"}
    written = await api.apply(f"{path}/status", body, "operator")
    assert "labels" not in written["metadata"]
    assert managers(written)["operator", "Apply"] == {"f:status": {"f:phase": {}}}


async def test_applying_the_spec_leaves_an_applied_status(api: Api, widgets: str) -> None:
    path = f"{widgets}/w"
    await api.apply(path, widget(size=1), "user")
    await api.apply(f"{path}/status", {**widget(), "status": {"phase": "Running"}}, "operator")
    changed = await api.apply(path, widget(size=2), "user")
    assert changed["status"] == {"phase": "Running"}
    assert changed["metadata"]["generation"] == 2


async def test_status_of_nothing_cannot_be_applied(api: Api, widgets: str) -> None:
    with pytest.raises(Refused) as refused:
        await api.apply(f"{widgets}/w/status", {**widget(), "status": {"ready": 1}}, "operator")
    assert refused.value.code == 404


async def test_an_unknown_field_is_refused_by_name(api: Api, widgets: str) -> None:
    with pytest.raises(Refused, match=r"\.spec\.bogus: field not declared in schema"):
        await api.apply(f"{widgets}/w", widget(size=1, bogus=1), "first")


async def test_containers_and_environment_merge_by_name(api: Api) -> None:
    path = api.ns("batch/v1", "jobs", "a")

    def job(*containers: dict[str, Any]) -> dict[str, Any]:
        template = {"spec": {"restartPolicy": "Never", "containers": list(containers)}}
        spec = {"suspend": True, "template": template}
        return {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": "a"},
            "spec": spec,
        }

    main = {"name": "main", "image": "one", "env": [{"name": "A", "value": "1"}]}
    created = await api.apply(path, job(main), "first")
    fields = managers(created)["first", "Apply"]
    assert fields["f:spec"]["f:template"]["f:spec"]["f:containers"] == {
        'k:{"name":"main"}': {
            ".": {},
            "f:name": {},
            "f:image": {},
            "f:env": {'k:{"name":"A"}': {".": {}, "f:name": {}, "f:value": {}}},
        }
    }
    again = await api.apply(path, job(main), "first")
    assert managers(again)["first", "Apply"] == fields
    assert again["metadata"]["generation"] == created["metadata"]["generation"]
    assert again["spec"] == created["spec"]


async def test_owner_references_merge_by_uid(api: Api, path: str) -> None:
    references = []
    for name in ("x", "y"):
        owner = await api.create(api.ns("v1", "configmaps"), {"metadata": {"name": name}})
        uid = owner["metadata"]["uid"]
        references.append({"apiVersion": "v1", "kind": "ConfigMap", "name": name, "uid": uid})
    for manager, reference in zip(("first", "second"), references, strict=True):
        body = config_map()
        body["metadata"]["ownerReferences"] = [reference]
        merged = await api.apply(path, body, manager)
    assert merged["metadata"]["ownerReferences"] == references


async def test_a_patch_leaves_the_applied_set_of_others_alone(api: Api, widgets: str) -> None:
    path = f"{widgets}/w"
    await api.apply(path, widget(size=1, labels={"a": "1", "b": "1"}), "first")
    await api.merge(path, {"spec": {"labels": {"a": None}}}, fieldManager="editor")
    restored = await api.apply(path, widget(size=1, labels={"a": "1", "b": "1"}), "first")
    assert restored["spec"]["labels"] == {"a": "1", "b": "1"}
