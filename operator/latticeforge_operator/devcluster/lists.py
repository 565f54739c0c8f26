"""Lists, whole or in pages."""

from __future__ import annotations

import base64
import json

from aiohttp import web

from latticeforge_operator.devcluster import requests
from latticeforge_operator.devcluster.collection import ObjectKey, Query
from latticeforge_operator.devcluster.errors import ApiError
from latticeforge_operator.devcluster.representation import Representation
from latticeforge_operator.devcluster.resources import JsonObject, Resource
from latticeforge_operator.devcluster.store import Store


def page(store: Store, request: web.Request, resource: Resource, query: Query) -> web.Response:
    """Answers a list request.

    Pages continue after the last key of the page before, under the resourceVersion of the first:
    a watch from there replays whatever changed while the client was paging.
    """
    found = store.select(resource.key, query)
    revision = store.revision
    if token := request.query.get("continue"):
        revision, last = _decode(token)
        found = [stored for stored in found if stored.key > last]
    metadata: JsonObject = {"resourceVersion": str(revision)}
    limit = requests.whole_number(request, "limit")
    if limit and len(found) > limit:
        metadata["continue"] = _encode(revision, found[limit - 1].key)
        metadata["remainingItemCount"] = len(found) - limit
        found = found[:limit]
    return Representation(request, resource, store.now).many(found, metadata)


def _encode(revision: int, last: ObjectKey) -> str:
    return base64.urlsafe_b64encode(json.dumps([revision, *last]).encode()).decode()


def _decode(token: str) -> tuple[int, ObjectKey]:
    try:
        revision, namespace, name = json.loads(base64.urlsafe_b64decode(token))
    except ValueError as error:
        raise ApiError(
            400, "continue key is not valid: it must be one that a list returned"
        ) from error
    return int(revision), (namespace, name)
