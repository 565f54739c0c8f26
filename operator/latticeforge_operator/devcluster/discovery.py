"""Discovery documents: which groups, versions and resources the server has."""

from __future__ import annotations

from latticeforge_operator.devcluster.resources import JsonObject, Registry, Resource

_VERBS = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
_SUBRESOURCES = {
    "status": (None, ["get", "patch", "update"]),
    "log": (None, ["get"]),
    "eviction": ({"group": "policy", "version": "v1", "kind": "Eviction"}, ["create"]),
}
VERSION: JsonObject = {
    "major": "1",
    "minor": "37",
    "gitVersion": "v1.37.0+latticeforge-devcluster",
    "platform": "linux/amd64",
}


def document(registry: Registry, path: list[str]) -> JsonObject | None:
    """Returns the discovery document at a path, split at its slashes, or None."""
    match path:
        case ["version"]:
            found: JsonObject | None = VERSION
        case ["api"]:
            found = {"kind": "APIVersions", "versions": ["v1"]}
        case ["apis"]:
            groups = [_group(*group) for group in registry.groups().items()]
            found = {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
        case ["apis", group] if group in registry.groups():
            served = registry.groups()[group]
            found = {"kind": "APIGroup", "apiVersion": "v1", **_group(group, served)}
        case ["api", version]:
            found = _resources(registry, version)
        case ["apis", group, version]:
            found = _resources(registry, f"{group}/{version}")
        case _:
            found = None
    return found


def _group(name: str, versions: list[str]) -> JsonObject:
    listed = [{"groupVersion": f"{name}/{version}", "version": version} for version in versions]
    return {"name": name, "versions": listed, "preferredVersion": listed[0]}


def _resources(registry: Registry, group_version: str) -> JsonObject | None:
    served = registry.in_group_version(group_version)
    if not served:
        return None
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": group_version,
        "resources": [entry for resource in served for entry in _entries(resource)],
    }


def _entries(resource: Resource) -> list[JsonObject]:
    main: JsonObject = {
        "name": resource.key.plural,
        "singularName": resource.singular,
        "namespaced": resource.namespaced,
        "kind": resource.kind,
        "verbs": _VERBS,
    }
    if resource.short_names:
        main["shortNames"] = list(resource.short_names)
    if resource.categories:
        main["categories"] = list(resource.categories)
    return [main, *(_subresource(resource, name) for name in resource.subresources)]


def _subresource(resource: Resource, name: str) -> JsonObject:
    foreign, verbs = _SUBRESOURCES[name]
    return {
        "name": f"{resource.key.plural}/{name}",
        "singularName": "",
        "namespaced": resource.namespaced,
        **(foreign or {"kind": resource.kind}),
        "verbs": verbs,
    }
