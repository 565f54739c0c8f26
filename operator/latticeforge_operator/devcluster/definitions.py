"""The API server's rules for CustomResourceDefinitions: what it checks, and what it answers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from latticeforge_operator.devcluster import cel
from latticeforge_operator.devcluster.errors import FieldError
from latticeforge_operator.devcluster.metadata import timestamp
from latticeforge_operator.devcluster.resources import JsonObject


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


def _schema_faults(schema: Mapping[str, Any], path: str) -> Iterator[FieldError]:
    for index, rule in enumerate(schema.get("x-kubernetes-validations", ())):
        for field in ("rule", "messageExpression"):
            if field in rule and (why := _compile_fault(rule[field])):
                where = f"{path}.x-kubernetes-validations[{index}].{field}"
                yield FieldError.invalid(where, rule[field], f"compilation failed: {why}")
    if "pattern" in schema and (why := _pattern_fault(schema["pattern"])):
        yield FieldError.invalid(f"{path}.pattern", schema["pattern"], why)
    if not _has_shape(schema):
        yield FieldError.required(f"{path}.type", "must not be empty for specified object fields")
    for name, below in schema.get("properties", {}).items():
        yield from _schema_faults(below, f"{path}.properties[{name}]")
    for field in ("items", "additionalProperties"):
        if isinstance(schema.get(field), Mapping):
            yield from _schema_faults(schema[field], f"{path}.{field}")


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
        re.compile(pattern)
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
