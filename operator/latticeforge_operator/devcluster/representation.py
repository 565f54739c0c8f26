"""In which form a client wants objects: as they are, or as rows of a table."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from typing import cast

from aiohttp import web

from latticeforge_operator.devcluster import tables
from latticeforge_operator.devcluster.collection import Stored
from latticeforge_operator.devcluster.resources import JsonObject, Resource


class Representation:
    """Encodes objects as the request's Accept header asks."""

    def __init__(
        self, request: web.Request, resource: Resource, now: Callable[[], datetime]
    ) -> None:
        accepted = request.headers.get("Accept", "").partition(",")[0]
        self._as_table = "as=Table" in accepted
        include = request.query.get("includeObject", "Metadata")
        self._include = cast("tables.IncludeObject", include)
        self._resource = resource
        self._now = now

    def encode(self, stored: Stored) -> bytes:
        """One object."""
        return self._table([stored], {}) if self._as_table else stored.json

    def one(self, stored: Stored) -> web.Response:
        """A response with one object."""
        return web.Response(body=self.encode(stored), content_type="application/json")

    def many(self, found: list[Stored], metadata: JsonObject) -> web.Response:
        """A response with a list; `metadata` is its `metav1.ListMeta`."""
        if self._as_table:
            body = self._table(found, metadata)
        else:
            head = {
                "kind": f"{self._resource.kind}List",
                "apiVersion": self._resource.key.group_version,
                "metadata": metadata,
            }
            items = b",".join(stored.json for stored in found)
            body = json.dumps(head).encode()[:-1] + b',"items":[' + items + b"]}"
        return web.Response(body=body, content_type="application/json")

    def _table(self, found: list[Stored], metadata: JsonObject) -> bytes:
        objects = (stored.object for stored in found)
        table = tables.render(self._resource, objects, self._now(), self._include)
        return json.dumps({**table, "metadata": metadata}).encode()
