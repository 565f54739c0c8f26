"""Answers that go on: watches and logs."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

from aiohttp import web

from latticeforge_operator.devcluster import requests
from latticeforge_operator.devcluster.collection import Query
from latticeforge_operator.devcluster.errors import ApiError
from latticeforge_operator.devcluster.representation import Representation
from latticeforge_operator.devcluster.resources import JsonObject, Resource
from latticeforge_operator.devcluster.store import Store

_BOOKMARK_SECONDS = 30.0
_LAST_BOOKMARK_SECONDS = 2.0
_DEFAULT_WATCH_SECONDS = 3600


async def watch(
    store: Store, request: web.Request, resource: Resource, query: Query
) -> web.StreamResponse:
    """Streams the changes of a query as JSON lines until the client's timeout."""
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    stream = _Watch(store, request, resource, query, response)
    await response.prepare(request)
    timeout = requests.whole_number(request, "timeoutSeconds") or _DEFAULT_WATCH_SECONDS
    # A client that has what it wants just goes: the normal end of a watch.
    with contextlib.suppress(ConnectionError, TimeoutError):
        async with asyncio.timeout(timeout):
            await stream.run(asyncio.get_running_loop().time() + timeout)
    return response


class _Watch:
    def __init__(
        self,
        store: Store,
        request: web.Request,
        resource: Resource,
        query: Query,
        response: web.StreamResponse,
    ) -> None:
        self._store = store
        self._resource = resource
        self._query = query
        self._response = response
        self._representation = Representation(request, resource, store.now)
        self._bookmarks = requests.flag(request, "allowWatchBookmarks")
        self._since = _start(request)
        self._initial = _wants_initial(request, self._since)
        self._mark_initial = requests.flag(request, "sendInitialEvents")

    async def run(self, deadline: float) -> None:
        """Sends what exists if asked to, then what happens."""
        since = self._since or self._store.revision
        if self._initial:
            since = self._store.revision
            await self._send_existing(since)
        try:
            await self._follow(since, deadline)
        except ApiError as error:
            await self._response.write(_line("ERROR", json.dumps(error.status()).encode()))

    async def _send_existing(self, revision: int) -> None:
        found = self._store.select(self._resource.key, self._query)
        lines = [_line("ADDED", self._representation.encode(stored)) for stored in found]
        if self._mark_initial:
            lines.append(self._bookmark(revision, {"k8s.io/initial-events-end": "true"}))
        if lines:
            await self._response.write(b"".join(lines))

    async def _follow(self, since: int, deadline: float) -> None:
        clock = asyncio.get_running_loop().time
        follower = self._store.follow(self._resource.key, since)
        bookmark_at = min(clock() + _BOOKMARK_SECONDS, deadline - _LAST_BOOKMARK_SECONDS)
        while not follower.ended:
            batch = await follower.next(max(0.0, bookmark_at - clock()))
            seen = [event for change in batch if (event := change.seen_by(self._query))]
            lines = [_line(kind, self._representation.encode(stored)) for kind, stored in seen]
            if clock() >= bookmark_at:
                if self._bookmarks:
                    lines.append(self._bookmark(self._store.revision, {}))
                last = clock() >= deadline - _LAST_BOOKMARK_SECONDS
                bookmark_at = deadline + 1 if last else clock() + _BOOKMARK_SECONDS
            if lines:
                await self._response.write(b"".join(lines))

    def _bookmark(self, revision: int, annotations: dict[str, str]) -> bytes:
        metadata: JsonObject = {"resourceVersion": str(revision)}
        if annotations:
            metadata["annotations"] = annotations
        obj = {
            "kind": self._resource.kind,
            "apiVersion": self._resource.key.group_version,
            "metadata": metadata,
        }
        return _line("BOOKMARK", json.dumps(obj).encode())


def _line(kind: str, encoded: bytes) -> bytes:
    return b'{"type":"' + kind.encode() + b'","object":' + encoded + b"}\n"


def _start(request: web.Request) -> int | None:
    """The revision to continue from; None for "most recent" and "any"."""
    return requests.whole_number(request, "resourceVersion") or None


def _wants_initial(request: web.Request, since: int | None) -> bool:
    wanted = request.query.get("sendInitialEvents")
    if wanted is None:
        return since is None
    if request.query.get("resourceVersionMatch") != "NotOlderThan":
        raise ApiError(
            422,
            'ListOptions.meta.k8s.io "" is invalid: resourceVersionMatch: Forbidden: '
            "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        )
    return requests.flag(request, "sendInitialEvents")


def log_container(pod: JsonObject, wanted: str | None) -> str | None:
    """Chooses the container whose log to read; raises a 400 ApiError when it is not clear."""
    name = pod["metadata"]["name"]
    spec = pod["spec"]
    names = [c["name"] for field in ("containers", "initContainers") for c in spec.get(field) or []]
    if wanted is None and len(spec["containers"]) > 1:
        choices = " ".join(names)
        message = f"a container name must be specified for pod {name}, choose one of: [{choices}]"
        raise ApiError(400, message)
    if wanted is not None and wanted not in names:
        raise ApiError(400, f"container {wanted} is not valid for pod {name}")
    return wanted or names[0]


async def log(request: web.Request, chunks: AsyncIterator[bytes]) -> web.StreamResponse:
    """Streams a log; what goes wrong before its first chunk is still a proper error."""
    first = await anext(chunks, b"")
    response = web.StreamResponse(headers={"Content-Type": "text/plain"})
    await response.prepare(request)
    with contextlib.suppress(ConnectionError):
        await response.write(first)
        async for chunk in chunks:
            await response.write(chunk)
        await response.write_eof()
    return response
