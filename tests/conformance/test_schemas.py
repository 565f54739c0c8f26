"""CustomResourceDefinitions: defaults, pruning, validation, CEL, and unknown fields."""

from __future__ import annotations

from typing import Any

import pytest
from tests.conformance.client import JSON_PATCH, Api, Refused, eventually


def widget(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "conformance.latticeforge.dev/v1",
        "kind": "Widget",
        "metadata": {"name": "w"},
        "spec": spec,
    }


async def test_defaults_are_filled_in(api: Api, widgets: str) -> None:
    created = await api.create(widgets, widget(size=1, options={}, stages=[{"name": "a"}]))
    assert created["spec"]["mode"] == "Run"
    assert created["spec"]["options"] == {"retries": 3}
    assert created["spec"]["stages"] == [{"name": "a", "weight": 1}]


async def test_defaults_do_not_make_absent_parents(api: Api, widgets: str) -> None:
    assert "options" not in (await api.create(widgets, widget(size=1)))["spec"]


async def test_unknown_fields_are_pruned(api: Api, widgets: str) -> None:
    stages = [{"name": "a", "bogus": 1}]
    created = await api.create(widgets, widget(size=1, bogus=1, stages=stages))
    assert "bogus" not in created["spec"]
    assert "bogus" not in created["spec"]["stages"][0]


async def test_declared_free_parts_are_kept(api: Api, widgets: str) -> None:
    free = {"any": {"thing": [1, {"deep": True}]}}
    created = await api.create(widgets, widget(size=1, free=free, labels={"any": "key"}))
    assert created["spec"]["free"] == free
    assert created["spec"]["labels"] == {"any": "key"}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({}, r"spec\.size: Required value"),
        ({"size": 0}, r"spec\.size: Invalid value: 0: .* should be greater than or equal to 1"),
        ({"size": 101}, r"spec\.size: Invalid value: 101: .* less than or equal to 100"),
        ({"size": "1"}, r"spec\.size: Invalid value: \"string\": .* must be of type integer"),
        ({"size": 1.5}, r"spec\.size: Invalid value: \"number\": .* must be of type integer"),
        (
            {"size": 1, "mode": "Walk"},
            r'spec\.mode: Unsupported value: "Walk": supported values: "Run", "Plan"',
        ),
        ({"size": 1, "title": "ABC"}, r"spec\.title: .* should match '\^\[a-z\]\+\$'"),
        ({"size": 1, "title": "abcdefghi"}, r"spec\.title: Too long: may not be more than 8"),
        ({"size": 1, "stages": [{}]}, r"spec\.stages\[0\]\.name: Required value"),
        (
            {"size": 1, "stages": [{"name": str(number)} for number in range(5)]},
            r"spec\.stages: Too many: 5: must have at most 4 items",
        ),
        (
            {"size": 1, "stages": [{"name": "a"}, {"name": "a"}]},
            r'spec\.stages\[1\]: Duplicate value: \{"name":"a"\}',
        ),
        ({"size": 1, "tags": "a"}, r"spec\.tags: .* must be of type array"),
        ({"size": 1, "labels": {"a": 1}}, r"spec\.labels\.a: .* must be of type string"),
    ],
)
async def test_refusals(api: Api, widgets: str, spec: dict[str, Any], message: str) -> None:
    with pytest.raises(Refused, match=message) as refused:
        await api.create(widgets, widget(**spec))
    assert (refused.value.code, refused.value.reason) == (422, "Invalid")
    assert refused.value.message.startswith('Widget.conformance.latticeforge.dev "w" is invalid: ')


async def test_all_faults_are_reported_together(api: Api, widgets: str) -> None:
    with pytest.raises(Refused) as refused:
        await api.create(widgets, widget(size=0, mode="Walk"))
    fields = {cause["field"] for cause in refused.value.causes}
    assert {"spec.size", "spec.mode"} <= fields


async def test_cel_rules_speak_in_their_own_words(api: Api, widgets: str) -> None:
    with pytest.raises(Refused, match="size must not exceed limit") as refused:
        await api.create(widgets, widget(size=5, limit=4))
    assert refused.value.code == 422
    assert [cause["field"] for cause in refused.value.causes] == ["spec.size"]


async def test_cel_rules_about_a_transition_apply_to_updates(api: Api, widgets: str) -> None:
    await api.create(widgets, widget(size=1, mode="Plan"))
    await api.merge(f"{widgets}/w", {"spec": {"size": 2}})
    with pytest.raises(Refused, match="mode cannot be changed"):
        await api.merge(f"{widgets}/w", {"spec": {"mode": "Run"}})


