"""One request, one answer: the verbs of the Kubernetes API over the store."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Protocol

from aiohttp import web

from latticeforge_operator.devcluster import (
    authorization,
    errors,
    lists,
    openapi,
    patch,
    requests,
    streams,
)
from latticeforge_operator.devcluster.authorization import Account, Action
from latticeforge_operator.devcluster.discovery import document
from latticeforge_operator.devcluster.errors import ApiError
from latticeforge_operator.devcluster.eviction import evict
from latticeforge_operator.devcluster.representation import Representation
from latticeforge_operator.devcluster.requests import Target
from latticeforge_operator.devcluster.resources import JsonObject
from latticeforge_operator.devcluster.store import Store, Subresource
from latticeforge_operator.devcluster.unknown_fields import check_unknown_fields

_SUCCESS = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}
_WRITES = frozenset({"POST", "PUT", "PATCH"})
_APPLY = "application/apply-patch+yaml"
_JSON_PATCH = "application/json-patch+json"
_MERGE = "application/merge-patch+json"
_STRATEGIC = "application/strategic-merge-patch+json"


class LogReader(Protocol):
    """Reads the log of a pod's container; the kubelet provides it."""

    def __call__(
        self, namespace: str, pod: str, container: str | None, follow: bool, tail_lines: int | None
    ) -> AsyncIterator[bytes]:
        """Yields chunks; raises ApiError before the first when there is no log to read."""
        ...


class Endpoints:
    """Answers the API's requests.

    Args:
        store: the objects.
        log_reader: where `pods/log` comes from; None when nothing runs pods.
    """

    def __init__(self, store: Store, log_reader: LogReader | None) -> None:
        self._store = store
        self._log_reader = log_reader
        self._verbs = {
            "GET": self._get,
            "POST": self._post,
            "PUT": self._put,
            "PATCH": self._patch,
            "DELETE": self._delete,
        }

    async def answer(
        self, request: web.Request, path: list[str], account: Account | None = None
    ) -> web.StreamResponse:
        """Answers a request to a path.

        Args:
            request: the request.
            path: what it asks for, split at its slashes.
            account: who asks; None may do everything.

        Raises:
            ApiError: it is refused.
        """
        if request.method == "GET":
            found = document(self._store.registry, path)
            found = found or openapi.document(self._store.registry, path)
            if found is not None:
                return _json(found)
        verb = self._verbs.get(request.method)
        if verb is None:
            raise ApiError(405, f"the server does not allow the method {request.method}")
        target = requests.target(self._store.registry, path)
        if account is not None:
            await self._authorize(request, target, account)
        return await verb(request, target)

    async def _authorize(self, request: web.Request, target: Target, account: Account) -> None:
        for action in self._actions(request, target):
            authorization.check(self._store, account, action)
        if target.key.group == authorization.GROUP and request.method in _WRITES:
            body = await requests.object_body(request)
            if request.method == "PATCH" and request.content_type != _APPLY:
                raise ApiError(403, "the devcluster lets pods write roles as a whole only: apply")
            metadata = {**(body.get("metadata") or {}), "namespace": target.namespace or ""}
            whole = {**body, "metadata": metadata}
            authorization.check_grant(self._store, account, target.key, whole)

    def _actions(self, request: web.Request, target: Target) -> list[Action]:
        """What a request wants to do; to apply what is not there is to create it too."""
        wanted = requests.action(request, target)
        if request.content_type == _APPLY and self._store.peek(*target.object()) is None:
            return [wanted, replace(wanted, verb="create")]
        return [wanted]

    async def _get(self, request: web.Request, target: Target) -> web.StreamResponse:
        if target.subresource == "log":
            return await self._log(request, target)
        if target.name is not None:
            stored = self._store.find(*target.object())
            return Representation(request, target.resource, self._store.now).one(stored)
        query = self._store.query(
            target.key,
            target.namespace,
            request.query.get("labelSelector", ""),
            request.query.get("fieldSelector", ""),
        )
        if requests.flag(request, "watch"):
            return await streams.watch(self._store, request, target.resource, query)
        return lists.page(self._store, request, target.resource, query)

    async def _log(self, request: web.Request, target: Target) -> web.StreamResponse:
        key, namespace, name = target.object()
        pod = self._store.get(key, namespace, name)
        if self._log_reader is None:
            raise ApiError(501, "this server runs no pods, so it has no logs", "NotImplemented")
        container = streams.log_container(pod, request.query.get("container"))
        follow = requests.flag(request, "follow")
        tail = requests.whole_number(request, "tailLines")
        return await streams.log(
            request, self._log_reader(namespace, name, container, follow, tail)
        )

    async def _post(self, request: web.Request, target: Target) -> web.StreamResponse:
        body = await requests.object_body(request)
        if target.subresource == "eviction":
            requests.check_delete_options(body.get("deleteOptions") or {})
            evict(self._store, *target.object()[1:], body)
            return _json(_SUCCESS, status=201)
        if target.name is not None:
            raise ApiError(405, "POST creates an object in a collection, not under a name")
        warnings = check_unknown_fields(request, target.resource, body)
        namespace = target.namespace
        if namespace is None:
            namespace = (body.get("metadata") or {}).get("namespace") or "default"
        options = requests.write_options(request)
        created = self._store.create(target.key, namespace, body, options=options)
        return self._written(target, created, warnings, status=201)

    async def _put(self, request: web.Request, target: Target) -> web.StreamResponse:
        body = await requests.object_body(request)
        warnings = check_unknown_fields(request, target.resource, body)
        key, namespace, name = target.object()
        updated = self._store.update(
            key,
            namespace,
            name,
            body,
            subresource=_status(target),
            options=requests.write_options(request),
        )
        return self._written(target, updated, warnings)

    async def _patch(self, request: web.Request, target: Target) -> web.StreamResponse:
        body = await requests.body(request)
        if request.content_type == _APPLY:
            return self._apply(request, target, body)
        change = _change(request.content_type, body, target)
        warnings = check_unknown_fields(request, target.resource, body)
        patched = self._store.patch(
            *target.object(),
            change,
            subresource=_status(target),
            options=requests.write_options(request),
        )
        return self._written(target, patched, warnings)

    def _apply(self, request: web.Request, target: Target, body: JsonObject) -> web.Response:
        key, namespace, name = target.object()
        manager = request.query.get("fieldManager")
        if not manager:
            raise ApiError(422, 'PatchOptions.meta.k8s.io "" is invalid: fieldManager: Required '
                                "value: is required for apply patch")  # fmt: skip
        new = self._store.peek(key, namespace, name) is None
        applied = self._store.apply(
            key,
            namespace,
            name,
            body,
            manager=manager,
            force=requests.flag(request, "force"),
            subresource=_status(target),
            options=requests.write_options(request),
        )
        return self._written(target, applied, [], status=201 if new else 200)

    async def _delete(self, request: web.Request, target: Target) -> web.StreamResponse:
        options = await requests.delete_options(request, target.resource)
        if target.name is None:
            return self._delete_collection(request, target, options)
        key, namespace, name = target.object()
        stored = self._store.get(key, namespace, name)
        _check_delete_preconditions(target, stored, options)
        if options.dry_run:
            return _json(_SUCCESS)
        last = self._store.delete(
            key,
            namespace,
            name,
            propagation=options.propagation,
            grace_period_seconds=options.grace_period_seconds,
        )
        if self._store.peek(key, namespace, name) is not None:
            return self._written(target, last, [])
        details = {
            "name": name,
            "group": key.group,
            "kind": key.plural,
            "uid": last["metadata"]["uid"],
        }
        return _json({**_SUCCESS, "details": details})

    def _delete_collection(
        self, request: web.Request, target: Target, options: requests.DeleteOptions
    ) -> web.Response:
        found = self._store.list(
            target.key,
            target.namespace,
            label_selector=request.query.get("labelSelector", ""),
            field_selector=request.query.get("fieldSelector", ""),
        )
        for obj in found if not options.dry_run else ():
            metadata = obj["metadata"]
            if self._store.peek(target.key, metadata.get("namespace", ""), metadata["name"]):
                self._store.delete(
                    target.key,
                    metadata.get("namespace", ""),
                    metadata["name"],
                    propagation=options.propagation,
                    grace_period_seconds=options.grace_period_seconds,
                )
        revision = {"resourceVersion": str(self._store.revision)}
        return _json(
            {
                "kind": f"{target.resource.kind}List",
                "apiVersion": target.key.group_version,
                "metadata": revision,
                "items": found,
            }
        )

    def _written(
        self, target: Target, obj: JsonObject, warnings: list[str], status: int = 200
    ) -> web.Response:
        metadata = obj["metadata"]
        stored = self._store.peek(target.key, metadata.get("namespace", ""), metadata["name"])
        # The version just stored is encoded already, or will be for the watches.
        encoded = stored.json if stored and stored.object is obj else json.dumps(obj).encode()
        response = web.Response(body=encoded, content_type="application/json", status=status)
        for warning in warnings:
            response.headers.add("Warning", f"299 - {json.dumps(warning)}")
        return response


