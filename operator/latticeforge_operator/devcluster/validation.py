"""Validates objects against structural schemas, in the words of the real API server.

An update is judged by what it changes ("ratcheting"): a part that equals the stored one, however it
got there, is not refused again. That also makes a status write cost nothing for the spec.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

from latticeforge_operator.devcluster import cel, structure
from latticeforge_operator.devcluster.errors import FieldError
from latticeforge_operator.devcluster.patterns import compiled
from latticeforge_operator.devcluster.structure import Schema

ABSENT: Any = object()
"""Stands for an old value that does not exist."""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_integer(value: Any) -> bool:
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    # Kubernetes decodes integers into an int64; what does not fit is a float to it.
    return whole and not isinstance(value, bool) and -(2**63) <= value < 2**63


_TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "integer": _is_integer,
    "number": _is_number,
}


def faults(schema: Schema, value: Any, old: Any = ABSENT, path: str = "") -> list[FieldError]:
    """Returns what is wrong with a value: the schema's faults, or if none those of its CEL rules.

    Args:
        schema: structural schema of the value.
        value: a JSON value, pruned and defaulted.
        old: the value that it replaces; ABSENT for a new one.
        path: where the value is, for the messages.
    """
    found = list(_faults(schema, value, old, path))
    return found or list(_broken_rules(schema, value, old, path))


def _faults(schema: Schema, value: Any, old: Any, path: str) -> Iterator[FieldError]:
    if value is old or value == old:
        return
    if value is None and schema.get("nullable"):
        return
    if mistyped := _type_fault(schema, value, path):
        yield mistyped
        return
    yield from _constraint_faults(schema, value, path)
    yield from _combination_faults(schema, value, path)
    if isinstance(value, dict):
        yield from _required_faults(schema, value, path)
    if isinstance(value, list):
        yield from _duplicates(schema, value, path)
    for below, part, before, where in _parts(schema, value, old, path):
        yield from _faults(below, part, before, where)


def _parts(
    schema: Schema, value: Any, old: Any, path: str
) -> Iterator[tuple[Schema, Any, Any, str]]:
    """Yields schema, value, old value and path of each part of an object or array."""
    if isinstance(value, dict):
        olds = old if isinstance(old, dict) else {}
        for field, item in value.items():
            where = f"{path}.{field}" if path else field
            yield structure.field_schema(schema, field), item, olds.get(field, ABSENT), where
    elif isinstance(value, list):
        items = structure.item_schema(schema)
        correlated = _correlated(schema, old)
        for index, item in enumerate(value):
            before = correlated.get(structure.item_element(schema, item), ABSENT)
            yield items, item, before, f"{path}[{index}]"


def _correlated(schema: Schema, old: Any) -> dict[str, Any]:
    """Old items by key: only lists of type map say which old item a new one replaces."""
    if not isinstance(old, list) or schema.get("x-kubernetes-list-type") != "map":
        return {}
    return {structure.item_element(schema, item): item for item in old}


def _type_fault(schema: Schema, value: Any, path: str) -> FieldError | None:
    expected = schema.get("type")
    if schema.get("x-kubernetes-int-or-string"):
        fits = isinstance(value, str) or _TYPES["integer"](value)
        expected = "integer,string"
    else:
        fits = expected is None or _TYPES[expected](value)
    if fits:
        return None
    actual = _type_name(value)
    detail = f'Invalid value: "{actual}": {path} in body must be of type {expected}: "{actual}"'
    return FieldError(path, "FieldValueTypeInvalid", detail)


def _type_name(value: Any) -> str:
    if value is None:
        return "null"
    order = ("object", "array", "string", "boolean", "integer", "number")
    return next(name for name in order if _TYPES[name](value))


def _required_faults(schema: Schema, value: dict[str, Any], path: str) -> Iterator[FieldError]:
    for field in schema.get("required", ()):
        if field not in value:
            yield FieldError.required(f"{path}.{field}" if path else field)


def _constraint_faults(schema: Schema, value: Any, path: str) -> Iterator[FieldError]:
    if "enum" in schema and value not in schema["enum"]:
        yield FieldError.unsupported(path, value, schema["enum"])
    if isinstance(value, str):
        yield from _string_faults(schema, value, path)
    elif _is_number(value):
        yield from _number_faults(schema, value, path)
    elif isinstance(value, list | dict):
        yield from _size_faults(schema, value, path)


def _string_faults(schema: Schema, value: str, path: str) -> Iterator[FieldError]:
    where = f"{path} in body"
    if len(value) < schema.get("minLength", 0):
        why = f"{where} should be at least {schema['minLength']} chars long"
        yield FieldError.invalid(path, value, why)
    if len(value) > schema.get("maxLength", len(value)):
        limit = schema["maxLength"]
        yield FieldError(path, "FieldValueTooLong", f"Too long: may not be more than {limit} bytes")
    if (pattern := schema.get("pattern")) and not compiled(pattern).search(value):
        yield FieldError.invalid(path, value, f"{where} should match '{pattern}'")
    if schema.get("format") == "date-time" and not _is_timestamp(value):
        yield FieldError.invalid(path, value, f'{where} must be of type date-time: "{value}"')


def _is_timestamp(value: str) -> bool:
    try:
        return datetime.fromisoformat(value).tzinfo is not None
    except ValueError:
        return False


def _number_faults(schema: Schema, value: float, path: str) -> Iterator[FieldError]:
    minimum, maximum = schema.get("minimum"), schema.get("maximum")
    where = f"{path} in body"
    if minimum is not None:
        exclusive = schema.get("exclusiveMinimum", False)
        if value < minimum or (exclusive and value == minimum):
            bound = "greater than" if exclusive else "greater than or equal to"
            yield FieldError.invalid(path, value, f"{where} should be {bound} {minimum}")
    if maximum is not None:
        exclusive = schema.get("exclusiveMaximum", False)
        if value > maximum or (exclusive and value == maximum):
            bound = "less than" if exclusive else "less than or equal to"
            yield FieldError.invalid(path, value, f"{where} should be {bound} {maximum}")
    if (factor := schema.get("multipleOf")) and value % factor:
        yield FieldError.invalid(path, value, f"{where} should be a multiple of {factor}")


def _size_faults(
    schema: Schema, value: list[Any] | dict[str, Any], path: str
) -> Iterator[FieldError]:
    what = "Items" if isinstance(value, list) else "Properties"
    size = len(value)
    if size < schema.get(f"min{what}", 0):
        least = schema[f"min{what}"]
        why = f"{path} in body should have at least {least} {what.lower()}"
        yield FieldError.invalid(path, size, why)
    if size > schema.get(f"max{what}", size):
        most = schema[f"max{what}"]
        detail = f"Too many: {size}: must have at most {most} items"
        yield FieldError(path, "FieldValueTooMany", detail)


def _duplicates(schema: Schema, value: list[Any], path: str) -> Iterator[FieldError]:
    if schema.get("x-kubernetes-list-type") not in {"set", "map"}:
        return
    seen = set()
    for index, item in enumerate(value):
        element = structure.item_element(schema, item)
        if element in seen:
            shown = element.partition(":")[2]
            yield FieldError(f"{path}[{index}]", "FieldValueDuplicate", f"Duplicate value: {shown}")
        seen.add(element)


def _combination_faults(schema: Schema, value: Any, path: str) -> Iterator[FieldError]:
    def fits(option: Schema) -> bool:
        return not faults(option, value, ABSENT, path)

    for option in schema.get("allOf", ()):
        yield from _faults(option, value, ABSENT, path)
    matching = {kind: sum(map(fits, schema[kind])) for kind in ("anyOf", "oneOf") if kind in schema}
    if matching.get("anyOf", 1) == 0:
        why = f'"{path}" must validate at least one schema (anyOf)'
        yield FieldError.invalid(path, value, why)
    if matching.get("oneOf", 1) != 1:
        valid = f"{matching['oneOf']}" if matching["oneOf"] else "none"
        why = f'"{path}" must validate one and only one schema (oneOf). Found {valid} valid'
        yield FieldError.invalid(path, value, why)
    if "not" in schema and fits(schema["not"]):
        yield FieldError.invalid(path, value, f'"{path}" must not validate the schema (not)')


def _broken_rules(schema: Schema, value: Any, old: Any, path: str) -> Iterator[FieldError]:
    if value is old or value == old:
        return
    for rule in schema.get("x-kubernetes-validations", ()):
        if fault := _broken_rule(rule, value, old, path):
            yield fault
    for below, part, before, where in _parts(schema, value, old, path):
        yield from _broken_rules(below, part, before, where)


def _broken_rule(rule: dict[str, Any], value: Any, old: Any, path: str) -> FieldError | None:
    broken = cel.check(rule, value, None if old is ABSENT else old)
    if broken is None:
        return None
    where = f"{path}{rule['fieldPath']}" if "fieldPath" in rule else path
    reason = rule.get("reason", "FieldValueInvalid")
    label = {"FieldValueForbidden": "Forbidden", "FieldValueRequired": "Required value"}
    if reason in label:
        return FieldError(where, reason, f"{label[reason]}: {broken}")
    return FieldError(where, reason, f'Invalid value: "{_type_name(value)}": {broken}')
