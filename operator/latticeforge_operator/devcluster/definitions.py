"""The API server's rules for CustomResourceDefinitions: what it checks, and what it answers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from latticeforge_operator.devcluster import cel, validation
from latticeforge_operator.devcluster.errors import FieldError
from latticeforge_operator.devcluster.metadata import timestamp
from latticeforge_operator.devcluster.patterns import compiled
from latticeforge_operator.devcluster.resources import JsonObject
from latticeforge_operator.devcluster.structure import Schema

_TEXT: Schema = {"type": "string"}
_NUMBER: Schema = {"type": "number"}
_SIZE: Schema = {"type": "integer", "minimum": 0}
_FLAG: Schema = {"type": "boolean"}
_ANY_LIST: Schema = {"type": "array"}
_TEXTS: Schema = {"type": "array", "items": _TEXT}
_OBJECT: Schema = {"type": "object"}
_OBJECTS: Schema = {"type": "array", "items": _OBJECT}
_RULE: Schema = {
    "type": "object",
    "required": ["rule"],
    "properties": dict.fromkeys(("rule", "message", "messageExpression", "fieldPath"), _TEXT),
}
_TYPES = ["object", "array", "string", "integer", "number", "boolean"]
# What the keywords of one level hold; their contents are checked as they are reached.
_KEYWORDS: Schema = {
    "type": "object",
    "properties": {
        "type": {"type": "string", "enum": _TYPES},
        "properties": {"type": "object", "additionalProperties": _OBJECT},
        "items": _OBJECT,
        "not": _OBJECT,
        "enum": _ANY_LIST,
        "x-kubernetes-validations": {"type": "array", "items": _RULE},
        "x-kubernetes-list-type": {"type": "string", "enum": ["atomic", "set", "map"]},
        "x-kubernetes-map-type": {"type": "string", "enum": ["atomic", "granular"]},
        **dict.fromkeys(("description", "format", "pattern"), _TEXT),
        **dict.fromkeys(("minimum", "maximum", "multipleOf"), _NUMBER),
        **dict.fromkeys(("exclusiveMinimum", "exclusiveMaximum", "nullable"), _FLAG),
        **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems"), _SIZE),
        **dict.fromkeys(("minProperties", "maxProperties"), _SIZE),
        **dict.fromkeys(("required", "x-kubernetes-list-map-keys"), _TEXTS),
        **dict.fromkeys(("allOf", "anyOf", "oneOf"), _OBJECTS),
        **dict.fromkeys(
            ("x-kubernetes-int-or-string", "x-kubernetes-preserve-unknown-fields"), _FLAG
        ),
    },
}


def check(definition: JsonObject) -> list[FieldError]:
    """Returns what is wrong with a definition that fits its schema."""
    spec = definition["spec"]
    faults = []
    expected = f"{spec['names']['plural']}.{spec['group']}"
    if definition["metadata"]["name"] != expected:
        why = f'must be spec.names.plural+"."+spec.group, which is {expected}'
        faults.append(FieldError.invalid("metadata.name", definition["metadata"]["name"], why))
    if sum(bool(version.get("storage")) for version in spec["versions"]) != 1:
        why = "must have exactly one version marked as storage version"
        faults.append(FieldError.invalid("spec.versions", len(spec["versions"]), why))
    for index, version in enumerate(spec["versions"]):
        path = f"spec.versions[{index}].schema.openAPIV3Schema"
        schema = (version.get("schema") or {}).get("openAPIV3Schema")
        if schema is None:
            faults.append(FieldError.required(path, "schemas are required"))
        else:
            faults += _schema_faults(schema, path)
    return faults


def _schema_faults(
    schema: Mapping[str, Any], path: str, *, is_option: bool = False
) -> Iterator[FieldError]:
    """Yields what is wrong with a schema; an option (of anyOf, ...) need not say its type."""
    malformed = validation.faults(_KEYWORDS, schema, path=path)
    yield from malformed
    if malformed:
        return
    found = [*_own_faults(schema, path, is_option=is_option)]
    for below, where in _parts(schema, path):
        found += _schema_faults(below, where, is_option=is_option)
    for option, where in _options(schema, path):
        found += _schema_faults(option, where, is_option=True)
    yield from found
    if "default" in schema and not found:
        yield from validation.faults(schema, schema["default"], path=f"{path}.default")


def _own_faults(schema: Mapping[str, Any], path: str, *, is_option: bool) -> Iterator[FieldError]:
    yield from _rule_faults(schema, path)
    if "pattern" in schema and (why := _pattern_fault(schema["pattern"])):
        yield FieldError.invalid(f"{path}.pattern", schema["pattern"], why)
    if not is_option and not _has_shape(schema):
        yield FieldError.required(f"{path}.type", "must not be empty for specified object fields")


def _rule_faults(schema: Mapping[str, Any], path: str) -> Iterator[FieldError]:
    for index, rule in enumerate(schema.get("x-kubernetes-validations", ())):
        for field in ("rule", "messageExpression"):
            if field in rule and (why := _compile_fault(rule[field])):
                where = f"{path}.x-kubernetes-validations[{index}].{field}"
                yield FieldError.invalid(where, rule[field], f"compilation failed: {why}")


def _parts(schema: Mapping[str, Any], path: str) -> Iterator[tuple[Mapping[str, Any], str]]:
    for name, below in schema.get("properties", {}).items():
        yield below, f"{path}.properties[{name}]"
    for field in ("items", "additionalProperties"):
        if isinstance(schema.get(field), Mapping):
            yield schema[field], f"{path}.{field}"


def _options(schema: Mapping[str, Any], path: str) -> Iterator[tuple[Mapping[str, Any], str]]:
    for field in ("allOf", "anyOf", "oneOf"):
        for index, option in enumerate(schema.get(field, ())):
            yield option, f"{path}.{field}[{index}]"
    if "not" in schema:
        yield schema["not"], f"{path}.not"


def _has_shape(schema: Mapping[str, Any]) -> bool:
    return bool(
        schema.get("type")
        or schema.get("x-kubernetes-int-or-string")
        or schema.get("x-kubernetes-preserve-unknown-fields")
    )


def _compile_fault(expression: str) -> str | None:
    try:
        cel.compile_rule(expression)
    except cel.RuleError as error:
        return str(error)
    return None


def _pattern_fault(pattern: str) -> str | None:
    try:
        compiled(pattern)
    except re.error as error:
        return f"must be a valid regular expression: {error}"
    return None


def establish(definition: JsonObject, now: datetime) -> JsonObject:
    """Returns the definition with the status of one that is accepted and served."""
    old = definition.get("status") or {}
    if old.get("conditions") and old.get("acceptedNames") == definition["spec"]["names"]:
        return definition
    accepted = {
        "NamesAccepted": ("NoConflicts", "no conflicts found"),
        "Established": ("InitialNamesAccepted", "the initial names have been accepted"),
    }
    conditions = [
        {
            "type": kind,
            "status": "True",
            "reason": reason,
            "message": message,
            "lastTransitionTime": timestamp(now),
        }
        for kind, (reason, message) in accepted.items()
    ]
    versions = [v["name"] for v in definition["spec"]["versions"] if v.get("storage")]
    names = definition["spec"]["names"]
    status = {"conditions": conditions, "acceptedNames": names, "storedVersions": versions}
    return {**definition, "status": {**old, **status}}
