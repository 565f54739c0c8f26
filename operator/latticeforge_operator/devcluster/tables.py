"""Tables as `kubectl get` asks for them: columns, and one row of cells for each object."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, Literal

from latticeforge_operator.devcluster import jsonpath, table_cells
from latticeforge_operator.devcluster.ages import age
from latticeforge_operator.devcluster.resources import Column, JsonObject, Resource

IncludeObject = Literal["None", "Metadata", "Object"]
_META = "meta.k8s.io/v1"
_NAME = Column("Name", "string", ".metadata.name", "Name of the object.", "name")
_AGE = Column("Age", "date", ".metadata.creationTimestamp", "Time since creation.")


def render(
    resource: Resource,
    objects: Iterable[JsonObject],
    now: datetime,
    include: IncludeObject = "Metadata",
) -> JsonObject:
    """Returns a `meta.k8s.io/v1` Table of the objects."""
    columns, cells = _printer(resource)
    rows = [
        {"cells": cells(obj, now), **_included(obj, include)}
        for obj in objects
    ]  # fmt: skip
    definitions = [
        {
            "name": column.name,
            "type": "string" if column.type == "date" else column.type,
            "format": column.format,
            "description": column.description,
            "priority": column.priority,
        }
        for column in columns
    ]
    return {
        "kind": "Table",
        "apiVersion": _META,
        "metadata": {},
        "columnDefinitions": definitions,
        "rows": rows,
    }


def _printer(
    resource: Resource,
) -> tuple[tuple[Column, ...], Callable[[JsonObject, datetime], list[Any]]]:
    if resource.key in table_cells.PRINTERS:
        return table_cells.PRINTERS[resource.key]
    columns = (_NAME, *(resource.columns or (_AGE,)))
    return columns, lambda obj, now: [_cell(column, obj, now) for column in columns]


def _included(obj: JsonObject, include: IncludeObject) -> JsonObject:
    if include == "None":
        return {}
    if include == "Object":
        return {"object": obj}
    kind = {"kind": "PartialObjectMetadata", "apiVersion": _META}
    return {"object": {**kind, "metadata": obj["metadata"]}}


def _cell(column: Column, obj: JsonObject, now: datetime) -> Any:
    found = jsonpath.find(column.path, obj)
    if not found:
        return None
    value = found[0]
    if column.type == "date":
        return age(value, now)
    if column.type == "string":
        return value if isinstance(value, str) else json.dumps(value)
    if column.type == "integer" and isinstance(value, float):
        return int(value)
    return value
