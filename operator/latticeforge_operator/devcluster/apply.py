"""Who owns which field: `metadata.managedFields`, and server-side apply on top of it.

Follows the merge semantics of Kubernetes' structured-merge-diff: an applier owns what it says, a
conflict arises only where it would change a value someone else owns, and what it no longer says
disappears unless someone else owns it too. A plain update takes what it changes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from latticeforge_operator.devcluster import fieldsets, schema
from latticeforge_operator.devcluster.errors import ApiError
from latticeforge_operator.devcluster.fieldsets import FieldSet
from latticeforge_operator.devcluster.metadata import checked_type, place, timestamp
from latticeforge_operator.devcluster.resources import JsonObject, Resource

_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
_UNTRACKED_METADATA = (
    "name",
    "namespace",
    "generateName",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "selfLink",
    "uid",
    "generation",
    "managedFields",
    "resourceVersion",
)
_UNTRACKED: Mapping[str, Any] = {
    "f:apiVersion": {},
    "f:kind": {},
    "f:metadata": {f"f:{field}": {} for field in _UNTRACKED_METADATA},
}


@dataclass(frozen=True, slots=True)
class Manager:
    """Identity of an entry of managedFields."""

    name: str
    operation: Literal["Apply", "Update"]
    api_version: str
    subresource: str = ""

    def describe(self, time: str) -> str:
        """Names the manager as conflict messages do."""
        named = f'"{self.name}"'
        if self.subresource:
            named += f' with subresource "{self.subresource}"'
        return named if self.operation == "Apply" else f"{named} using {self.api_version} at {time}"


@dataclass(slots=True)
class _Claim:
    fields: FieldSet
    time: str


@dataclass(frozen=True, slots=True)
class ApplyRequest:
    """Who applies, how, to what and when."""

    manager: str
    force: bool
    subresource: str | None
    now: datetime


def _read(resource: Resource, obj: JsonObject | None) -> dict[Manager, _Claim]:
    entries = ((obj or {}).get("metadata") or {}).get("managedFields") or []
    if not all(fieldsets.is_field_set(entry.get("fieldsV1") or {}) for entry in entries):
        raise ApiError(400, "metadata.managedFields: fieldsV1 must be a set of fields")
    return {
        Manager(
            entry.get("manager", ""),
            entry.get("operation", "Update"),
            entry.get("apiVersion", resource.key.group_version),
            entry.get("subresource", ""),
        ): _Claim(entry.get("fieldsV1") or {}, entry.get("time", ""))
        for entry in entries
        if entry
    }


def _written(claims: dict[Manager, _Claim]) -> list[JsonObject]:
    ordered = sorted(claims.items(), key=lambda item: (item[0].operation, item[1].time))
    return [
        {
            "manager": manager.name,
            "operation": manager.operation,
            "apiVersion": manager.api_version,
            "time": claim.time,
            "fieldsType": "FieldsV1",
            "fieldsV1": claim.fields,
        }
        | ({"subresource": manager.subresource} if manager.subresource else {})
        for manager, claim in ordered
        if claim.fields
    ]


def with_entries(obj: JsonObject, entries: list[JsonObject] | None) -> JsonObject:
    """Returns the object with these managedFields."""
    metadata = {field: v for field, v in obj["metadata"].items() if field != "managedFields"}
    if entries:
        metadata["managedFields"] = entries
    return {**obj, "metadata": metadata}


def track(
    resource: Resource,
    old: JsonObject | None,
    new: JsonObject,
    request: ApplyRequest,
) -> JsonObject:
    """Returns `new` with managedFields after an update: the writer owns what it changed.

    `new` may bring managedFields of its own, as `kubectl apply --server-side` does when it takes
    over from client-side apply; otherwise they continue from `old`.
    """
    claims = _read(resource, new if new["metadata"].get("managedFields") else old)
    changes = fieldsets.compare(_unmanaged(old or {}), _unmanaged(new), resource.schema)
    touched = fieldsets.without(changes.touched, _UNTRACKED)
    if touched:
        me = Manager(
            request.manager, "Update", resource.key.group_version, request.subresource or ""
        )
        for manager, claim in claims.items():
            # Co-owners of a value keep it only as long as it stays what they set.
            if manager != me:
                claim.fields = fieldsets.difference(claim.fields, touched)
        mine = claims.get(me, _Claim({}, ""))
        written = fieldsets.without(changes.written, _UNTRACKED)
        fields = fieldsets.union(fieldsets.difference(mine.fields, changes.removed), written)
        if fields != mine.fields:
            claims[me] = _Claim(fields, timestamp(request.now))
    return with_entries(new, _written(claims))


def _unmanaged(obj: JsonObject) -> JsonObject:
    if "managedFields" not in obj.get("metadata", ()):
        return obj
    return with_entries(obj, None)


def checked_config(
    resource: Resource, namespace: str, name: str, config: JsonObject, subresource: str | None
) -> JsonObject:
    """Returns an applied configuration reduced to what this request may say.

    Raises:
        ApiError: 400 when type, name or namespace contradict the request or managedFields are set.
    """
    if not config.get("apiVersion") or not config.get("kind"):
        raise ApiError(400, "an applied configuration must set apiVersion and kind")
    checked_type(resource, config)
    metadata = dict(config.get("metadata") or {})
    if metadata.pop("managedFields", None):
        raise ApiError(400, "metadata.managedFields must be nil")
    if metadata.setdefault("name", name) != name:
        message = (
            f"the name of the object ({metadata['name']}) does not match the name on the URL "
            f"({name})"
        )
        raise ApiError(400, message)
    place(resource, namespace, metadata)
    config = {**config, "metadata": metadata}
    _check_declared(resource, config)
    if subresource:
        allowed = {"apiVersion", "kind", "metadata", subresource}
        return {field: value for field, value in config.items() if field in allowed}
    if resource.has_status:
        config.pop("status", None)
    return config


def _check_declared(resource: Resource, config: JsonObject) -> None:
    unknown = [f".{path}: field not declared in schema" for path in
               schema.unknown_fields(resource.schema, config)]  # fmt: skip
    if unknown:
        metadata = config["metadata"]
        where = f"{metadata.get('namespace', '')}/{metadata['name']}"
        what = f"{resource.key.group_version}, Kind={resource.kind}"
        listed = unknown[0] if len(unknown) == 1 else "errors:\n  " + "\n  ".join(unknown)
        # The real server answers so too: an untyped 500 that names the field.
        message = f"failed to create typed patch object ({where}; {what}): {listed}"
        raise ApiError(500, message, reason="")


def claim(
    resource: Resource, new: JsonObject, config: JsonObject, request: ApplyRequest
) -> JsonObject:
    """Returns an object that an apply creates, owned by its applier."""
    return with_entries(
        new, _written({_applier(resource, request): _said(resource, config, request)})
    )


def _applier(resource: Resource, request: ApplyRequest) -> Manager:
    return Manager(request.manager, "Apply", resource.key.group_version, request.subresource or "")


def _said(resource: Resource, config: JsonObject, request: ApplyRequest) -> _Claim:
    fields = fieldsets.without(fieldsets.of(config, resource.schema), _UNTRACKED)
    if request.subresource:
        fields = {e: below for e, below in fields.items() if e == f"f:{request.subresource}"}
    return _Claim(fields, timestamp(request.now))


def apply(
    resource: Resource, live: JsonObject, config: JsonObject, request: ApplyRequest
) -> JsonObject:
    """Returns what a configuration makes of a live object, managedFields included.

    Raises:
        ApiError: 409 naming the managers whose fields would change, unless forced.
    """
    claims = _read(resource, live)
    me = _applier(resource, request)
    before = claims.pop(me, _Claim({}, ""))
    mine = _said(resource, config, request)
    live = _unmanaged(live)
    merged = fieldsets.merge(live, config, resource.schema)
    # A configuration always says whose it is, although nobody is recorded as owner of that.
    everyone: FieldSet = fieldsets.union(mine.fields, {"f:metadata": {"f:name": {}}})
    for other in claims.values():
        everyone = fieldsets.union(everyone, other.fields)
    merged = fieldsets.remove(merged, resource.schema, before.fields, everyone)
    changes = fieldsets.compare(live, merged, resource.schema)
    conflicts = _conflicts(claims, changes.written)
    if conflicts and not (request.force or _continues_client_side(resource, live, conflicts, me)):
        raise _conflict_error(conflicts, claims)
    for manager, other in claims.items():
        lost = fieldsets.union(conflicts.get(manager, {}), changes.removed)
        other.fields = fieldsets.difference(other.fields, lost)
    claims[me] = before if before.fields == mine.fields else mine
    return with_entries(merged, _written(claims))


def _conflicts(claims: dict[Manager, _Claim], written: FieldSet) -> dict[Manager, FieldSet]:
    found = ((m, fieldsets.intersection(claim.fields, written)) for m, claim in claims.items())
    return {manager: fields for manager, fields in found if fields}


def _continues_client_side(
    resource: Resource, live: JsonObject, conflicts: dict[Manager, FieldSet], me: Manager
) -> bool:
    """Whether kubectl only conflicts with what it applied itself, from the client's side."""
    annotations = live["metadata"].get("annotations") or {}
    if me.name != "kubectl" or _LAST_APPLIED not in annotations:
        return False
    try:
        last = fieldsets.of(json.loads(annotations[_LAST_APPLIED]), resource.schema)
    except (ValueError, AttributeError):  # Anyone may write an annotation.
        return False
    return not any(fieldsets.difference(fields, last) for fields in conflicts.values())


def _conflict_error(conflicts: dict[Manager, FieldSet], claims: dict[Manager, _Claim]) -> ApiError:
    named = {
        manager.describe(claims[manager].time): list(fieldsets.paths(fields))
        for manager, fields in conflicts.items()
    }
    causes = [
        {"reason": "FieldManagerConflict", "message": f"conflict with {who}", "field": path}
        for who, found in named.items()
        for path in found
    ]
    if len(causes) == 1:
        text = f"1 conflict: {causes[0]['message']}: {causes[0]['field']}"
    else:
        lines = (
            "\n".join([f"conflicts with {who}:", *(f"- {path}" for path in found)])
            for who, found in sorted(named.items())
        )
        text = f"{len(causes)} conflicts: " + "\n".join(lines)
    return ApiError(409, f"Apply failed with {text}", details={"causes": causes})
