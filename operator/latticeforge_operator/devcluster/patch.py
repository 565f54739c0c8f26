"""The patch formats besides apply: JSON patch, JSON merge patch, strategic merge patch."""

from __future__ import annotations

from typing import Any

import jsonpatch

from latticeforge_operator.devcluster import structure
from latticeforge_operator.devcluster.errors import ApiError
from latticeforge_operator.devcluster.resources import JsonObject
from latticeforge_operator.devcluster.structure import Schema


def json_patch(live: JsonObject, operations: Any) -> JsonObject:
    """Applies a JSON patch (RFC 6902); raises a 422 ApiError when it does not fit the object."""
    try:
        return jsonpatch.apply_patch(live, operations)  # type: ignore[no-any-return]  # untyped
    except (jsonpatch.JsonPatchException, jsonpatch.JsonPointerException, TypeError) as error:
        message = "the server rejected our request due to an error in our request"
        raise ApiError(422, f"{message}: {error}") from error


def json_merge(live: Any, patch: Any) -> Any:
    """Applies a JSON merge patch (RFC 7386): null deletes, lists are replaced."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(live) if isinstance(live, dict) else {}
    for field, value in patch.items():
        if value is None:
            merged.pop(field, None)
        else:
            merged[field] = json_merge(merged.get(field), value)
    return merged


def strategic_merge(live: Any, patch: Any, schema: Schema) -> Any:
    """Applies a strategic merge patch: lists with a merge key are merged item by item.

    Knows `$patch: replace|delete|merge`, `$retainKeys`, `$deleteFromPrimitiveList/FIELD` and
    `$setElementOrder/FIELD`.
    """
    if not isinstance(patch, dict):
        return patch
    if patch.get("$patch") == "replace":
        return {field: value for field, value in patch.items() if field != "$patch"}
    if patch.get("$patch") == "delete":
        return {}
    merged = dict(live) if isinstance(live, dict) else {}
    if isinstance(retained := patch.get("$retainKeys"), list):
        merged = {field: value for field, value in merged.items() if field in retained}
    for field, value in patch.items():
        if not field.startswith("$"):
            _merge_field(merged, field, value, structure.field_schema(schema, field))
    _apply_list_directives(merged, patch, schema)
    return merged


def _merge_field(merged: JsonObject, field: str, value: Any, schema: Schema) -> None:
    if value is None:
        merged.pop(field, None)
    elif isinstance(value, list):
        merged[field] = _merge_list(merged.get(field) or [], value, schema)
    else:
        merged[field] = strategic_merge(merged.get(field), value, schema)


def _merge_list(live: Any, patch: list[Any], schema: Schema) -> list[Any]:
    key = schema.get("x-kubernetes-patch-merge-key")
    if not isinstance(live, list) or {"$patch": "replace"} in patch:
        return [item for item in patch if item != {"$patch": "replace"}]
    if schema.get("x-kubernetes-list-type") == "set":
        return live + [item for item in patch if item not in live]
    if key is None:
        return patch
    items = {_merge_name(item, key): item for item in live}
    for change in patch:
        name = _merge_name(change, key)
        if change.get("$patch") == "delete":
            items.pop(name, None)
        else:
            items[name] = strategic_merge(items.get(name), change, structure.item_schema(schema))
    return list(items.values())


def _merge_name(item: Any, key: str) -> str | int:
    name = item.get(key) if isinstance(item, dict) else None
    if not isinstance(name, str | int):
        raise ApiError(400, f"an item of a list that is merged by {key} must be an object with it")
    return name


def _apply_list_directives(merged: JsonObject, patch: JsonObject, schema: Schema) -> None:
    for directive, value in patch.items():
        name, _, field = directive.partition("/")
        if name not in {"$deleteFromPrimitiveList", "$setElementOrder"} or field not in merged:
            continue
        if not isinstance(value, list) or not isinstance(merged[field], list):
            raise ApiError(400, f"{directive} must be a list, and {field} must be one too")
        if name == "$deleteFromPrimitiveList":
            merged[field] = [item for item in merged[field] if item not in value]
        else:
            key = structure.field_schema(schema, field).get("x-kubernetes-patch-merge-key")
            merged[field] = _ordered(merged[field], value, key)


def _ordered(items: list[Any], order: list[Any], key: str | None) -> list[Any]:
    def name(item: Any) -> Any:
        return item.get(key) if key and isinstance(item, dict) else item

    names = [name(item) for item in order]

    def position(item: Any) -> int:
        return names.index(name(item)) if name(item) in names else len(names)

    return sorted(items, key=position)
