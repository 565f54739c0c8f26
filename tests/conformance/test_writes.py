"""Create, read, update: optimistic locking, generations, no-op writes, names, dry runs."""

from __future__ import annotations

from typing import Any

import pytest
from tests.conformance.client import JSON_PATCH, STRATEGIC_PATCH, Api, Refused


def widget(name: str = "w", **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "conformance.latticeforge.dev/v1",
        "kind": "Widget",
        "metadata": {"name": name},
        "spec": {"size": 1, **spec},
    }


def config_map(name: str, **data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


async def test_a_created_object_has_an_identity(api: Api) -> None:
    created = await api.create(api.ns("v1", "configmaps"), config_map("a", key="value"))
    metadata = created["metadata"]
    assert metadata["uid"]
    assert metadata["resourceVersion"]
    assert metadata["creationTimestamp"].endswith("Z")
    assert metadata["namespace"] == api.namespace
    assert await api.get(api.ns("v1", "configmaps", "a")) == created


async def test_a_name_can_be_taken_once(api: Api) -> None:
    await api.create(api.ns("v1", "configmaps"), config_map("a"))
    with pytest.raises(Refused, match='configmaps "a" already exists') as refused:
        await api.create(api.ns("v1", "configmaps"), config_map("a"))
    assert (refused.value.code, refused.value.reason) == (409, "AlreadyExists")


async def test_a_generated_name_is_unique(api: Api) -> None:
    body = {"metadata": {"generateName": "a-"}}
    names = {
        (await api.create(api.ns("v1", "configmaps"), body))["metadata"]["name"] for _ in range(3)
    }
    assert len(names) == 3
    assert all(name.startswith("a-") for name in names)


async def test_what_is_not_there_is_404(api: Api) -> None:
    with pytest.raises(Refused, match='configmaps "a" not found') as refused:
        await api.get(api.ns("v1", "configmaps", "a"))
    assert (refused.value.code, refused.value.reason) == (404, "NotFound")


async def test_an_update_from_an_old_version_conflicts(api: Api) -> None:
    path = api.ns("v1", "configmaps", "a")
    old = await api.create(api.ns("v1", "configmaps"), config_map("a", key="1"))
    await api.replace(path, {**old, "data": {"key": "2"}})
    with pytest.raises(Refused, match="the object has been modified") as refused:
        await api.replace(path, {**old, "data": {"key": "3"}})
    assert (refused.value.code, refused.value.reason) == (409, "Conflict")
    assert (await api.get(path))["data"] == {"key": "2"}


async def test_a_patch_that_names_an_old_version_conflicts(api: Api) -> None:
    path = api.ns("v1", "configmaps", "a")
    old = await api.create(api.ns("v1", "configmaps"), config_map("a", key="1"))
    await api.merge(path, {"data": {"key": "2"}})
    version = old["metadata"]["resourceVersion"]
    with pytest.raises(Refused) as refused:
        await api.merge(path, {"metadata": {"resourceVersion": version}, "data": {"key": "3"}})
    assert refused.value.code == 409


async def test_an_update_of_another_uid_conflicts(api: Api) -> None:
    path = api.ns("v1", "configmaps", "a")
    old = await api.create(api.ns("v1", "configmaps"), config_map("a"))
    await api.delete(path)
    await api.create(api.ns("v1", "configmaps"), config_map("a"))
    old["metadata"].pop("resourceVersion")
    with pytest.raises(Refused) as refused:
        await api.replace(path, old)
    assert refused.value.code == 409


async def test_a_custom_resource_is_replaced_only_with_its_version(api: Api, widgets: str) -> None:
    await api.create(widgets, widget())
    with pytest.raises(Refused, match=r"metadata\.resourceVersion") as refused:
        await api.replace(f"{widgets}/w", widget(size=2))
    assert refused.value.code == 422


async def test_generation_counts_changes_of_the_spec_only(api: Api, widgets: str) -> None:
    path = f"{widgets}/w"
    created = await api.create(widgets, widget())
    assert created["metadata"]["generation"] == 1
    labelled = await api.merge(path, {"metadata": {"labels": {"a": "b"}}})
    assert labelled["metadata"]["generation"] == 1
    with_status = await api.merge(f"{path}/status", {"status": {"phase": "Running"}})
    assert with_status["metadata"]["generation"] == 1
    changed = await api.merge(path, {"spec": {"size": 2}})
    assert changed["metadata"]["generation"] == 2


async def test_a_write_that_changes_nothing_is_no_new_version(api: Api, widgets: str) -> None:
    path = f"{widgets}/w"
    before = await api.create(widgets, widget())
    assert await api.merge(path, {"spec": {"size": 1}}) == before
    assert await api.replace(path, before) == before
    status = await api.merge(f"{path}/status", {"status": {"phase": "Running"}})
    assert await api.merge(f"{path}/status", {"status": {"phase": "Running"}}) == status


async def test_status_is_written_through_its_subresource_only(api: Api, widgets: str) -> None:
    path = f"{widgets}/w"
    created = await api.create(widgets, {**widget(), "status": {"phase": "Made up"}})
    assert "status" not in created
    ignored = await api.merge(path, {"status": {"phase": "Made up"}, "spec": {"size": 2}})
    assert "status" not in ignored
    written = await api.merge(
        f"{path}/status", {"status": {"phase": "Running"}, "spec": {"size": 3}}
    )
    assert written["status"] == {"phase": "Running"}
    assert written["spec"]["size"] == 2


async def test_a_status_write_leaves_metadata_alone(api: Api, widgets: str) -> None:
    created = await api.create(widgets, widget())
    created["metadata"]["labels"] = {"a": "b"}
    written = await api.replace(f"{widgets}/w/status", {**created, "status": {"ready": 1}})
    assert "labels" not in written["metadata"]
    assert written["status"] == {"ready": 1}


async def test_identity_cannot_be_changed(api: Api) -> None:
    path = api.ns("v1", "configmaps", "a")
    old = await api.create(api.ns("v1", "configmaps"), config_map("a"))
    patch = {"metadata": {"creationTimestamp": "2001-01-01T00:00:00Z", "labels": {"a": "b"}}}
    new = await api.merge(path, patch)
    for field in ("uid", "creationTimestamp"):
        assert new["metadata"][field] == old["metadata"][field]


async def test_merge_patch_deletes_by_null_and_replaces_lists(api: Api, widgets: str) -> None:
    await api.create(widgets, widget(title="abc", tags=["a", "b"]))
    patched = await api.merge(f"{widgets}/w", {"spec": {"title": None, "tags": ["c"]}})
    assert "title" not in patched["spec"]
    assert patched["spec"]["tags"] == ["c"]


async def test_json_patch(api: Api) -> None:
    path = api.ns("v1", "configmaps", "a")
    await api.create(api.ns("v1", "configmaps"), config_map("a", key="1"))
    operations = [
        {"op": "test", "path": "/data/key", "value": "1"},
        {"op": "add", "path": "/data/more", "value": "2"},
    ]
    patched = await api.request("PATCH", path, operations, content_type=JSON_PATCH)
    assert patched["data"] == {"key": "1", "more": "2"}
    operations[0]["value"] = "other"
    with pytest.raises(Refused) as refused:
        await api.request("PATCH", path, operations, content_type=JSON_PATCH)
    assert refused.value.code == 422


async def test_strategic_merge_patch_merges_containers_by_name(api: Api) -> None:
    path = api.ns("apps/v1", "deployments")
    labels = {"app": "a"}
    containers = [{"name": "main", "image": "one"}, {"name": "side", "image": "two"}]
    spec = {
        "replicas": 0,
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": {"containers": containers}},
    }
    await api.create(path, {"metadata": {"name": "a"}, "spec": spec})
    patch = {
        "spec": {
            "template": {
                "spec": {
                    "containers": [
                        {"name": "main", "image": "new"},
                        {"name": "side", "$patch": "delete"},
                    ]
                }
            }
        }
    }
    patched = await api.request("PATCH", f"{path}/a", patch, content_type=STRATEGIC_PATCH)
    left = patched["spec"]["template"]["spec"]["containers"]
    assert [(container["name"], container["image"]) for container in left] == [("main", "new")]


async def test_custom_resources_refuse_strategic_merge_patches(api: Api, widgets: str) -> None:
    await api.create(widgets, widget())
    with pytest.raises(Refused) as refused:
        await api.request("PATCH", f"{widgets}/w", {}, content_type=STRATEGIC_PATCH)
    assert refused.value.code == 415


@pytest.mark.parametrize("name", ["Upper", "under_score", "-dash", "dash-", "a" * 254, "a..b"])
async def test_bad_names_are_refused(api: Api, name: str) -> None:
    with pytest.raises(Refused, match=r"metadata\.name: Invalid value") as refused:
        await api.create(api.ns("v1", "configmaps"), config_map(name))
    assert (refused.value.code, refused.value.reason) == (422, "Invalid")


async def test_label_values_have_63_characters_at_most(api: Api) -> None:
    body = config_map("a")
    body["metadata"]["labels"] = {"a": "x" * 63}
    await api.create(api.ns("v1", "configmaps"), body)
    with pytest.raises(Refused, match=r"metadata\.labels") as refused:
        await api.merge(api.ns("v1", "configmaps", "a"), {"metadata": {"labels": {"a": "x" * 64}}})
    assert refused.value.code == 422


async def test_a_dry_run_answers_and_changes_nothing(api: Api) -> None:
    path = api.ns("v1", "configmaps", "a")
    made = await api.create(api.ns("v1", "configmaps"), config_map("a", key="1"), dryRun="All")
    assert made["data"] == {"key": "1"}
    assert await api.gone(path)
    kept = await api.create(api.ns("v1", "configmaps"), config_map("a", key="1"))
    assert (await api.merge(path, {"data": {"key": "2"}}, dryRun="All"))["data"] == {"key": "2"}
    await api.delete(path, dryRun="All")
    assert await api.get(path) == kept


async def test_another_kind_is_refused(api: Api) -> None:
    body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "a"}}
    with pytest.raises(Refused) as refused:
        await api.create(api.ns("v1", "configmaps"), body)
    assert refused.value.code == 400


