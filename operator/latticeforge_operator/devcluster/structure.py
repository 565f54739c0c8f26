"""How a schema says that values merge: which maps and lists are granular, and by which keys.

Kubernetes extends OpenAPI with `x-kubernetes-list-type` (atomic, set, map), `-list-map-keys` and
`-map-type` (granular, atomic). Values no schema describes have granular maps and atomic lists.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

Schema = Mapping[str, Any]
UNTYPED: Schema = {}


def is_granular(schema: Schema, value: Any) -> bool:
    """Whether parts of the value have owners of their own."""
    if isinstance(value, dict):
        return schema.get("x-kubernetes-map-type") != "atomic" and (
            schema is UNTYPED or _has_known_parts(schema)
        )
    if isinstance(value, list):
        return schema.get("x-kubernetes-list-type") in {"set", "map"}
    return False


def _has_known_parts(schema: Schema) -> bool:
    # An object without declared properties is opaque, unless it keeps unknown fields.
    return bool(
        schema.get("properties")
        or schema.get("additionalProperties")
        or schema.get("x-kubernetes-preserve-unknown-fields")
        or "type" not in schema
    )


def is_declared(schema: Schema, field: str) -> bool:
    """Whether the field is a property of the type, not an entry of a map."""
    return field in schema.get("properties", ())


def field_schema(schema: Schema, field: str) -> Schema:
    """The schema of an object's field or a map's entry."""
    declared = schema.get("properties", {}).get(field)
    if declared is not None:
        return declared  # type: ignore[no-any-return]  # schemas are parsed JSON
    entries = schema.get("additionalProperties")
    return entries if isinstance(entries, Mapping) else UNTYPED


def item_schema(schema: Schema) -> Schema:
    """The schema of a list's items."""
    return schema.get("items", UNTYPED)  # type: ignore[no-any-return]  # schemas are parsed JSON


def parts(schema: Schema, value: Any) -> Iterator[tuple[str, Any, Schema]]:
    """Yields the path element, value and schema of each part of a granular map or list.

    Path elements are those of FieldsV1: `f:name`, `k:{"name":"a"}`, `v:"a"`.
    """
    if isinstance(value, dict):
        for field, item in value.items():
            yield f"f:{field}", item, field_schema(schema, field)
        return
    items = item_schema(schema)
    for item in value:
        yield item_element(schema, item), item, items


def item_element(schema: Schema, item: Any) -> str:
    """Names an item of a set or map list by its value or its keys."""
    if schema.get("x-kubernetes-list-type") == "set" or not isinstance(item, dict):
        return f"v:{_compact(item)}"
    properties = item_schema(schema).get("properties", {})
    keys = sorted(schema.get("x-kubernetes-list-map-keys", ()))
    named = {key: item.get(key, properties.get(key, {}).get("default")) for key in keys}
    return f"k:{_compact({key: value for key, value in named.items() if value is not None})}"


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
