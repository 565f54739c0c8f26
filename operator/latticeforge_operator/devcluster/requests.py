"""Reads HTTP requests of the Kubernetes API: which object, which body, which options."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any, Literal, cast

import yaml
from aiohttp import web

from latticeforge_operator.devcluster import builtin_schemas, protobuf, validation
from latticeforge_operator.devcluster.authorization import Action
from latticeforge_operator.devcluster.builtins import JOBS
from latticeforge_operator.devcluster.deletion import Propagation
from latticeforge_operator.devcluster.errors import ApiError, unknown_resource
from latticeforge_operator.devcluster.resources import JsonObject, Registry, Resource, ResourceKey
from latticeforge_operator.devcluster.store import WriteOptions

FieldValidation = Literal["Ignore", "Warn", "Strict"]
_PROTOBUF = "application/vnd.kubernetes.protobuf"


@dataclass(frozen=True, slots=True)
class Target:
    """What a path names. `namespace` is None for all namespaces, and empty for cluster scope."""

    resource: Resource
    namespace: str | None
    name: str | None
    subresource: str | None

    @property
    def key(self) -> ResourceKey:
        """The resource's key."""
        return self.resource.key

    def object(self) -> tuple[ResourceKey, str, str]:
        """Key, namespace and name of the one object that the path names."""
        if self.name is None or self.namespace is None:
            raise unknown_resource()
        return self.key, self.namespace, self.name


def target(registry: Registry, path: list[str]) -> Target:
    """Resolves a path, split at its slashes; raises a 404 ApiError when nothing is served there."""
    match path:
        case ["api", version, *rest]:
            group_version = version
        case ["apis", group, version, *rest]:
            group_version = f"{group}/{version}"
        case _:
            raise unknown_resource()
    namespace: str | None = None
    if len(rest) >= 3 and rest[0] == "namespaces" and rest[2] not in {"status", "finalize"}:
        namespace, rest = rest[1], rest[2:]
    if not 1 <= len(rest) <= 3:
        raise unknown_resource()
    plural, name, subresource = (*rest, None, None)[:3]
    resource = registry[ResourceKey(group_version, plural or "")]
    if subresource is not None and subresource not in resource.subresources:
        raise unknown_resource()
    return Target(resource, _scope(resource, namespace), name, subresource)


def _scope(resource: Resource, namespace: str | None) -> str | None:
    if not resource.namespaced:
        if namespace is not None:
            raise unknown_resource()
        return ""
    return namespace


_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch"}


def action(request: web.Request, target: Target) -> Action:
    """What a request wants to do, as roles name it."""
    reads = "watch" if flag(request, "watch") else "get" if target.name else "list"
    deletes = "delete" if target.name else "deletecollection"
    verb = {"GET": reads, "DELETE": deletes, **_VERBS}[request.method]
    subresource, namespace = target.subresource or "", target.namespace or ""
    return Action(verb, target.key, subresource, namespace, target.name or "")


def flag(request: web.Request, name: str) -> bool:
    """Whether a boolean query parameter is set."""
    return request.query.get(name) in {"true", "1"}


def whole_number(request: web.Request, name: str) -> int | None:
    """Reads an integer query parameter; raises a 400 ApiError for any other text."""
    text = request.query.get(name)
    if not text:
        return None
    if not text.isdecimal():
        raise ApiError(400, f"invalid value for parameter {name}: {text!r} is no whole number")
    return int(text)


async def body(request: web.Request) -> Any:
    """Decodes a JSON, YAML or protobuf body; raises a 400 or 415 ApiError."""
    raw = await request.read()
    if request.content_type == _PROTOBUF:
        return protobuf.decode(raw)
    try:
        # Apply patches are YAML by content type and JSON in practice.
        if raw.lstrip()[:1] in {b"{", b"["}:
            return json.loads(raw, parse_float=_finite, parse_constant=_finite)
        return yaml.safe_load(raw)
    except (ValueError, yaml.YAMLError) as error:
        raise ApiError(400, f"error decoding the request body: {error}") from error


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is no JSON number")
    return number


async def object_body(request: web.Request) -> JsonObject:
    """Decodes a body that must be an object."""
    decoded = await body(request)
    if not isinstance(decoded, dict):
        raise ApiError(400, "the request body must be an object")
    return decoded


def write_options(request: web.Request) -> WriteOptions:
    """Reads who writes (fieldManager, else the user agent's name) and whether it is for real."""
    dry_run = request.query.get("dryRun", "")
    if dry_run not in {"", "All"}:
        raise ApiError(400, f'dryRun: Unsupported value: "{dry_run}": supported values: "All"')
    agent = request.headers.get("User-Agent", "unknown").partition("/")[0]
    return WriteOptions(request.query.get("fieldManager") or agent, dry_run == "All")


def field_validation(request: web.Request) -> FieldValidation:
    """Reads what shall happen to unknown fields; the server's default is Warn."""
    level = request.query.get("fieldValidation") or "Warn"
    if level not in {"Ignore", "Warn", "Strict"}:
        raise ApiError(
            400,
            f'fieldValidation: Unsupported value: "{level}": supported values: '
            '"Ignore", "Strict", "Warn"',
        )
    return cast("FieldValidation", level)


def check_delete_options(options: Any) -> None:
    """Raises a 400 ApiError for what is no `metav1.DeleteOptions`."""
    if faults := validation.faults(builtin_schemas.delete_options(), options, path="options"):
        raise ApiError(400, f"invalid delete options: {', '.join(map(str, faults))}")


@dataclass(frozen=True, slots=True)
class DeleteOptions:
    """How to delete: `metav1.DeleteOptions` from body and query together."""

    propagation: Propagation
    grace_period_seconds: int | None
    uid: str | None
    resource_version: str | None
    dry_run: bool


async def delete_options(request: web.Request, resource: Resource) -> DeleteOptions:
    """Reads DeleteOptions; raises a 400 ApiError for an unknown policy."""
    options = await object_body(request) if request.can_read_body else {}
    check_delete_options(options)
    # Jobs keep the default of their first version: without a policy, their pods stay.
    default = "Orphan" if resource.key == JOBS else "Background"
    policy = options.get("propagationPolicy") or request.query.get("propagationPolicy") or default
    if policy not in {"Background", "Foreground", "Orphan"}:
        raise ApiError(400, f"propagationPolicy {policy!r} is not Background, Foreground or Orphan")
    grace = options.get("gracePeriodSeconds")
    preconditions = options.get("preconditions") or {}
    return DeleteOptions(
        propagation=cast("Propagation", policy),
        grace_period_seconds=whole_number(request, "gracePeriodSeconds")
        if grace is None
        else grace,
        uid=preconditions.get("uid"),
        resource_version=preconditions.get("resourceVersion"),
        dry_run=options.get("dryRun") == ["All"] or request.query.get("dryRun") == "All",
    )
