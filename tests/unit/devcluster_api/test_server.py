"""The server itself: who may talk to it, where it listens, and how it fails."""

from __future__ import annotations

import asyncio
import io
import json
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from latticeforge_operator.devcluster import server as server_module
from latticeforge_operator.devcluster.authorization import Account
from latticeforge_operator.devcluster.server import Server, serve, write_kubeconfig
from latticeforge_operator.devcluster.store import ResourceKey, Store

PODS = ResourceKey("v1", "pods")


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    store = Store()
    spec = {"containers": [{"name": name, "image": "none"} for name in ("main", "side")]}
    store.create(PODS, "default", {"metadata": {"name": "p"}, "spec": spec})
    running = await serve(store)
    yield running
    await running.aclose()


@pytest.fixture
async def session(server: Server) -> AsyncIterator[aiohttp.ClientSession]:
    headers = {"Authorization": f"Bearer {server.token}"}
    async with aiohttp.ClientSession(f"{server.url}/", headers=headers) as session:
        yield session


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.7", "::", "example.com"])  # noqa: S104  # what is refused
async def test_only_loopback_is_served(host: str) -> None:
    with pytest.raises(ValueError, match="loopback only"):
        await serve(Store(), host=host)


async def test_ipv6_loopback_is_served() -> None:
    server = await serve(Store(), host="::1")
    assert server.url.startswith("http://[::1]:")
    await server.aclose()


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "x"}])
async def test_strangers_are_refused(server: Server, headers: dict[str, str]) -> None:
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.get(f"{server.url}/api/v1/pods") as response,
    ):
        assert response.status == 401
        assert (await response.json())["reason"] == "Unauthorized"


async def test_the_token_may_be_in_the_path(server: Server) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{server.url}/{server.token}/api/v1/pods") as response,
    ):
        assert response.status == 200


@pytest.mark.parametrize(
    ("own", "user", "status"),
    [
        (True, "system:serviceaccount:team:pod", 403),
        (True, "somebody", 403),
        (False, "system:serviceaccount:team:pod", 403),
        (False, None, 403),
        (True, None, 200),
    ],
)
async def test_an_account_may_do_what_it_is_granted_and_impersonates_nobody(
    server: Server, own: bool, user: str | None, status: int
) -> None:
    token = server.token if own else server.account_token(Account("team", "operator"))
    headers = {"Authorization": f"Bearer {token}"} | ({"Impersonate-User": user} if user else {})
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.get(f"{server.url}/api/v1/pods") as response,
    ):
        assert response.status == status
        message = (await response.json()).get("message", "")
    impersonates = user == "somebody" or (not own and user is not None)
    assert ("cannot impersonate" in message) is impersonates


async def test_every_server_has_its_own_token(server: Server) -> None:
    other = await serve(Store())
    assert other.token != server.token
    await other.aclose()


async def test_only_the_user_can_read_the_kubeconfig(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text("an old one, readable by all")
    path.chmod(0o644)
    write_kubeconfig(path, server, "team")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert json.loads(path.read_text())["contexts"][0]["context"]["namespace"] == "team"


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "api/v1/nonesuch", 404),
        ("GET", "apis/none.such/v1", 404),
        ("GET", "elsewhere", 404),
        ("GET", "api/v1/namespaces/default/pods/p/nonesuch", 404),
        ("GET", "api/v1/namespaces/default/nodes", 404),
        ("PUT", "api/v1/pods", 404),
        ("POST", "api/v1/namespaces/default/pods/p", 405),
        ("OPTIONS", "api/v1/pods", 405),
        ("GET", "api/v1/pods?labelSelector=a+in+b", 400),
        ("GET", "api/v1/pods?limit=many", 400),
        ("GET", "api/v1/pods?continue=nonsense", 400),
        ("GET", "api/v1/namespaces/default/pods/p/log?container=main", 501),
        ("POST", "api/v1/pods?dryRun=Some", 400),
        ("POST", "api/v1/pods?fieldValidation=Some", 400),
        ("DELETE", "api/v1/namespaces/default/pods/p?propagationPolicy=Some", 400),
    ],
)
async def test_refusals_are_statuses(
    session: aiohttp.ClientSession, method: str, path: str, code: int
) -> None:
    body: dict[str, str] | None = {} if method in {"POST", "PUT"} else None
    async with session.request(method, path, json=body) as response:
        status = await response.json()
    assert (response.status, status["code"]) == (code, code)
    assert status["kind"] == "Status"
    assert status["message"]


@pytest.mark.parametrize("body", ["[]", "{", "text", "a: [", "3"])
async def test_bad_bodies_are_the_clients_fault(session: aiohttp.ClientSession, body: str) -> None:
    async with session.post("api/v1/namespaces/default/pods", data=body) as response:
        assert response.status == 400


async def test_an_object_has_a_limit(session: aiohttp.ClientSession) -> None:
    body = json.dumps({"metadata": {"name": "a"}, "data": {"key": "x" * 2**22}}).encode()
    async with session.post(
        "api/v1/namespaces/default/configmaps", data=io.BytesIO(body)
    ) as response:
        assert response.status == 413
        assert "too large" in (await response.json())["message"]


async def test_one_must_say_which_container(server: Server) -> None:
    async def read_log(
        namespace: str, pod: str, container: str | None, follow: bool, tail_lines: int | None
    ) -> AsyncIterator[bytes]:
        yield b"never read"

    store = server._endpoints._store
    other = await serve(store, log_reader=read_log)
    url = f"{other.url}/{other.token}/api/v1/namespaces/default/pods/p/log"
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        assert response.status == 400
        assert "choose one of: [main side]" in (await response.json())["message"]
    await other.aclose()


async def test_closing_does_not_wait_for_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "_SHUTDOWN_SECONDS", 60)
    server = await serve(Store())
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{server.url}/{server.token}/api/v1/namespaces?watch=true") as response,
    ):
        assert b"ADDED" in await response.content.readline()
        async with asyncio.timeout(60):
            await server.aclose()
        with pytest.raises(aiohttp.ClientError):
            await response.content.read()


async def test_health_is_told(session: aiohttp.ClientSession) -> None:
    async with session.get("readyz") as response:
        assert await response.text() == "ok"


async def test_a_bug_is_a_status_too(
    session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("made up")

    monkeypatch.setattr(Store, "query", fail)
    async with session.get("api/v1/pods") as response:
        assert response.status == 500
        assert "made up" in (await response.json())["message"]
