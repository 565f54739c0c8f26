"""The devcluster's API over HTTP, on loopback, for whoever holds a token of it.

Anyone who may create a pod here runs processes as this user, so every request must prove that it
can read the kubeconfig (mode 0600), which may do everything, or that of a pod, which may do what
its ServiceAccount's roles grant. A token is accepted as a bearer token and as the first
segment of the path: client-go (kubectl, Helm) sends no credentials over plain HTTP, but keeps the
path of a kubeconfig's server URL. TLS would guard nothing more on loopback.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import os
import re
import secrets
from pathlib import Path

from aiohttp import web

from latticeforge_operator.devcluster.authorization import Account
from latticeforge_operator.devcluster.endpoints import Endpoints, LogReader
from latticeforge_operator.devcluster.errors import ApiError
from latticeforge_operator.devcluster.store import Store

_MAX_BODY_BYTES = 3 * 1024 * 1024
_SHUTDOWN_SECONDS = 0.5
_HEALTH = frozenset({"healthz", "livez", "readyz"})
_ACCOUNT = re.compile(r"system:serviceaccount:([^:]+):([^:]+)")
_log = logging.getLogger(__name__)


class Server:
    """A running API server.

    Attributes:
        url: base URL, without credentials.
        token: what a request must carry to be let do everything.
    """

    def __init__(self, endpoints: Endpoints) -> None:
        self.url = ""
        self.token = secrets.token_urlsafe(32)
        self._endpoints = endpoints
        self._accounts: dict[str, Account] = {}
        self._streams: set[asyncio.Task[object]] = set()
        app = web.Application(client_max_size=_MAX_BODY_BYTES)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=_SHUTDOWN_SECONDS
        )

    def account_token(self, account: Account) -> str:
        """A token for requests of a ServiceAccount."""
        token = secrets.token_urlsafe(32)
        self._accounts[token] = account
        return token

    async def _listen(self, host: str, port: int) -> None:
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port).start()
        address = self._runner.addresses[0]
        shown = f"[{address[0]}]" if ":" in address[0] else address[0]
        self.url = f"http://{shown}:{address[1]}"

    async def aclose(self) -> None:
        """Ends running requests, watches included, and frees the port."""
        for task in tuple(self._streams):
            task.cancel()
        await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        task = asyncio.current_task()
        if task is not None:
            self._streams.add(task)
            task.add_done_callback(self._streams.discard)
        try:
            path, account = self._authenticated(request)
            if path and path[0] in _HEALTH:
                return web.Response(text="ok")
            return await self._endpoints.answer(request, path, account)
        except ApiError as error:
            return web.json_response(error.status(), status=error.code)
        except web.HTTPRequestEntityTooLarge as error:
            refusal = ApiError(413, f"Request entity too large: limit is {_MAX_BODY_BYTES}")
            return web.json_response(refusal.status(), status=error.status)
        except Exception as error:  # noqa: BLE001  # the edge: clients get a Status, we a traceback
            _log.exception("%s %s failed", request.method, request.path)
            failure = ApiError(500, f"Internal error occurred: {error}")
            return web.json_response(failure.status(), status=500)

    def _authenticated(self, request: web.Request) -> tuple[list[str], Account | None]:
        """Returns the path's segments without the token, and whose that is; None: its owner's.

        Raises:
            ApiError: 401, there is no token; 403, it may not act for whom the request names.
        """
        path = [segment for segment in request.path.split("/") if segment]
        if path and self._is_token(path[0]):
            return path[1:], _acting(request, self._accounts.get(path[0]))
        scheme, _, credential = request.headers.get("Authorization", "").partition(" ")
        if scheme == "Bearer" and self._is_token(credential):
            return path, _acting(request, self._accounts.get(credential))
        raise ApiError(401, "Unauthorized: use the kubeconfig that this server has written")

    def _is_token(self, text: str) -> bool:
        # No stranger is on the loopback who could time a look-up of the pods' own.
        return secrets.compare_digest(text.encode(), self.token.encode()) or text in self._accounts


def _acting(request: web.Request, account: Account | None) -> Account | None:
    """Who a request is to be judged as: its owner, or whom he impersonates (`kubectl --as`)."""
    user = request.headers.get("Impersonate-User")
    if user is None:
        return account
    named = _ACCOUNT.fullmatch(user)
    if account is not None or named is None:
        raise ApiError(
            403,
            f'cannot impersonate "{user}": here only the holder of the kubeconfig may, and only '
            "ServiceAccounts: system:serviceaccount:NAMESPACE:NAME",
        )
    return Account(*named.groups())


async def serve(
    store: Store, *, host: str = "127.0.0.1", port: int = 0, log_reader: LogReader | None = None
) -> Server:
    """Serves a store.

    Args:
        store: the objects.
        host: a loopback address.
        port: 0 takes a free one.
        log_reader: where `pods/log` comes from; without one, logs are refused.

    Raises:
        ValueError: `host` is not a loopback address.
        OSError: the port is taken.
    """
    if host != "localhost" and not _is_loopback(host):
        raise ValueError(
            f"the devcluster runs pods as your own processes and listens on loopback only: "
            f"{host} is no loopback address, use 127.0.0.1"
        )
    server = Server(Endpoints(store, log_reader))
    await server._listen(host, port)  # noqa: SLF001  # one module: serve() is its constructor
    return server


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def write_kubeconfig(
    path: Path, server: Server, namespace: str = "default", token: str | None = None
) -> None:
    """Writes a kubeconfig that only this user can read.

    Args:
        path: where to.
        server: what it leads to.
        namespace: its default namespace.
        token: that of a ServiceAccount; None: that which may do everything.
    """
    name, token = "latticeforge-devcluster", token or server.token
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": name, "cluster": {"server": f"{server.url}/{token}"}}],
        "users": [{"name": name, "user": {"token": token}}],
        "contexts": [
            {"name": name, "context": {"cluster": name, "user": name, "namespace": namespace}}
        ],
        "current-context": name,
    }
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(config, file, indent=2)
