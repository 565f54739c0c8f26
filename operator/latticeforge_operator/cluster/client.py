"""The few calls that the operator makes, on the official asynchronous client.

Errors are converted here, once: not found is `None`, what the API server will refuse again is
`Refused`, everything else that may pass is `Unavailable`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
from kubernetes import aio
from kubernetes.aio.client.exceptions import ApiException

from latticeforge_operator.cluster.names import GROUP, MANAGER, VERSION

TIMEOUT_SECONDS = 30

_PERMANENT = frozenset({400, 403, 404, 405, 415, 422})


class ClusterError(Exception):
    """A call failed."""


class Refused(ClusterError):  # noqa: N818  (what the server did)
    """The API server refuses this request and will refuse it again."""


class Unavailable(ClusterError):  # noqa: N818  (what the server is)
    """The API server cannot be reached, is overloaded, or has moved on: try again.

    Attributes:
        after: Seconds for which the server asks to be left alone.
    """

    def __init__(self, message: str, after: float = 0.0) -> None:
        super().__init__(message)
        self.after = after


class Conflict(Unavailable):
    """The object has changed since it was read: read it again, and decide again."""


@dataclass(frozen=True)
class Listing:
    """The objects of a list, and the moment that they were listed at."""

    items: list[dict[str, Any]]
    version: int = 0
    """The list's resourceVersion; 0 where nothing is served."""


@dataclass(frozen=True)
class Resource:
    """Where a kind lives in the API."""

    group_version: str
    plural: str
    namespaced: bool = True

    def path(self, namespace: str | None, name: str = "", subresource: str = "") -> str:
        """The URL path of the collection, an object, or its subresource."""
        root = "/api/" if "/" not in self.group_version else "/apis/"
        parts = [root + self.group_version]
        if self.namespaced and namespace is not None:
            parts += ["namespaces", namespace]
        parts += [part for part in (self.plural, name, subresource) if part]
        return "/".join(parts)


TRAININGS = Resource(f"{GROUP}/{VERSION}", "stackedtrainings")
POOLS = Resource(f"{GROUP}/{VERSION}", "gpupools", namespaced=False)
JOBS = Resource("batch/v1", "jobs")
PODS = Resource("v1", "pods")
CONFIG_MAPS = Resource("v1", "configmaps")
EVENTS = Resource("v1", "events")
CLAIMS = Resource("v1", "persistentvolumeclaims")

BY_KIND = {
    "ConfigMap": CONFIG_MAPS,
    "Job": JOBS,
    "PersistentVolumeClaim": CLAIMS,
    "Role": Resource("rbac.authorization.k8s.io/v1", "roles"),
    "RoleBinding": Resource("rbac.authorization.k8s.io/v1", "rolebindings"),
    "Service": Resource("v1", "services"),
    "ServiceAccount": Resource("v1", "serviceaccounts"),
    "StackedTraining": TRAININGS,
}


def outside_cluster() -> bool:
    """Whether to use `KUBECONFIG` (or its default place) rather than a ServiceAccount."""
    return bool(os.environ.get("KUBECONFIG")) or not os.environ.get("KUBERNETES_SERVICE_HOST")


class Client:
    """Server-side apply, lists, deletes and events."""

    def __init__(
        self, api: aio.client.ApiClient, called: Callable[[str], None] = lambda _: None
    ) -> None:
        self._api, self._called = api, called

    @classmethod
    async def connect(cls, called: Callable[[str], None]) -> Client:
        """A client for `KUBECONFIG` if set, else for the cluster that the operator runs in.

        Args:
            called: Is told the HTTP method of every call.
        """
        if outside_cluster():
            await aio.config.load_kube_config()
        else:
            aio.config.load_incluster_config()
        return cls(aio.client.ApiClient(), called)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._api.close()

    async def list_all(
        self,
        resource: Resource,
        namespace: str | None,
        label_selector: str = "",
        field_selector: str = "",
    ) -> Listing:
        """Every object of a kind, in one namespace or (None) in all."""
        selectors = {"labelSelector": label_selector, "fieldSelector": field_selector}
        query = [(name, value) for name, value in selectors.items() if value]
        answer = await self._call("GET", resource.path(namespace), query=query)
        if answer is None:
            return Listing([])
        version = answer.get("metadata", {}).get("resourceVersion") or 0
        return Listing(list(answer.get("items") or []), int(version))

    async def apply(self, manifest: dict[str, Any], subresource: str = "") -> dict[str, Any]:
        """Server-side apply; our fields win, others' fields stay."""
        resource = BY_KIND[manifest["kind"]]
        meta = manifest["metadata"]
        answer = await self._call(
            "PATCH",
            resource.path(meta.get("namespace"), meta["name"], subresource),
            query=[("fieldManager", MANAGER), ("force", "true")],
            body=manifest,
            content_type="application/apply-patch+yaml",
        )
        if answer is None:
            raise Unavailable(f"{manifest['kind']} {meta['name']} is gone")
        return answer

    async def merge_patch(
        self, resource: Resource, namespace: str, name: str, patch: dict[str, Any]
    ) -> dict[str, Any] | None:
        """Merge-patch an object; None if it does not exist."""
        return await self._call(
            "PATCH",
            resource.path(namespace, name),
            query=[("fieldManager", MANAGER)],
            body=patch,
            content_type="application/merge-patch+json",
        )

    async def delete(self, resource: Resource, namespace: str, name: str) -> None:
        """Delete an object and, in the background, what it owns; absent is fine."""
        body = {"propagationPolicy": "Background"}
        await self._call("DELETE", resource.path(namespace, name), body=body)

    async def create(self, resource: Resource, namespace: str, manifest: dict[str, Any]) -> None:
        """Create an object."""
        await self._call("POST", resource.path(namespace), body=manifest)

    async def _call(
        self,
        method: str,
        path: str,
        *,
        query: list[tuple[str, str]] | None = None,
        body: Any = None,
        content_type: str = "application/json",
    ) -> dict[str, Any] | None:
        self._called(method)
        request = await self._api.param_serialize(
            method=method,
            resource_path=path,
            query_params=query or [],
            header_params={"Content-Type": content_type, "Accept": "application/json"},
            body=body,
            auth_settings=["BearerToken"],
        )
        try:
            response = await self._api.call_api(*request, _request_timeout=TIMEOUT_SECONDS)
            content = await response.read()
        except ApiException as error:
            if error.status == 404 and method != "POST":
                return None
            raise _converted(method, path, error.status, error.body or "", error.headers) from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unavailable(f"{method} {path}: {type(error).__name__}: {error}") from error
        if response.status == 404 and method != "POST":
            return None
        if response.status >= 400:
            raise _converted(method, path, response.status, content, response.headers)
        try:
            answer: dict[str, Any] = json.loads(content)
        except ValueError as error:
            raise Unavailable(f"{method} {path}: the answer is no JSON: {error}") from error
        return answer


def _converted(
    method: str, path: str, status: int, body: str | bytes, headers: Mapping[str, str] | None
) -> ClusterError:
    """The exception that says whether to try again, with the server's own sentence."""
    try:
        message = json.loads(body)["message"]
    except (ValueError, KeyError, TypeError):
        message = body if isinstance(body, str) else body.decode(errors="replace")
    told = f"{method} {path}: {status} {message}"
    if status in _PERMANENT:
        return Refused(told)
    if status == 409:
        return Conflict(told)
    after = (headers or {}).get("Retry-After", "")
    return Unavailable(told, float(after) if after.isdecimal() else 0.0)
