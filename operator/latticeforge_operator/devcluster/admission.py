"""What stands between a request and the store: isolation of subresources, schema, kind's rules."""

from __future__ import annotations

from datetime import datetime

from latticeforge_operator.devcluster import errors, kinds, schema, validation
from latticeforge_operator.devcluster.errors import FieldError
from latticeforge_operator.devcluster.resources import JsonObject, Resource


def check_preconditions(resource: Resource, old: JsonObject, new: JsonObject) -> None:
    """Refuses a write that is based on another version (409), or another object, than stored."""
    wanted = new.get("metadata") or {}
    stored = old["metadata"]
    name = stored["name"]
    if wanted.get("uid") not in {None, "", stored["uid"]}:
        raise errors.precondition_failed(resource.key, name, "UID", wanted["uid"], stored["uid"])
    version = wanted.get("resourceVersion")
    if resource.custom and not version:
        fault = FieldError.invalid("metadata.resourceVersion", 0, "must be specified for an update")
        raise errors.invalid(resource.kind, resource.key.group, name, [fault])
    if version not in {None, "", stored["resourceVersion"]}:
        raise errors.modified(resource.key, name)


def isolated(
    resource: Resource, old: JsonObject, new: JsonObject, subresource: str | None
) -> JsonObject:
    """Returns `new` reduced to the part that this endpoint may write."""
    if subresource == "status":
        rest = {field: value for field, value in old.items() if field != "status"}
        metadata = new["metadata"]
        if resource.custom:
            metadata = {**old["metadata"], "managedFields": metadata.get("managedFields")}
        rest["metadata"] = metadata
        return {**rest, "status": new["status"]} if "status" in new else rest
    if not resource.has_status:
        return new
    rest = {field: value for field, value in new.items() if field != "status"}
    return {**rest, "status": old["status"]} if "status" in old else rest


def admit_create(resource: Resource, obj: JsonObject, now: datetime) -> JsonObject:
    """Returns a new object as it may enter the store, or raises a 422 ApiError."""
    rules = kinds.RULES.get(resource.key, kinds.NO_RULES)
    if resource.has_status and not rules.keeps_status:
        obj = {field: value for field, value in obj.items() if field != "status"}
    obj = _fitted(resource, obj)
    faults = validation.faults(resource.schema, obj)
    if not faults:
        obj = rules.settle(rules.complete(obj, now), now)
        faults = rules.check(obj)
    _refuse(resource, obj, faults)
    return obj


def admit_update(resource: Resource, old: JsonObject, new: JsonObject, now: datetime) -> JsonObject:
    """Returns a changed object as it may enter the store, or raises a 422 ApiError."""
    rules = kinds.RULES.get(resource.key, kinds.NO_RULES)
    new = _fitted(resource, new)
    faults = validation.faults(resource.schema, new, old)
    if not faults and new != old:
        new = rules.settle(new, now)
        faults = rules.check(new) + rules.check_update(old, new)
    _refuse(resource, new, faults)
    return new


def _fitted(resource: Resource, obj: JsonObject) -> JsonObject:
    fitted: JsonObject = schema.default(resource.schema, schema.prune(resource.schema, obj))
    return fitted


def _refuse(resource: Resource, obj: JsonObject, faults: list[FieldError]) -> None:
    if faults:
        name = obj["metadata"]["name"]
        raise errors.invalid(resource.kind, resource.key.group, name, faults)
