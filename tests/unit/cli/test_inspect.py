"""`latticeforge status` and `watch` against an API server that has stacks and no operator."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from kubernetes import aio
from tests.unit.cli.stacks import at, obj, running, succeeded

from latticeforge_operator.api import API_VERSION
from latticeforge_operator.cli import provision
from latticeforge_operator.cli.access import Access, Unreachable
from latticeforge_operator.cli.commands import group
from latticeforge_operator.cli.follow import follow, read_stack
from latticeforge_operator.cli.local import apply_all
from latticeforge_operator.devcluster.cluster import DevCluster

RBAC = "/apis/rbac.authorization.k8s.io/v1/namespaces/default"
VIEWER = "system:serviceaccount:default:viewer"
LONG = f"waits for {'a very ' * 20}long queue"
PATH = provision.TRAININGS.format(namespace="default", name="demo")


def stack(name: str) -> dict[str, Any]:
    made = obj({}, name, storage={"claimName": "store"})
    for stage in made["spec"]["stages"]:
        stage["data"] = [{"source": "./data.jsonl"}]
    metadata = {"name": name, "namespace": "default"}
    kind = {"apiVersion": API_VERSION, "kind": "StackedTraining"}
    return {**kind, "metadata": metadata, "spec": made["spec"]}


@pytest.fixture
async def access(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Access]:
    """A cluster with the stacks `demo`, which runs, and `other`."""
    cluster = await DevCluster.start(data_dir=tmp_path / "devcluster")
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    access = await Access.connect()
    await apply_all(access, provision.crds())
    await apply_all(access, [provision.stack(stack(name)) for name in ("demo", "other")])
    status = {**running().status.to_json(), "message": LONG}
    await access.apply(f"{PATH}/status", {**stack("demo"), "status": status})
    yield access
    await access.aclose()
    await cluster.aclose()


async def invoke(*command: str) -> Result:
    return await asyncio.to_thread(CliRunner().invoke, group, list(command))


async def test_one_stack_all_of_a_namespace_and_all(access: Access) -> None:
    one = await invoke("status", "demo")
    assert one.output.startswith("demo   Running   57 %")
    assert "\x1b" not in one.output
    for command in (["status"], ["status", "-A"]):
        table = (await invoke(*command)).output.splitlines()
        assert [("demo" in line, "other" in line) for line in table[1:]] == [
            (True, False),
            (False, True),
        ]
        assert ("NAMESPACE" in table[0]) is ("-A" in command)
        assert table[1].endswith(LONG)
    none = await invoke("status", "-n", "empty")
    assert none.output == "no StackedTraining in namespace empty\n"
    assert "leave out NAME" in (await invoke("status", "demo", "-A")).output
    assert (await invoke("status", "absent")).output == (
        "Error: there is no StackedTraining absent in namespace default\n"
    )


async def test_programs_get_the_objects(access: Access) -> None:
    listed = json.loads((await invoke("status", "-o", "json")).output)
    assert (listed["apiVersion"], listed["kind"]) == ("v1", "List")
    assert [item["metadata"]["name"] for item in listed["items"]] == ["demo", "other"]
    one = yaml.safe_load((await invoke("status", "demo", "-o", "yaml")).output)
    assert one == listed["items"][0]
    assert one["kind"] == "StackedTraining"
    assert "managedFields" not in one["metadata"]
    assert one["status"]["phase"] == "Running"


async def test_whoever_may_not_read_events_still_sees_the_stack(access: Access) -> None:
    rules = [{"apiGroups": ["latticeforge.dev"], "resources": ["stackedtrainings"],
              "verbs": ["get"]}]  # fmt: skip
    subject = {"kind": "ServiceAccount", "name": "viewer", "namespace": "default"}
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "viewer"}
    about = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": "viewer"}}
    await apply_all(
        access,
        [
            (f"{RBAC}/roles/viewer", {**about, "kind": "Role", "rules": rules}),
            (
                f"{RBAC}/rolebindings/viewer",
                {**about, "kind": "RoleBinding", "subjects": [subject], "roleRef": reference},
            ),
        ],
    )
    api = await aio.config.new_client_from_config(os.environ["KUBECONFIG"])
    api.set_default_header("Impersonate-User", VIEWER)
    viewer = Access(api)
    try:
        shown = await read_stack(viewer, PATH)
    finally:
        await viewer.aclose()
    assert shown.name == "demo"
    assert shown.unread.startswith("no events: events is forbidden")


async def test_watching_ends_with_the_stack(access: Access) -> None:
    ended = await access.apply(
        f"{PATH}/status", {**stack("demo"), "status": succeeded().status.to_json()}
    )
    assert ended["status"]["phase"] == "Succeeded"
    watched = await invoke("watch", "demo")
    assert watched.exit_code == 0
    assert "demo is Succeeded: published at" in watched.output
    assert "AutoModelForCausalLM.from_pretrained" in watched.output


class Script(Access):
    """A cluster that answers as it is told."""

    def __init__(self, *answers: dict[str, Any] | Exception) -> None:
        self.answers = list(answers)

    async def get(self, path: str, **query: str) -> dict[str, Any] | None:  # noqa: ARG002  (Access's signature)
        if path.endswith("/events"):
            return None
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


async def test_a_cluster_that_is_away_is_told_without_what_admits_to_it(tmp_path: Path) -> None:
    cluster = await DevCluster.start(data_dir=tmp_path / "devcluster")
    access = await Access.connect(cluster.kubeconfig)
    await cluster.aclose()
    with pytest.raises(Unreachable, match=r"^the cluster at 127\.0\.0\.1:\d+ does not answer"):
        await access.get(PATH)
    await access.aclose()


async def test_a_cluster_that_is_away_for_a_while_is_asked_again() -> None:
    doing, done = ({**obj({"phase": phase, "startedAt": at(0)})} for phase in ("Running", "Failed"))
    for made in (doing, done):
        made["metadata"]["uid"] = "1"
    told: list[str] = []
    away = Unreachable("the cluster does not answer")
    script = Script(doing, away, away, doing, away, done)
    views = [view async for view in follow(script, PATH, 0, told.append)]
    assert [view.status.phase for view in views] == ["Running", "Running", "Failed"]
    assert told == ["the cluster does not answer; it is asked until it does"] * 2
    with pytest.raises(Unreachable):
        await anext(follow(Script(away), PATH, 0, told.append))
