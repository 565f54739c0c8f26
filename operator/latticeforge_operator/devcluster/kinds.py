"""What built-in kinds do beyond their schemas: derived fields, and fields that may not change.

Each kind that has rules stands in `RULES`; the rules of Jobs and of CustomResourceDefinitions are
long enough for modules of their own.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from latticeforge_operator.devcluster import definitions, job_rules
from latticeforge_operator.devcluster.builtins import CRDS, JOBS, NAMESPACES, PODS
from latticeforge_operator.devcluster.errors import FieldError
from latticeforge_operator.devcluster.resources import JsonObject, ResourceKey

_POD_MUTABLE = (
    "spec.containers[*].image,spec.initContainers[*].image,spec.activeDeadlineSeconds,"
    "spec.tolerations (only additions to existing tolerations),"
    "spec.terminationGracePeriodSeconds (allow it to be set to 1 if it was previously negative)"
)


def _unchanged(obj: JsonObject, _now: datetime) -> JsonObject:
    return obj


def _no_faults(*_objects: JsonObject) -> list[FieldError]:
    return []


@dataclass(frozen=True, slots=True)
class Rules:
    """Rules of one kind.

    Attributes:
        complete: derives fields of a new object; returns it, changed or not.
        settle: derives fields after every write, such as a Secret's data from stringData.
        check: what is wrong with an object that fits its schema.
        check_update: which changes between an old and a new object are not allowed.
        keeps_status: whether a new object may bring a status.
    """

    complete: Callable[[JsonObject, datetime], JsonObject] = _unchanged
    settle: Callable[[JsonObject, datetime], JsonObject] = _unchanged
    check: Callable[[JsonObject], list[FieldError]] = _no_faults
    check_update: Callable[[JsonObject, JsonObject], list[FieldError]] = _no_faults
    keeps_status: bool = False


def immutable(path: str, value: object) -> FieldError:
    """The fault of changing a field that may not change."""
    return FieldError.invalid(path, value, "field is immutable")


def _namespace(obj: JsonObject, _now: datetime) -> JsonObject:
    metadata = obj["metadata"]
    labels = {**(metadata.get("labels") or {}), "kubernetes.io/metadata.name": metadata["name"]}
    metadata = {**metadata, "labels": labels}
    return {**obj, "metadata": metadata, "status": {"phase": "Active"}}


def _pod(obj: JsonObject, _now: datetime) -> JsonObject:
    return {**obj, "status": {"phase": "Pending"}}


def _pod_update(old: JsonObject, new: JsonObject) -> list[FieldError]:
    if _fixed_pod_spec(old, old) == _fixed_pod_spec(new, old):
        return []
    why = f"pod updates may not change fields other than {_POD_MUTABLE}"
    return [FieldError.forbidden("spec", why)]


def _fixed_pod_spec(pod: JsonObject, old: JsonObject) -> JsonObject:
    """The part of a pod's spec that may not change; a pod is bound to a node only once."""
    mutable = {"activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds"}
    if not old["spec"].get("nodeName"):
        mutable |= {"nodeName", "schedulingGates"}
    fixed = {field: value for field, value in pod["spec"].items() if field not in mutable}
    for field in ("containers", "initContainers"):
        if field in fixed:
            fixed[field] = [{**container, "image": None} for container in fixed[field]]
    return fixed


def _claim(obj: JsonObject, _now: datetime) -> JsonObject:
    return {**obj, "status": {"phase": "Pending"}}


def _claim_update(old: JsonObject, new: JsonObject) -> list[FieldError]:
    def fixed(claim: JsonObject) -> JsonObject:
        mutable = {"resources", "volumeAttributesClassName"}
        if not old["spec"].get("volumeName"):
            mutable.add("volumeName")
        return {field: value for field, value in claim["spec"].items() if field not in mutable}

    if fixed(old) == fixed(new):
        return []
    why = (
        "spec is immutable after creation except resources.requests and volumeAttributesClassName "
        "for bound claims"
    )
    return [FieldError.forbidden("spec", why)]


def _secret_data(obj: JsonObject, _now: datetime) -> JsonObject:
    if not obj.get("stringData"):
        return obj
    encoded = {
        key: base64.b64encode(text.encode()).decode() for key, text in obj["stringData"].items()
    }
    rest = {field: value for field, value in obj.items() if field != "stringData"}
    return {**rest, "data": {**(obj.get("data") or {}), **encoded}}


def _secret_check(obj: JsonObject) -> list[FieldError]:
    faults = []
    for key, text in (obj.get("data") or {}).items():
        try:
            base64.b64decode(text, validate=True)
        except ValueError:
            faults.append(FieldError.invalid(f"data[{key}]", "<redacted>", "must be base64"))
    return faults


def _data_update(old: JsonObject, new: JsonObject) -> list[FieldError]:
    faults = []
    if old.get("type") != new.get("type"):
        faults.append(immutable("type", new.get("type")))
    if old.get("immutable"):
        faults += [
            FieldError.forbidden(field, "field is immutable when `immutable` is set")
            for field in ("immutable", "data", "binaryData")
            if old.get(field) != new.get(field)
        ]
    return faults


RULES: dict[ResourceKey, Rules] = {
    NAMESPACES: Rules(complete=_namespace),
    PODS: Rules(complete=_pod, check_update=_pod_update),
    JOBS: Rules(
        complete=job_rules.complete, check=job_rules.check, check_update=job_rules.check_update
    ),
    CRDS: Rules(settle=definitions.establish, check=definitions.check),
    ResourceKey("v1", "nodes"): Rules(keeps_status=True),
    ResourceKey("v1", "persistentvolumeclaims"): Rules(complete=_claim, check_update=_claim_update),
    ResourceKey("v1", "secrets"): Rules(
        settle=_secret_data, check=_secret_check, check_update=_data_update
    ),
    ResourceKey("v1", "configmaps"): Rules(check_update=_data_update),
}
"""The rules of each built-in kind that has any."""
NO_RULES = Rules()
