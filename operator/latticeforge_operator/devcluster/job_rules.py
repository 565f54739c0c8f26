"""The API server's own rules for Jobs: defaults, the generated selector, what may not change."""

from __future__ import annotations

from datetime import datetime

from latticeforge_operator.devcluster.errors import FieldError
from latticeforge_operator.devcluster.resources import JsonObject

_NO_LIMIT = 2**31 - 1
_UNIQUE_LABEL = "batch.kubernetes.io/controller-uid"
_FIXED = (
    "selector",
    "completionMode",
    "podFailurePolicy",
    "backoffLimitPerIndex",
    "managedBy",
    "successPolicy",
    "podReplacementPolicy",
)
_SCHEDULING = frozenset({"nodeSelector", "affinity", "tolerations", "schedulingGates"})


def complete(job: JsonObject, _now: datetime) -> JsonObject:
    """Returns a new Job with its counts defaulted and the selector that finds only its pods."""
    spec = dict(job["spec"])
    if spec.get("completions") is None and spec.get("parallelism") is None:
        spec["completions"] = 1
    spec.setdefault("parallelism", 1)
    per_index = spec.get("backoffLimitPerIndex") is not None
    spec.setdefault("backoffLimit", _NO_LIMIT if per_index else 6)
    if not spec.get("manualSelector"):
        spec |= _selected(job, spec)
    return {**job, "spec": spec}


def _selected(job: JsonObject, spec: JsonObject) -> JsonObject:
    name, uid = job["metadata"]["name"], job["metadata"]["uid"]
    template = spec.get("template") or {}
    metadata = template.get("metadata") or {}
    generated = {
        _UNIQUE_LABEL: uid,
        "batch.kubernetes.io/job-name": name,
        "controller-uid": uid,
        "job-name": name,
    }
    labels = {**(metadata.get("labels") or {}), **generated}
    return {
        "selector": {"matchLabels": {_UNIQUE_LABEL: uid}},
        "template": {**template, "metadata": {**metadata, "labels": labels}},
    }


def check(job: JsonObject) -> list[FieldError]:
    """Returns what is wrong with a Job that fits its schema."""
    spec = job["spec"]
    faults = []
    for field in ("parallelism", "completions", "backoffLimit", "activeDeadlineSeconds",
                  "ttlSecondsAfterFinished"):  # fmt: skip
        value = spec.get(field)
        if value is not None and value < 0:
            why = "must be greater than or equal to 0"
            faults.append(FieldError.invalid(f"spec.{field}", value, why))
    if spec.get("completionMode") == "Indexed" and spec.get("completions") is None:
        why = "when completion mode is Indexed"
        faults.append(FieldError.required("spec.completions", why))
    return faults + _restart_policy_faults(spec)


def _restart_policy_faults(spec: JsonObject) -> list[FieldError]:
    path = "spec.template.spec.restartPolicy"
    policy = spec["template"].get("spec", {}).get("restartPolicy")
    if policy not in {"Never", "OnFailure"}:
        shown = FieldError.unsupported(path, policy, ["OnFailure", "Never"])
        return [FieldError(path, shown.type, f"Required value: valid values: {shown.detail}")]
    if spec.get("podFailurePolicy") and policy != "Never":
        why = 'only "Never" is supported when podFailurePolicy is specified'
        return [FieldError.invalid(path, policy, why)]
    return []


def check_update(old: JsonObject, new: JsonObject) -> list[FieldError]:
    """Returns which changes of a Job are not allowed."""
    before, after = old["spec"], new["spec"]
    faults = [
        FieldError.invalid(f"spec.{field}", after.get(field), "field is immutable")
        for field in _FIXED
        if before.get(field) != after.get(field)
    ]
    if before.get("completions") != after.get("completions") and not _is_elastic(before, after):
        why = "field is immutable"
        faults.append(FieldError.invalid("spec.completions", after.get("completions"), why))
    # What decides on scheduling may change until the first pod has been started.
    loose = before.get("suspend") and not old.get("status", {}).get("startTime")
    if _fixed_template(before, loose=bool(loose)) != _fixed_template(after, loose=bool(loose)):
        why = "field is immutable"
        faults.append(FieldError.invalid("spec.template", after["template"], why))
    return faults


def _is_elastic(before: JsonObject, after: JsonObject) -> bool:
    indexed = before.get("completionMode") == "Indexed"
    return indexed and after.get("completions") == after.get("parallelism")


def _fixed_template(spec: JsonObject, *, loose: bool) -> JsonObject:
    template: JsonObject = spec["template"]
    if not loose:
        return template
    pod = {field: value for field, value in template["spec"].items() if field not in _SCHEDULING}
    return {"spec": pod}
