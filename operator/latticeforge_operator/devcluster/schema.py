"""Structural schemas at work: unknown fields, pruning, defaults and validation.

Follows apiextensions.k8s.io/v1. Values are never changed in place: what prunes or defaults returns
the value itself when there is nothing to do, and a new one otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from latticeforge_operator.devcluster import structure
from latticeforge_operator.devcluster.resources import clone
from latticeforge_operator.devcluster.structure import Schema


def unknown_fields(schema: Schema, value: Any, path: str = "") -> Iterator[str]:
    """Yields the paths of fields that the schema does not declare."""
    if isinstance(value, dict):
        for field, item in value.items():
            below = f"{path}.{field}" if path else field
            if field.startswith("$"):
                continue  # A directive of a strategic merge patch.
            if _knows(schema, field):
                yield from unknown_fields(structure.field_schema(schema, field), item, below)
            else:
                yield below
    elif isinstance(value, list):
        for index, item in enumerate(value):
            items = structure.item_schema(schema)
            yield from unknown_fields(items, item, f"{path}[{index}]")


def _knows(schema: Schema, field: str) -> bool:
    return bool(
        field in schema.get("properties", ())
        or schema.get("additionalProperties")
        or schema.get("x-kubernetes-preserve-unknown-fields")
        or not schema
    )


def prune(schema: Schema, value: Any) -> Any:
    """Drops fields that the schema does not declare."""
    if isinstance(value, dict):
        kept = {
            field: prune(structure.field_schema(schema, field), item)
            for field, item in value.items()
            if _knows(schema, field)
        }
        return value if _same_parts(kept, value) else kept
    if isinstance(value, list):
        items = [prune(structure.item_schema(schema), item) for item in value]
        return value if all(a is b for a, b in zip(items, value, strict=True)) else items
    return value


def default(schema: Schema, value: Any) -> Any:
    """Fills in declared defaults; a null where null is not allowed counts as absent."""
    if isinstance(value, dict):
        filled = {
            field: default(structure.field_schema(schema, field), item)
            for field, item in value.items()
            if item is not None or not _defaulted(schema, field)
        }
        for field, declared in schema.get("properties", {}).items():
            if field not in filled and "default" in declared:
                filled[field] = default(declared, clone(declared["default"]))
        return value if _same_parts(filled, value) else filled
    if isinstance(value, list):
        items = [default(structure.item_schema(schema), item) for item in value]
        return value if all(a is b for a, b in zip(items, value, strict=True)) else items
    return value


def _defaulted(schema: Schema, field: str) -> bool:
    declared = schema.get("properties", {}).get(field, {})
    return "default" in declared and not declared.get("nullable")


def _same_parts(new: dict[str, Any], old: dict[str, Any]) -> bool:
    return len(new) == len(old) and all(old.get(field) is item for field, item in new.items())
