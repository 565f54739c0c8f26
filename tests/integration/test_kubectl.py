"""The real kubectl against the devcluster's API server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.conformance.conftest import WIDGETS
from tests.integration.real_clients import Client, ClientError, running_server
from tests.tools import tool

from latticeforge_operator.devcluster.store import ApiError, ResourceKey, Store

CONFIG_MAPS = ResourceKey("v1", "configmaps")
PODS = ResourceKey("v1", "pods")
JOBS = ResourceKey("batch/v1", "jobs")
EVENTS = ResourceKey("v1", "events")
WIDGET_KEY = ResourceKey("conformance.latticeforge.dev/v1", "widgets")
WIDGET = """
apiVersion: conformance.latticeforge.dev/v1
kind: Widget
metadata: {name: w}
spec: {size: 1, stages: [{name: a, weight: 1}]}
"""
JOB = """
apiVersion: batch/v1
kind: Job
metadata: {name: j}
spec:
  template:
    spec:
      restartPolicy: Never
      containers: [{name: main, image: none}]
"""


async def read_log(
    namespace: str, pod: str, container: str | None, follow: bool, tail_lines: int | None
) -> AsyncIterator[bytes]:
    """A kubelet that has one pod."""
    if pod != "p":
        raise ApiError(400, f"container {container} of {namespace}/{pod} is waiting to start")
    lines = [b"one\n", b"two\n", b"three\n"]
    for line in lines[-(tail_lines or 3) :]:
        yield line
    if follow:
        yield b"followed\n"


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[tuple[Store, Path]]:
    async with running_server(tmp_path, log_reader=read_log) as running:
        yield running


@pytest.fixture
def store(server: tuple[Store, Path]) -> Store:
    return server[0]


@pytest.fixture
async def kubectl(server: tuple[Store, Path]) -> Client:
    return Client(tool("kubectl"), server[1])


@pytest.fixture
async def with_widgets(kubectl: Client) -> Client:
    await kubectl("create", "-f", "-", stdin=json.dumps(WIDGETS))
    await kubectl("wait", "--for=condition=Established", "crd/widgets.conformance.latticeforge.dev")
    await kubectl("api-resources")  # makes kubectl forget what it has cached of discovery
    return kubectl


async def test_the_version_is_shown(kubectl: Client) -> None:
    assert "Server Version: v1.37" in await kubectl("version")


async def test_client_side_apply_creates_changes_and_drops(kubectl: Client, store: Store) -> None:
    manifest = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "a"},
        "data": {"keep": "1", "drop": "1"},
    }
    assert "created" in await kubectl("apply", "-f", "-", stdin=json.dumps(manifest))
    manifest["data"] = {"keep": "2"}
    assert "configured" in await kubectl("apply", "-f", "-", stdin=json.dumps(manifest))
    assert store.get(CONFIG_MAPS, "default", "a")["data"] == {"keep": "2"}
    assert "unchanged" in await kubectl("apply", "-f", "-", stdin=json.dumps(manifest))


async def test_client_side_apply_merges_a_jobs_containers(kubectl: Client, store: Store) -> None:
    await kubectl("apply", "-f", "-", stdin=JOB)
    changed = JOB.replace("spec:\n  template", "spec:\n  activeDeadlineSeconds: 5\n  template")
    assert "configured" in await kubectl("apply", "-f", "-", stdin=changed)
    assert store.get(JOBS, "default", "j")["spec"]["activeDeadlineSeconds"] == 5


async def test_apply_of_a_custom_resource(with_widgets: Client, store: Store) -> None:
    kubectl = with_widgets
    assert "created" in await kubectl("apply", "-f", "-", stdin=WIDGET)
    assert "unchanged" in await kubectl("apply", "-f", "-", stdin=WIDGET)
    changed = WIDGET.replace("size: 1", "size: 2")
    assert "configured" in await kubectl("apply", "-f", "-", stdin=changed)
    assert store.get(WIDGET_KEY, "default", "w")["metadata"]["generation"] == 2


async def test_apply_refuses_unknown_fields(with_widgets: Client) -> None:
    with pytest.raises(ClientError, match=r'unknown field "spec\.bogus"'):
        await with_widgets("apply", "-f", "-", stdin=WIDGET.replace("size: 1", "size: 1, bogus: 1"))


async def test_apply_shows_what_the_schema_refuses(with_widgets: Client) -> None:
    with pytest.raises(ClientError, match=r"spec\.size: Invalid value: 0"):
        await with_widgets("apply", "-f", "-", stdin=WIDGET.replace("size: 1", "size: 0"))
    with pytest.raises(ClientError, match="size must not exceed limit"):
        await with_widgets("apply", "-f", "-", stdin=WIDGET.replace("size: 1", "size: 2, limit: 1"))


async def test_server_side_apply_conflicts_and_forces(with_widgets: Client) -> None:
    kubectl = with_widgets
    apply = ("apply", "--server-side", "-f", "-")
    assert "serverside-applied" in await kubectl(*apply, stdin=WIDGET)
    changed = WIDGET.replace("size: 1", "size: 2")
    other = (*apply, "--field-manager=other")
    with pytest.raises(ClientError, match=r'conflict with "kubectl": \.spec\.size'):
        await kubectl(*other, stdin=changed)
    await kubectl(*other, "--force-conflicts", stdin=changed)
    size = await kubectl("get", "widget", "w", "-o", "jsonpath={.spec.size}")
    assert size == "2"


async def test_server_side_apply_takes_over_from_client_side(with_widgets: Client) -> None:
    kubectl = with_widgets
    await kubectl("apply", "-f", "-", stdin=WIDGET)
    changed = WIDGET.replace("size: 1", "size: 2")
    await kubectl("apply", "--server-side", "-f", "-", stdin=changed)
    widget = await kubectl.json("get", "widget", "w", "--show-managed-fields")
    entries = {(e["manager"], e["operation"]) for e in widget["metadata"]["managedFields"]}
    assert ("kubectl", "Apply") in entries
    assert ("kubectl-client-side-apply", "Update") not in entries


async def test_get_prints_the_columns_of_a_crd(with_widgets: Client) -> None:
    kubectl = with_widgets
    await kubectl("apply", "-f", "-", stdin=WIDGET)
    patch = '{"status":{"phase":"Running"}}'
    await kubectl("patch", "wd", "w", "--subresource=status", "--type=merge", "-p", patch)
    heading, row = (await kubectl("get", "wd")).splitlines()
    assert heading.split() == ["NAME", "PHASE", "AGE"]
    assert row.split()[:2] == ["w", "Running"]
    wide = (await kubectl("get", "wd", "-o", "wide")).splitlines()
    assert wide[0].split() == ["NAME", "PHASE", "SIZE", "AGE"]
    assert wide[1].split()[2] == "1"


async def test_get_prints_jobs_and_pods(kubectl: Client, store: Store) -> None:
    await kubectl("apply", "-f", "-", stdin=JOB)
    assert (await kubectl("get", "jobs")).splitlines()[0].split() == [
        "NAME",
        "STATUS",
        "COMPLETIONS",
        "DURATION",
        "AGE",
    ]
    make_pod(store)
    heading, row = (await kubectl("get", "pods")).splitlines()
    assert heading.split() == ["NAME", "READY", "STATUS", "RESTARTS", "AGE"]
    assert row.split()[:4] == ["p", "0/1", "Pending", "0"]


def make_pod(store: Store) -> None:
    spec = {"containers": [{"name": "main", "image": "none"}]}
    store.create(PODS, "default", {"metadata": {"name": "p"}, "spec": spec})


async def test_get_watches(with_widgets: Client, store: Store) -> None:
    kubectl = with_widgets
    await kubectl("apply", "-f", "-", stdin=WIDGET)
    async with kubectl.running("get", "widgets", "-w") as process, asyncio.timeout(60):
        assert process.stdout is not None
        assert (await process.stdout.readline()).split()[0] == b"NAME"
        assert (await process.stdout.readline()).split()[0] == b"w"
        status = {"status": {"phase": "Running"}}
        store.merge_patch(WIDGET_KEY, "default", "w", status, subresource="status")
        assert (await process.stdout.readline()).split()[1] == b"Running"


async def test_wait_for_a_condition_a_field_and_deletion(kubectl: Client, store: Store) -> None:
    await kubectl("apply", "-f", "-", stdin=JOB)

    async def wait(wanted: str) -> str:
        return await kubectl("wait", "--timeout=60s", "job/j", f"--for={wanted}")

    async with asyncio.TaskGroup() as tasks:
        complete = tasks.create_task(wait("condition=Complete"))
        counted = tasks.create_task(wait("jsonpath={.status.succeeded}=1"))
        deleted = tasks.create_task(wait("delete"))
        condition = {"type": "Complete", "status": "True"}
        status = {"status": {"succeeded": 1, "conditions": [condition]}}
        store.merge_patch(JOBS, "default", "j", status, subresource="status")
        assert "condition met" in await complete
        assert "condition met" in await counted
        store.delete(JOBS, "default", "j")
        assert "condition met" in await deleted


async def test_describe_shows_events(with_widgets: Client, store: Store) -> None:
    kubectl = with_widgets
    await kubectl("apply", "-f", "-", stdin=WIDGET)
    uid = store.get(WIDGET_KEY, "default", "w")["metadata"]["uid"]
    about = {"kind": "Widget", "namespace": "default", "name": "w", "uid": uid}
    event = {
        "metadata": {"name": "e"},
        "involvedObject": about,
        "type": "Normal",
        "reason": "Planned",
        "message": "3 steps",
    }
    store.create(EVENTS, "default", event)
    described = await kubectl("describe", "widget", "w")
    assert "Size:" in described
    assert "Planned" in described
    assert "3 steps" in described


async def test_explain_teaches_the_schema(with_widgets: Client) -> None:
    explained = await with_widgets("explain", "wd.spec.stages")
    assert "FIELD: stages <[]Object>" in explained
    assert "weight\t<integer>" in explained
    assert "A thing to test with." in await with_widgets("explain", "wd")
    assert "<integer>" in await with_widgets("explain", "job.spec.backoffLimit")


async def test_an_edit_of_an_old_version_conflicts(kubectl: Client) -> None:
    await kubectl("create", "configmap", "a", "--from-literal=key=1")
    old = await kubectl("get", "configmap", "a", "-o", "yaml")
    await kubectl("patch", "configmap", "a", "--type=merge", "-p", '{"data":{"key":"2"}}')
    with pytest.raises(ClientError, match="the object has been modified"):
        await kubectl("replace", "-f", "-", stdin=old)


async def test_edit(kubectl: Client, store: Store) -> None:
    await kubectl("create", "configmap", "a", "--from-literal=key=before")
    editor = kubectl.kubeconfig.parent / "editor"
    editor.write_text('#!/bin/sh\nsed -i s/before/after/ "$1"\n')
    editor.chmod(0o755)
    assert "edited" in await kubectl("edit", "configmap", "a", EDITOR=str(editor))
    assert store.get(CONFIG_MAPS, "default", "a")["data"] == {"key": "after"}


async def test_label_and_annotate(kubectl: Client, store: Store) -> None:
    await kubectl("create", "configmap", "a")
    await kubectl("label", "configmap", "a", "color=red")
    await kubectl("annotate", "configmap", "a", "note=hello")
    metadata = store.get(CONFIG_MAPS, "default", "a")["metadata"]
    assert metadata["labels"] == {"color": "red"}
    assert metadata["annotations"] == {"note": "hello"}
    await kubectl("label", "configmap", "a", "color-")
    assert "labels" not in store.get(CONFIG_MAPS, "default", "a")["metadata"]


async def test_create_secret_and_namespace(kubectl: Client) -> None:
    await kubectl("create", "namespace", "team")
    await kubectl(
        "create", "secret", "generic", "hub", "--from-literal=token=made-up", "-n", "team"
    )
    shown = await kubectl("get", "secret", "hub", "-n", "team", "-o", "jsonpath={.data.token}")
    assert shown == "bWFkZS11cA=="
    await kubectl("delete", "namespace", "team", "--timeout=60s")


async def test_delete_waits_until_it_is_gone(with_widgets: Client, store: Store) -> None:
    await with_widgets("apply", "-f", "-", stdin=WIDGET)
    assert "deleted" in await with_widgets("delete", "widget", "w", "--timeout=60s")
    assert store.list(WIDGET_KEY) == []


async def test_logs(kubectl: Client, store: Store) -> None:
    make_pod(store)
    assert await kubectl("logs", "p") == "one\ntwo\nthree\n"
    assert await kubectl("logs", "p", "--tail=1", "-f") == "three\nfollowed\n"
    with pytest.raises(ClientError, match="container other is not valid for pod p"):
        await kubectl("logs", "p", "-c", "other")


async def test_api_resources_list_short_names(with_widgets: Client) -> None:
    rows = (await with_widgets("api-resources")).splitlines()
    assert any(row.split()[:2] == ["widgets", "wd"] for row in rows)
    assert any(row.split()[:2] == ["jobs", "batch/v1"] for row in rows)


async def test_all_is_a_category(kubectl: Client) -> None:
    await kubectl("apply", "-f", "-", stdin=JOB)
    assert "job.batch/j" in await kubectl("get", "all")


async def test_server_dry_run_and_diff(with_widgets: Client, store: Store) -> None:
    await with_widgets("apply", "-f", "-", "--dry-run=server", stdin=WIDGET)
    assert store.list(WIDGET_KEY) == []


async def test_without_the_token_nothing_is_answered(kubectl: Client, tmp_path: Path) -> None:
    config = json.loads(kubectl.kubeconfig.read_text())
    url, _, _token = config["clusters"][0]["cluster"]["server"].rpartition("/")
    config["clusters"][0]["cluster"]["server"] = url
    stranger = tmp_path / "stranger"
    stranger.write_text(json.dumps(config))
    with pytest.raises(ClientError, match=r"must be logged in|Unauthorized"):
        await Client(kubectl.program, stranger)("get", "pods")
