"""CustomResourceDefinitions: from the object that a user applies to a served resource."""

from __future__ import annotations

from functools import cache

from latticeforge_operator.devcluster import builtin_schemas
from latticeforge_operator.devcluster.deletion import custom_key
from latticeforge_operator.devcluster.resources import Column, JsonObject, Resource
from latticeforge_operator.devcluster.structure import Schema

_AGE = Column("Age", "date", ".metadata.creationTimestamp")


def resource(definition: JsonObject) -> Resource:
    """Returns what a definition serves: its storage version (no conversion between versions)."""
    spec = definition["spec"]
    names = spec["names"]
    version = next(v for v in spec["versions"] if v.get("storage"))
    return Resource(
        key=custom_key(definition),
        kind=names["kind"],
        namespaced=spec["scope"] == "Namespaced",
        short_names=tuple(names.get("shortNames", ())),
        categories=tuple(names.get("categories", ())),
        subresources=tuple(version.get("subresources") or ()),
        has_generation=True,
        load_schema=cache(lambda: _schema(version)),
        columns=_columns(version),
        selectable=frozenset(
            f["jsonPath"].lstrip(".") for f in version.get("selectableFields", ())
        ),
        custom=True,
    )


def _schema(version: JsonObject) -> Schema:
    declared = version.get("schema", {}).get("openAPIV3Schema", {})
    common = {
        "apiVersion": {"type": "string"},
        "kind": {"type": "string"},
        "metadata": builtin_schemas.object_meta(),
    }
    return {**declared, "properties": {**declared.get("properties", {}), **common}}


def _columns(version: JsonObject) -> tuple[Column, ...]:
    declared = tuple(
        Column(
            column["name"],
            column["type"],
            column["jsonPath"],
            column.get("description", ""),
            column.get("format", ""),
            column.get("priority", 0),
        )
        for column in version.get("additionalPrinterColumns", ())
    )
    return declared or (_AGE,)
