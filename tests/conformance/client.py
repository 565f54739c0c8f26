"""A small JSON client of the Kubernetes API, for tests that state what the server must do.

It reads a kubeconfig, so the same test runs against the devcluster and against any cluster.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from kubernetes.aio import client, config

JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"


class Refused(AssertionError):  # noqa: N818  # reads as what the server did: raises(Refused)
    """The server answered with a `metav1.Status` of failure."""

    def __init__(self, status: dict[str, Any]) -> None:
        super().__init__(status.get("message"))
        self.code: int = status["code"]
        self.reason: str = status.get("reason", "")
        self.message: str = status["message"]
        self.causes: list[dict[str, Any]] = (status.get("details") or {}).get("causes") or []


@dataclass(frozen=True)
class Api:
    """One namespace of an API server.

    `path` arguments are relative to the server; `ns(group_version, plural, name)` makes them.
    """

    session: aiohttp.ClientSession
    url: str
    namespace: str
    user: str = ""
    """Whom the requests are made for; empty: whoever the kubeconfig names."""

    def ns(self, group_version: str, plural: str, *rest: str) -> str:
        """Path of a namespaced resource in this test's namespace."""
        return self._path(group_version, "namespaces", self.namespace, plural, *rest)

    def cluster(self, group_version: str, plural: str, *rest: str) -> str:
        """Path of a cluster-scoped resource, or of a namespaced one in all namespaces."""
        return self._path(group_version, plural, *rest)

    def _path(self, group_version: str, *rest: str) -> str:
        root = "apis" if "/" in group_version else "api"
        return "/".join((root, group_version, *rest))

    async def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        content_type: str = "application/json",
        accept: str = "application/json",
        **query: Any,
    ) -> dict[str, Any]:
        """Sends a request; returns the decoded answer or raises Refused."""
        headers = {"Accept": accept, "User-Agent": "conformance/1"}
        if self.user:
            headers["Impersonate-User"] = self.user
        data = None
        if body is not None:
            headers["Content-Type"] = content_type
            data = json.dumps(body)
        url = f"{self.url}/{path}"
        params = {name: str(value) for name, value in query.items()}
        async with self.session.request(
            method, url, data=data, headers=headers, params=params
        ) as response:
            answer: dict[str, Any] = json.loads(await response.text())
            if response.status >= 400:
                raise Refused(answer)
            return answer

    async def get(self, path: str, **query: Any) -> dict[str, Any]:
        return await self.request("GET", path, **query)

    async def create(self, path: str, obj: dict[str, Any], **query: Any) -> dict[str, Any]:
        return await self.request("POST", path, obj, **query)

    async def replace(self, path: str, obj: dict[str, Any], **query: Any) -> dict[str, Any]:
        return await self.request("PUT", path, obj, **query)

    async def merge(self, path: str, patch: dict[str, Any], **query: Any) -> dict[str, Any]:
        return await self.request("PATCH", path, patch, content_type=MERGE_PATCH, **query)

    async def apply(
        self, path: str, obj: dict[str, Any], manager: str, **query: Any
    ) -> dict[str, Any]:
        return await self.request(
            "PATCH", path, obj, content_type=APPLY_PATCH, fieldManager=manager, **query
        )

    async def delete(
        self, path: str, options: dict[str, Any] | None = None, **query: Any
    ) -> dict[str, Any]:
        return await self.request("DELETE", path, options, **query)

    async def gone(self, path: str) -> bool:
        """Whether nothing is found at a path."""
        try:
            await self.get(path)
        except Refused as refused:
            return refused.code == 404
        return False

    @asynccontextmanager
    async def watch(self, path: str, **query: Any) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        """Opens a watch; yields an iterator over its events."""
        params = {"watch": "true", "timeoutSeconds": "30"}
        params |= {name: str(value) for name, value in query.items()}
        async with self.session.get(f"{self.url}/{path}", params=params) as response:
            if response.status >= 400:
                raise Refused(json.loads(await response.text()))
            yield _events(response)


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    while line := await response.content.readline():
        yield json.loads(line)


async def take(events: AsyncIterator[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Reads that many events of a watch, or fails after ten seconds."""
    async with asyncio.timeout(60):
        return [await anext(events) for _ in range(count)]


async def eventually(condition: Callable[[], Any], seconds: float = 20) -> Any:
    """Polls an async condition until it holds; returns what it returned."""
    async with asyncio.timeout(seconds):
        while not (result := await condition()):  # noqa: ASYNC110  # another process decides
            await asyncio.sleep(0.05)
        return result


@asynccontextmanager
async def connect(kubeconfig: Path) -> AsyncIterator[tuple[aiohttp.ClientSession, str]]:
    """Opens a session with a kubeconfig's credentials; yields it with the server's URL."""
    settings = client.Configuration()
    await config.load_kube_config(config_file=str(kubeconfig), client_configuration=settings)
    headers = {}
    if credential := await settings.get_api_key_with_prefix("BearerToken"):
        headers["Authorization"] = credential
    context = None
    if settings.host.startswith("https"):
        context = ssl.create_default_context(cafile=settings.ssl_ca_cert)
        if settings.cert_file:
            context.load_cert_chain(settings.cert_file, settings.key_file)
    connector = aiohttp.TCPConnector(ssl=context or True)
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(
        connector=connector, headers=headers, timeout=timeout, read_bufsize=2**22
    ) as session:
        yield session, settings.host.rstrip("/")
