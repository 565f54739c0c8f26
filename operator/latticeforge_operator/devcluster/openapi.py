"""OpenAPI documents: enough for `kubectl explain`, `kubectl apply` and Helm.

Clients read two things: the schemas (explain), and that PATCH takes `fieldValidation` (apply).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from latticeforge_operator.devcluster.discovery import VERSION
from latticeforge_operator.devcluster.resources import JsonObject, Registry, Resource

_PARAMETERS = [
    {"name": name, "in": "query", "schema": {"type": "string"}}
    for name in ("dryRun", "fieldManager", "fieldValidation", "force")
]


def document(registry: Registry, path: list[str]) -> JsonObject | None:
    """Returns the OpenAPI document at a path, split at its slashes, or None."""
    match path:
        case ["openapi", "v3"]:
            return _index(registry)
        case ["openapi", "v3", "api", version]:
            return _group_version(registry, version)
        case ["openapi", "v3", "apis", group, version]:
            return _group_version(registry, f"{group}/{version}")
    return None


def _index(registry: Registry) -> JsonObject:
    roots = {_root(resource) for resource in registry}
    return {"paths": {root: {"serverRelativeURL": f"/openapi/v3/{root}"} for root in sorted(roots)}}


def _root(resource: Resource) -> str:
    prefix = "apis" if resource.key.group else "api"
    return f"{prefix}/{resource.key.group_version}"


def _group_version(registry: Registry, group_version: str) -> JsonObject | None:
    served = tuple(registry.in_group_version(group_version))
    return _document(served) if served else None


@lru_cache(maxsize=64)
def _document(served: tuple[Resource, ...]) -> JsonObject:
    return {
        "openapi": "3.0.0",
        "info": {"title": "LatticeForge devcluster", "version": VERSION["gitVersion"]},
        "paths": {path: item for resource in served for path, item in _paths(resource).items()},
        "components": {"schemas": {_name(resource): _schema(resource) for resource in served}},
    }


def _name(resource: Resource) -> str:
    reversed_group = ".".join(reversed(resource.key.group.split(".")))
    return ".".join(part for part in (reversed_group, resource.key.version, resource.kind) if part)


def _type(resource: Resource) -> dict[str, str]:
    return {
        "group": resource.key.group,
        "version": resource.key.version,
        "kind": resource.kind,
    }


def _paths(resource: Resource) -> JsonObject:
    namespace = "namespaces/{namespace}/" if resource.namespaced else ""
    collection = f"/{_root(resource)}/{namespace}{resource.key.plural}"
    reference = {"$ref": f"#/components/schemas/{_name(resource)}"}
    content = {"application/json": {"schema": reference}}

    def operation(action: str) -> JsonObject:
        return {
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": _type(resource),
            "parameters": _PARAMETERS,
            "responses": {"200": {"description": "OK", "content": content}},
        }

    return {
        collection: {"get": operation("list"), "post": operation("post")},
        collection + "/{name}": {
            method: operation(method) for method in ("get", "put", "patch", "delete")
        },
    }


def _schema(resource: Resource) -> dict[str, Any]:
    return {**resource.schema, "x-kubernetes-group-version-kind": [_type(resource)]}
