"""What the API server itself owns of `metadata`: names, uid, generation, timestamps, carry-over."""

from __future__ import annotations

import re
import secrets
import uuid
from datetime import UTC, datetime
from typing import Any

from latticeforge_operator.devcluster import builtin_schemas, errors, validation
from latticeforge_operator.devcluster.errors import ApiError, FieldError
from latticeforge_operator.devcluster.resources import JsonObject, Resource

_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_SUBDOMAIN = rf"{_LABEL}(\.{_LABEL})*"
_QUALIFIED = r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]"
_WHY_SUBDOMAIN = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or "
    "'.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used "
    f"for validation is '{_SUBDOMAIN}')"
)
_WHY_LABEL = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and "
    "must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used "
    f"for validation is '{_LABEL}')"
)
_WHY_LABEL_VALUE = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or "
    "'.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value', "
    f"or '12345', regex used for validation is '({_QUALIFIED})?')"
)
_LABEL_NAMED = frozenset({"namespaces", "services"})
_SERVER_OWNED = (
    "uid",
    "creationTimestamp",
    "generation",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "selfLink",
)
_GENERATED_SUFFIX = "bcdfghjklmnpqrstvwxz2456789"


def timestamp(moment: datetime) -> str:
    """Renders a moment as `metav1.Time`: UTC, whole seconds."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def check_shape(resource: Resource, obj: Any, old: JsonObject | None = None) -> None:
    """Refuses what is no object, or whose metadata has other types than ObjectMeta's (400).

    Everything after may read metadata without looking. `old` is the version being replaced.
    """
    if not isinstance(obj, dict):
        faults = [FieldError.invalid("", obj, "must be an object")]
    else:
        before = validation.ABSENT if old is None else old["metadata"]
        value = obj.get("metadata")
        schema = builtin_schemas.object_meta()
        faults = [] if value is None else validation.faults(schema, value, before, "metadata")
    if faults:
        what = f'{resource.kind} in version "{resource.key.version}"'
        listed = ", ".join(map(str, faults))
        raise ApiError(400, f"{what} cannot be handled as a {resource.kind}: {listed}")


def created(resource: Resource, namespace: str, obj: JsonObject, now: datetime) -> JsonObject:
    """Returns the object as it enters the store: typed, named, with a new identity.

    Raises:
        ApiError: 400 when type or namespace contradict the request, 422 for a bad name or label.
    """
    checked_type(resource, obj)
    metadata = dict(obj.get("metadata") or {})
    for field in (*_SERVER_OWNED, "resourceVersion", "managedFields"):
        metadata.pop(field, None)
    place(resource, namespace, metadata)
    if not metadata.get("name") and metadata.get("generateName"):
        suffix = "".join(secrets.choice(_GENERATED_SUFFIX) for _ in range(5))
        metadata["name"] = metadata["generateName"][:58] + suffix
    metadata |= {"uid": str(uuid.uuid4()), "creationTimestamp": timestamp(now)}
    if resource.has_generation:
        metadata["generation"] = 1
    new = {"apiVersion": resource.key.group_version, "kind": resource.kind, **obj}
    new["metadata"] = _without_empty(metadata)
    check(resource, new)
    return new


def checked_type(resource: Resource, obj: JsonObject) -> None:
    """Refuses an object of another type than the path's (400)."""
    version = obj.get("apiVersion", resource.key.group_version)
    kind = obj.get("kind", resource.kind)
    if kind != resource.kind:
        message = (
            f'{kind} in version "{version}" cannot be handled as a {resource.kind}: converting '
            f"({version}, {kind}) to ({resource.key.group_version}, {resource.kind}): "
            "unknown conversion"
        )
        raise ApiError(400, message)
    if version != resource.key.group_version:
        message = (
            f"the API version in the data ({version}) does not match the expected API version "
            f"({resource.key.group_version})"
        )
        raise ApiError(400, message)