def _status(target: Target) -> Subresource | None:
    if target.subresource is None:
        return None
    if target.subresource != "status":
        raise ApiError(405, f"{target.subresource} cannot be written")
    return "status"


def _change(content_type: str, body: object, target: Target) -> Callable[[JsonObject], JsonObject]:
    if content_type == _JSON_PATCH:
        return lambda live: patch.json_patch(live, body)
    if not isinstance(body, dict):
        raise ApiError(400, "the patch must be an object")
    if content_type == _MERGE:
        return lambda live: patch.json_merge(live, body)
    if content_type == _STRATEGIC and not target.resource.custom:
        return lambda live: patch.strategic_merge(live, body, target.resource.schema)
    supported = [_JSON_PATCH, _MERGE, _APPLY] + ([] if target.resource.custom else [_STRATEGIC])
    message = (
        "the body of the request was in an unknown format - accepted media types include: "
        + ", ".join(supported)
    )
    raise ApiError(415, message)


def _check_delete_preconditions(
    target: Target, stored: JsonObject, options: requests.DeleteOptions
) -> None:
    metadata = stored["metadata"]
    for field, wanted, have in (
        ("UID", options.uid, metadata["uid"]),
        ("ResourceVersion", options.resource_version, metadata["resourceVersion"]),
    ):
        if wanted not in {None, have}:
            raise errors.precondition_failed(target.key, metadata["name"], field, str(wanted), have)


def _json(obj: JsonObject, status: int = 200) -> web.Response:
    return web.json_response(obj, status=status)
