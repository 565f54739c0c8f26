"""What the command line asks an API server, on the official asynchronous client."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from kubernetes import aio
from kubernetes.aio.client.exceptions import ApiException
from kubernetes.aio.config.config_exception import ConfigException

from latticeforge_operator.cli.errors import CommandError

MANAGER = "latticeforge-cli"
"""Field manager: what a file sets is ours, and goes when the file no longer says it."""

_TIMEOUT_SECONDS = 30
_APPLY = "application/apply-patch+yaml"


class Refused(CommandError):  # noqa: N818  (what the server did)
    """The API server does not accept a request; the message is its own sentence."""


class Forbidden(Refused):
    """The API server does not let this user ask for that."""


class Unreachable(CommandError):  # noqa: N818  (what the server is)
    """The API server does not answer."""


class Access:
    """Calls on one cluster by URL path; absent objects are None.

    Args:
        api: The client with its credentials.
        namespace: The kubeconfig's namespace.
    """

    def __init__(self, api: aio.client.ApiClient, namespace: str = "default") -> None:
        self._api, self.namespace = api, namespace

    @classmethod
    async def connect(cls, kubeconfig: Path | None = None) -> Access:
        """Access through a kubeconfig file; None: `KUBECONFIG` or its default place.

        Raises:
            CommandError: There is no usable kubeconfig.
        """
        try:
            # The library has read the variable when it was imported, which may be long ago.
            file = str(kubeconfig) if kubeconfig else os.environ.get("KUBECONFIG")
            _, context = aio.config.list_kube_config_contexts(file)
            api = await aio.config.new_client_from_config(config_file=file)
            return cls(api, context["context"].get("namespace") or "default")
        except ConfigException as error:
            raise CommandError(f"no cluster to ask: {error}; set KUBECONFIG") from error

    async def aclose(self) -> None:
        """Close the connections."""
        await self._api.close()

    async def get(self, path: str, **query: str) -> dict[str, Any] | None:
        """The object or list at a path."""
        content = await self._call("GET", path, query=query)
        return None if content is None else dict(json.loads(content))

    async def text(self, path: str, **query: str) -> str:
        """A plain text, such as a pod's log; empty when there is none."""
        content = await self._call("GET", path, query=query, accept="*/*")
        return (content or b"").decode(errors="replace")

    async def apply(self, path: str, manifest: dict[str, Any]) -> dict[str, Any]:
        """Server-side apply; what another manager holds is taken over."""
        query = {"fieldManager": MANAGER, "force": "true"}
        content = await self._call("PATCH", path, query=query, body=manifest, content_type=_APPLY)
        if content is None:
            raise Refused(f"the cluster has no {path}: are the CRDs installed?")
        return dict(json.loads(content))

    async def delete(self, path: str, *, grace_seconds: int) -> None:
        """Delete an object; its processes have `grace_seconds` to end by themselves."""
        await self._call("DELETE", path, body={"gracePeriodSeconds": grace_seconds})

    async def _call(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, str] | None = None,
        body: dict[str, Any] | None = None,
        content_type: str = "application/json",
        accept: str = "application/json",
    ) -> bytes | None:
        try:
            request = await self._api.param_serialize(
                method=method,
                resource_path=path,
                query_params=list((query or {}).items()),
                header_params={"Content-Type": content_type, "Accept": accept},
                body=body,
                auth_settings=["BearerToken"],
            )
            response = await self._api.call_api(*request, _request_timeout=_TIMEOUT_SECONDS)
            content: bytes = await response.read()
        except ApiException as error:
            if error.status == 404:
                return None
            raise _refusal(error.status, error.body) from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            # Not its path, which is what admits to a devcluster.
            place = urlsplit(self._api.configuration.host).netloc
            raise Unreachable(f"the cluster at {place} does not answer: {error}") from error
        if response.status == 404:
            return None
        if response.status >= 400:
            raise _refusal(response.status, content)
        return content


def _refusal(status: int, body: str | bytes | None) -> Refused:
    return (Forbidden if status == 403 else Refused)(_sentence(status, body))


def _sentence(status: int, body: str | bytes | None) -> str:
    try:
        return str(json.loads(body or "")["message"])
    except (ValueError, KeyError, TypeError):
        return f"the API server answered with status {status}"