def place(resource: Resource, namespace: str, metadata: JsonObject) -> None:
    """Puts the request's namespace into metadata, or refuses a contradicting one (400)."""
    if not resource.namespaced:
        metadata.pop("namespace", None)
        return
    if metadata.setdefault("namespace", namespace) != namespace:
        raise ApiError(
            400,
            "the namespace of the provided object does not match the namespace sent on the request",
        )


def carried(old: JsonObject, new: JsonObject) -> JsonObject:
    """Returns `new` with everything that only the server may change taken from `old`."""
    before = old["metadata"]
    metadata = dict(new.get("metadata") or {})
    if not any(metadata.get("managedFields") or ()):
        metadata["managedFields"] = before.get("managedFields")
    for field in (*_SERVER_OWNED, "name", "namespace", "generateName"):
        metadata.pop(field, None)
        if field in before:
            metadata[field] = before[field]
    metadata["resourceVersion"] = before["resourceVersion"]
    return {**new, "metadata": _without_empty(metadata)}


def _without_empty(metadata: JsonObject) -> JsonObject:
    return {
        field: value
        for field, value in metadata.items()
        if value not in (None, "") and value not in ({}, [])
    }


def check(resource: Resource, obj: JsonObject) -> None:
    """Raises a 422 ApiError for names and labels that Kubernetes refuses."""
    metadata = obj["metadata"]
    faults = _name_faults(resource, metadata.get("name"))
    faults += _label_faults(metadata.get("labels") or {})
    if faults:
        name = metadata.get("name") or ""
        raise errors.invalid(resource.kind, resource.key.group, name, faults)


def _name_faults(resource: Resource, name: str | None) -> list[FieldError]:
    path = "metadata.name"
    if not name:
        return [FieldError.required(path, "name or generateName is required")]
    if resource.key.group == "rbac.authorization.k8s.io":
        bad = name in {".", ".."} or "/" in name or "%" in name
        return [FieldError.invalid(path, name, "may not contain '/' or '%'")] if bad else []
    is_label = resource.key.plural in _LABEL_NAMED
    pattern, why, limit = (
        (_LABEL, _WHY_LABEL, 63) if is_label else (_SUBDOMAIN, _WHY_SUBDOMAIN, 253)
    )
    if len(name) > limit:
        return [FieldError.invalid(path, name, f"must be no more than {limit} bytes")]
    return [] if re.fullmatch(pattern, name) else [FieldError.invalid(path, name, why)]


def _label_faults(labels: JsonObject, path: str = "metadata.labels") -> list[FieldError]:
    faults = []
    for key, value in labels.items():
        prefix, _, name = key.rpartition("/")
        if not re.fullmatch(_QUALIFIED, name) or len(name) > 63:
            faults.append(FieldError.invalid(path, key, "name part must be a qualified name"))
        if prefix and not re.fullmatch(_SUBDOMAIN, prefix):
            faults.append(FieldError.invalid(path, key, f"prefix part {_WHY_SUBDOMAIN}"))
        if not isinstance(value, str):
            faults.append(FieldError.invalid(path, value, f"label {key} must be a string"))
        elif len(value) > 63:
            faults.append(FieldError.invalid(path, value, "must be no more than 63 bytes"))
        elif value and not re.fullmatch(_QUALIFIED, value):
            faults.append(FieldError.invalid(path, value, _WHY_LABEL_VALUE))
    return faults


def desired_state(resource: Resource, obj: JsonObject) -> JsonObject:
    """What `metadata.generation` counts changes of: all but metadata, and status if isolated."""
    ignored = {"metadata", "status"} if resource.has_status else {"metadata"}
    return {field: value for field, value in obj.items() if field not in ignored}


def with_generation(resource: Resource, old: JsonObject, new: JsonObject) -> JsonObject:
    """Returns `new` with its generation raised when the desired state changed."""
    changed = desired_state(resource, old) != desired_state(resource, new)
    if not resource.has_generation or not changed:
        return new
    generation = old["metadata"].get("generation", 1) + 1
    return {**new, "metadata": {**new["metadata"], "generation": generation}}