async def test_another_namespace_is_refused(api: Api) -> None:
    body = {"metadata": {"name": "a", "namespace": "default"}}
    with pytest.raises(Refused, match="namespace") as refused:
        await api.create(api.ns("v1", "configmaps"), body)
    assert refused.value.code == 400


async def test_secrets_take_plain_strings(api: Api) -> None:
    body = {"metadata": {"name": "a"}, "stringData": {"token": "made-up"}}
    created = await api.create(api.ns("v1", "secrets"), body)
    assert created["data"] == {"token": "bWFkZS11cA=="}
    assert created["type"] == "Opaque"
    assert "stringData" not in created


async def test_a_jobs_template_is_immutable(api: Api) -> None:
    path = api.ns("batch/v1", "jobs")
    containers = [{"name": "main", "image": "none"}]
    template = {"spec": {"restartPolicy": "Never", "containers": containers}}
    spec = {"suspend": True, "template": template}
    created = await api.create(path, {"metadata": {"name": "a"}, "spec": spec})
    assert created["spec"]["backoffLimit"] == 6
    assert created["spec"]["completions"] == created["spec"]["parallelism"] == 1
    patch = [{"op": "replace", "path": "/spec/template/spec/containers/0/image", "value": "b"}]
    with pytest.raises(Refused, match=r"spec\.template: .*field is immutable") as refused:
        await api.request("PATCH", f"{path}/a", patch, content_type=JSON_PATCH)
    assert refused.value.code == 422
    resumed = await api.merge(f"{path}/a", {"spec": {"activeDeadlineSeconds": 60}})
    assert resumed["spec"]["activeDeadlineSeconds"] == 60
