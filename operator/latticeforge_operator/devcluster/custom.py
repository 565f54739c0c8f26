"""CustomResourceDefinitions: from the object that a user applies to a served resource."""

from __future__ import annotations

from latticeforge_operator.devcluster.deletion import custom_key
from latticeforge_operator.devcluster.resources import Column, JsonObject, Resource

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
        schema=version.get("schema", {}).get("openAPIV3Schema", {}),
        columns=_columns(version),
        selectable=frozenset(
            f["jsonPath"].lstrip(".") for f in version.get("selectableFields", ())
        ),
        custom=True,
    )


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