async def test_what_does_not_change_is_not_refused_again(api: Api, widgets: str) -> None:
    """A rule that becomes stricter must not lock out the status of what exists already."""
    await api.create(widgets, widget(size=50))
    path = (
        "apis/apiextensions.k8s.io/v1/customresourcedefinitions/"
        "widgets.conformance.latticeforge.dev"
    )
    field = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/size/maximum"
    stricter = [{"op": "replace", "path": field, "value": 10}]
    await api.request("PATCH", path, stricter, content_type=JSON_PATCH)

    async def is_stricter() -> bool:
        try:
            await api.create(widgets, {**widget(size=20), "metadata": {"name": "other"}})
        except Refused:
            return True
        await api.delete(f"{widgets}/other")
        return False

    await eventually(is_stricter)
    await api.merge(f"{widgets}/w/status", {"status": {"phase": "Running"}})
    await api.merge(f"{widgets}/w", {"spec": {"title": "abc"}})
    with pytest.raises(Refused, match=r"spec\.size"):
        await api.merge(f"{widgets}/w", {"spec": {"size": 51}})


async def test_status_is_validated_too(api: Api, widgets: str) -> None:
    await api.create(widgets, widget(size=1))
    with pytest.raises(Refused, match=r"status\.ready"):
        await api.merge(f"{widgets}/w/status", {"status": {"ready": "yes"}})


async def test_strict_validation_names_unknown_fields(api: Api, widgets: str) -> None:
    body = widget(size=1, bogus=1, stages=[{"name": "a", "wrong": 1}])
    with pytest.raises(Refused, match="strict decoding error") as refused:
        await api.create(widgets, body, fieldValidation="Strict")
    assert (refused.value.code, refused.value.reason) == (400, "BadRequest")
    assert 'unknown field "spec.bogus"' in refused.value.message
    assert 'unknown field "spec.stages[0].wrong"' in refused.value.message


async def test_strict_validation_of_built_in_kinds(api: Api) -> None:
    containers = [{"name": "main", "image": "none", "bogus": 1}]
    body = {"metadata": {"name": "a"}, "spec": {"containers": containers}}
    with pytest.raises(Refused, match=r'unknown field "spec\.containers\[0\]\.bogus"'):
        await api.create(api.ns("v1", "pods"), body, fieldValidation="Strict")


async def test_unknown_fields_are_warned_about(api: Api, widgets: str) -> None:
    url = f"{api.url}/{widgets}"
    async with api.session.post(url, json=widget(size=1, bogus=1)) as response:
        assert response.status == 201
        assert 'unknown field \\"spec.bogus\\"' in response.headers["Warning"]


@pytest.mark.parametrize(
    ("broken", "where"),
    [
        ({"x-kubernetes-validations": [{"rule": "self.size >"}]}, r"validations\[0\]\.rule"),
        ({"properties": {"a": {"type": "thing"}}}, r"properties\[a\]\.type"),
        ({"properties": {"a": {"description": "no type"}}}, r"properties\[a\]\.type"),
        ({"properties": {"a": {"type": "string", "pattern": "("}}}, r"properties\[a\]\.pattern"),
        ({"anyOf": [{"properties": {"a": {"pattern": "("}}}]}, r"anyOf\[0\]\.properties"),
        ({"properties": {"a": {"type": "string", "default": 2e-5}}}, r"properties\[a\]\.default"),
        ({"properties": {"a": {"type": "integer", "minimum": 1, "default": 0}}}, r"\.default"),
    ],
)
async def test_a_broken_schema_is_refused(api: Api, broken: dict[str, Any], where: str) -> None:
    schema = {"type": "object", **broken}
    version = {
        "name": "v1",
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": schema},
    }
    names = {"plural": "brokens", "kind": "Broken"}
    definition = {
        "metadata": {"name": "brokens.conformance.latticeforge.dev"},
        "spec": {
            "group": "conformance.latticeforge.dev",
            "scope": "Namespaced",
            "names": names,
            "versions": [version],
        },
    }
    path = "apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    with pytest.raises(Refused, match=where) as refused:
        await api.create(path, definition)
    assert refused.value.code == 422


async def test_a_definition_is_established(api: Api, widgets: str) -> None:
    name = "widgets.conformance.latticeforge.dev"
    definition = await api.get(f"apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}")
    conditions = {c["type"]: c["status"] for c in definition["status"]["conditions"]}
    assert conditions["Established"] == conditions["NamesAccepted"] == "True"
    assert definition["status"]["storedVersions"] == ["v1"]
