"""The operator's calls: what comes back, and which errors are worth another try."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from kubernetes import aio

from latticeforge_operator.cluster import client as module
from latticeforge_operator.cluster.client import (
    CONFIG_MAPS,
    JOBS,
    POOLS,
    Client,
    Conflict,
    Refused,
    Unavailable,
)
from latticeforge_operator.devcluster.server import serve, write_kubeconfig
from latticeforge_operator.devcluster.store import Store

KUBECONFIG = """{{"apiVersion": "v1", "kind": "Config", "current-context": "x",
"clusters": [{{"name": "x", "cluster": {{"server": "{url}"}}}}],
"users": [{{"name": "x", "user": {{"token": "t"}}}}],
"contexts": [{{"name": "x", "context": {{"cluster": "x", "user": "x"}}}}]}}"""


async def connect(kubeconfig: Path) -> Client:
    """A client for a kubeconfig; `Client.connect` reads the environment of the whole process."""
    configuration = aio.client.Configuration()
    await aio.config.load_kube_config(
        config_file=str(kubeconfig), client_configuration=configuration
    )
    return Client(aio.client.ApiClient(configuration))


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Client]:
    """A client of an empty devcluster."""
    server = await serve(Store())
    write_kubeconfig(tmp_path / "kubeconfig", server)
    made = await connect(tmp_path / "kubeconfig")
    yield made
    await made.aclose()
    await server.aclose()


@asynccontextmanager
async def answering(
    kubeconfig: Path, answer: Callable[[], Awaitable[web.StreamResponse]]
) -> AsyncIterator[Client]:
    """A client of a server that always gives the same answer."""

    async def handle(_: web.Request) -> web.StreamResponse:
        return await answer()

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    client = await connect(written(kubeconfig, f"http://{host}:{port}"))
    try:
        yield client
    finally:
        await client.aclose()
        await runner.cleanup()


def written(path: Path, url: str) -> Path:
    path.write_text(KUBECONFIG.format(url=url))
    return path


def config_map(name: str = "one", **data: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": "default", "labels": {"app": name}},
        "data": data,
    }


async def test_apply_owns_its_fields_and_leaves_others(client: Client) -> None:
    await client.apply(config_map(a="1"))
    await client.merge_patch(CONFIG_MAPS, "default", "one", {"data": {"b": "2"}})
    answer = await client.apply(config_map(a="3"))
    assert answer["data"] == {"a": "3", "b": "2"}


async def test_lists_select(client: Client) -> None:
    for name in ("one", "two"):
        await client.apply(config_map(name))
    listed = await client.list_all(CONFIG_MAPS, None, "app")
    assert listed.version > 0
    everywhere = listed.items
    assert [obj["metadata"]["name"] for obj in everywhere] == ["one", "two"]
    (found,) = (await client.list_all(CONFIG_MAPS, "default", "app=two")).items
    assert found["metadata"]["name"] == "two"
    assert (await client.list_all(CONFIG_MAPS, "kube-system", "app")).items == []


async def test_what_is_absent_is_none_or_nothing(client: Client) -> None:
    assert await client.merge_patch(JOBS, "default", "none", {"spec": {}}) is None
    await client.delete(JOBS, "default", "none")
    assert (await client.list_all(POOLS, None)).items == []  # no such kind is served


async def test_a_status_for_what_is_gone_is_tried_again(client: Client) -> None:
    with pytest.raises(Unavailable, match="ConfigMap one is gone"):
        await client.apply(config_map(), subresource="status")


async def test_the_servers_own_sentence_is_kept(client: Client) -> None:
    wrong = config_map() | {"data": {"a": 1}}
    with pytest.raises(Refused, match=r"PATCH /api/v1/namespaces/default/configmaps/one: 4\d\d .+"):
        await client.apply(wrong)


async def test_creating_twice_is_a_conflict_that_may_pass(client: Client) -> None:
    await client.create(CONFIG_MAPS, "default", config_map())
    with pytest.raises(Conflict, match="409"):
        await client.create(CONFIG_MAPS, "default", config_map())


@pytest.mark.parametrize("status", [400, 403, 405, 415, 422])
async def test_refusals_are_for_good(tmp_path: Path, status: int) -> None:
    async def answer() -> web.StreamResponse:
        return web.json_response({"message": "never"}, status=status)

    async with answering(tmp_path / "kubeconfig", answer) as client:
        with pytest.raises(Refused, match=f"{status} never"):
            await client.apply(config_map())


@pytest.mark.parametrize("status", [401, 409, 410, 429, 500, 502, 503, 504])
async def test_the_rest_may_pass(tmp_path: Path, status: int) -> None:
    async def answer() -> web.StreamResponse:
        return web.Response(text="<html>busy</html>", status=status)

    async with answering(tmp_path / "kubeconfig", answer) as client:
        with pytest.raises(Unavailable, match=f"{status} <html>busy"):
            await client.delete(JOBS, "default", "x")


async def test_a_server_may_say_when_to_come_back(tmp_path: Path) -> None:
    async def answer() -> web.StreamResponse:
        return web.json_response({"message": "busy"}, status=429, headers={"Retry-After": "7"})

    async with answering(tmp_path / "kubeconfig", answer) as client:
        with pytest.raises(Unavailable, match="busy") as caught:
            await client.delete(JOBS, "default", "x")
    assert caught.value.after == 7


async def test_an_answer_that_is_no_json_may_pass(tmp_path: Path) -> None:
    async def answer() -> web.StreamResponse:
        return web.Response(text="<html>a proxy</html>")

    async with answering(tmp_path / "kubeconfig", answer) as client:
        with pytest.raises(Unavailable, match="no JSON"):
            await client.list_all(JOBS, "default")


async def test_a_server_that_never_answers_may_answer_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TIMEOUT_SECONDS", 0.1)

    async def answer() -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    async with answering(tmp_path / "kubeconfig", answer) as client:
        with pytest.raises(Unavailable, match="Timeout"):
            await client.list_all(JOBS, "default")


async def test_a_server_that_is_away_may_come_back(tmp_path: Path, unused_tcp_port: int) -> None:
    url = f"http://127.0.0.1:{unused_tcp_port}"
    client = await connect(written(tmp_path / "kubeconfig", url))
    with pytest.raises(Unavailable, match="ClientConnectorError"):
        await client.create(JOBS, "default", {})
    await client.aclose()


@pytest.mark.parametrize(
    ("resource", "arguments", "path"),
    [
        (JOBS, ("ns",), "/apis/batch/v1/namespaces/ns/jobs"),
        (JOBS, (None,), "/apis/batch/v1/jobs"),
        (CONFIG_MAPS, ("ns", "x"), "/api/v1/namespaces/ns/configmaps/x"),
        (POOLS, ("ns", "x"), "/apis/latticeforge.dev/v1alpha1/gpupools/x"),
        (JOBS, ("ns", "x", "status"), "/apis/batch/v1/namespaces/ns/jobs/x/status"),
    ],
)
def test_paths(resource: module.Resource, arguments: tuple[str | None, ...], path: str) -> None:
    assert resource.path(*arguments) == path  # type: ignore[arg-type]  # only the first may be None
