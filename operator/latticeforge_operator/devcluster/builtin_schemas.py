"""Structural schemas of the built-in kinds, derived from the Kubernetes client's own models.

The models carry names, types, required fields and descriptions; how lists merge, and the few
defaults that controllers rely on, are not in them and stand in the tables below
(from the `x-kubernetes-*` extensions and defaults of the Kubernetes API reference).
"""

from __future__ import annotations

import types
from collections.abc import Callable
from datetime import datetime
from functools import cache
from typing import Annotated, Any, Union, get_args, get_origin

from kubernetes.aio.client import models
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from latticeforge_operator.devcluster.structure import Schema

_Keys = tuple[str, ...]
_LIST_KEYS: dict[str, dict[str, _Keys]] = {
    "V1ObjectMeta": {"ownerReferences": ("uid",)},
    "V1PodSpec": {
        "containers": ("name",),
        "initContainers": ("name",),
        "ephemeralContainers": ("name",),
        "volumes": ("name",),
        "imagePullSecrets": ("name",),
        "hostAliases": ("ip",),
        "topologySpreadConstraints": ("topologyKey", "whenUnsatisfiable"),
        "schedulingGates": ("name",),
        "resourceClaims": ("name",),
    },
    "V1Container": {
        "env": ("name",),
        "ports": ("containerPort", "protocol"),
        "volumeMounts": ("mountPath",),
        "volumeDevices": ("devicePath",),
    },
    "V1ResourceRequirements": {"claims": ("name",)},
    "V1PodStatus": {"conditions": ("type",), "podIPs": ("ip",), "resourceClaimStatuses": ("name",)},
    "V1ServiceSpec": {"ports": ("port", "protocol")},
    "V1ServiceStatus": {"conditions": ("type",)},
    "V1ServiceAccount": {"secrets": ("name",)},
    "V1NodeStatus": {"conditions": ("type",), "addresses": ("type",)},
    "V1NamespaceStatus": {"conditions": ("type",)},
    "V1PersistentVolumeClaimStatus": {"conditions": ("type",)},
    "V1DeploymentStatus": {"conditions": ("type",)},
    "V1ReplicaSetStatus": {"conditions": ("type",)},
    "V1PodDisruptionBudgetStatus": {"conditions": ("type",)},
    "V1CustomResourceDefinitionStatus": {"conditions": ("type",)},
    "V1ValidatingWebhookConfiguration": {"webhooks": ("name",)},
    "V1MutatingWebhookConfiguration": {"webhooks": ("name",)},
}
# Lists that apply replaces whole, and that strategic merge patches nevertheless merge by key.
_PATCH_KEYS = {
    "V1JobStatus": {"conditions": "type"},
    "V1ServiceAccount": {"imagePullSecrets": "name"},
}
_SETS = {
    "V1ObjectMeta": {"finalizers"},
    "V1UncountedTerminatedPods": {"failed", "succeeded"},
    "V1PodFailurePolicyOnExitCodesRequirement": {"values"},
    "V1NodeSpec": {"podCIDRs"},
}
_ATOMIC = frozenset(
    {
        "V1LabelSelector",
        "V1LocalObjectReference",
        "V1NodeSelector",
        "V1NodeSelectorTerm",
        "V1ObjectFieldSelector",
        "V1ObjectReference",
        "V1OwnerReference",
        "V1ResourceFieldSelector",
        "V1ConfigMapKeySelector",
        "V1SecretKeySelector",
        "V1SecretReference",
        "V1TypedLocalObjectReference",
        "V1RoleRef",
    }
)
_ATOMIC_MAPS = {"V1PodSpec": {"nodeSelector"}, "V1ServiceSpec": {"selector"}}
# Go decodes an absent spec to an empty one, so what is missing is always a field of it.
_WITH_SPEC = (
    "V1Pod",
    "V1PodTemplateSpec",
    "V1Job",
    "V1Deployment",
    "V1ReplicaSet",
    "V1Service",
    "V1PersistentVolumeClaim",
)
_DEFAULTS: dict[str, dict[str, Any]] = {
    **{kind: {"spec": {}} for kind in _WITH_SPEC},
    "V1ContainerPort": {"protocol": "TCP"},
    "V1ServicePort": {"protocol": "TCP"},
    "V1PodSpec": {
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": 30,
        "dnsPolicy": "ClusterFirst",
        "schedulerName": "default-scheduler",
        "securityContext": {},
        "enableServiceLinks": True,
    },
    "V1Container": {
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
        "resources": {},
    },
    "V1JobSpec": {
        "completionMode": "NonIndexed",
        "suspend": False,
        "podReplacementPolicy": "TerminatingOrFailed",
        "manualSelector": False,
    },
    "V1Secret": {"type": "Opaque"},
    "V1ServiceSpec": {"type": "ClusterIP", "sessionAffinity": "None"},
    "V1PersistentVolumeClaimSpec": {"volumeMode": "Filesystem"},
    "V1ConfigMapVolumeSource": {"defaultMode": 420},
    "V1SecretVolumeSource": {"defaultMode": 420},
    "V1ProjectedVolumeSource": {"defaultMode": 420},
    "V1DownwardAPIVolumeSource": {"defaultMode": 420},
}
_QUANTITIES = frozenset(
    {"limits", "requests", "capacity", "allocatable", "allocatedResources", "overhead"}
)
_SCALARS: dict[Any, Schema] = {
    str: {"type": "string"},
    bytes: {"type": "string", "format": "byte"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    # The API accepts more shapes of a timestamp than a format check would: it stays a string.
    datetime: {"type": "string"},
}
_ANYTHING: Schema = {"x-kubernetes-preserve-unknown-fields": True}
_INT_OR_STRING: Schema = {"x-kubernetes-int-or-string": True}


@cache
def for_kind(kind: str) -> Schema:
    """Returns the schema of a built-in kind."""
    if kind == "Event":
        return _object(models.CoreV1Event)
    return _object(getattr(models, f"V1{kind}"))


@cache
def delete_options() -> Schema:
    """Returns the schema of the options that a deletion takes in its body."""
    return _object(models.V1DeleteOptions)


@cache
def object_meta() -> Schema:
    """Returns the schema of `metadata`, which custom resources share."""
    return _object(models.V1ObjectMeta)


@cache
def _object(model: type[BaseModel]) -> Schema:
    if model is models.V1JSONSchemaProps:
        return {"type": "object", **_ANYTHING}
    fields = {_json_name(name, info): info for name, info in model.model_fields.items()}
    properties = {name: _field(model.__name__, name, info) for name, info in fields.items()}
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    if required := [name for name, info in fields.items() if info.is_required()]:
        schema["required"] = required
    if model.__name__ in _ATOMIC:
        schema["x-kubernetes-map-type"] = "atomic"
    return schema


def _json_name(name: str, info: FieldInfo) -> str:
    return info.serialization_alias or name


def _field(model: str, name: str, info: FieldInfo) -> Schema:
    schema = dict(_type(info.annotation))
    if name in _QUANTITIES and "additionalProperties" in schema:
        schema["additionalProperties"] = _INT_OR_STRING
    if info.description:
        schema["description"] = info.description
    if name in _DEFAULTS.get(model, {}):
        schema["default"] = _DEFAULTS[model][name]
    if name in _ATOMIC_MAPS.get(model, ()):
        schema["x-kubernetes-map-type"] = "atomic"
    return schema | _list_type(model, name)


def _list_type(model: str, name: str) -> dict[str, Any]:
    if name in _SETS.get(model, ()):
        return {"x-kubernetes-list-type": "set"}
    if keys := _LIST_KEYS.get(model, {}).get(name):
        return {
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": list(keys),
            "x-kubernetes-patch-merge-key": keys[0],
        }
    if key := _PATCH_KEYS.get(model, {}).get(name):
        return {"x-kubernetes-list-type": "atomic", "x-kubernetes-patch-merge-key": key}
    return {}


def _type(annotation: Any) -> Schema:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in _GENERIC:
        return _GENERIC[origin](arguments)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return _object(annotation)
    return _SCALARS.get(annotation, _ANYTHING)


def _union(arguments: tuple[Any, ...]) -> Schema:
    kinds = [_type(argument) for argument in arguments if argument is not type(None)]
    if all(kind.get("type") == kinds[0].get("type") for kind in kinds):
        return kinds[0]
    names = {kind.get("type") for kind in kinds}
    if names == {"integer", "string"}:
        return _INT_OR_STRING
    # Float is only ever an alternative spelling of an integer.
    return {"type": "number"} if names == {"integer", "number"} else _ANYTHING


_GENERIC: dict[Any, Callable[[tuple[Any, ...]], Schema]] = {
    Annotated: lambda arguments: _type(arguments[0]),
    Union: _union,
    types.UnionType: _union,
    list: lambda arguments: {"type": "array", "items": _type(arguments[0])},
    dict: lambda arguments: {"type": "object", "additionalProperties": _type(arguments[1])},
}
