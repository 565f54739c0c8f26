"""What pods may do: RBAC, as Kubernetes decides it.

Whoever holds the server's own token may do everything. A pod comes with the token of its
ServiceAccount, and may do what the roles bound to that account grant; it may grant no more itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from latticeforge_operator.devcluster.errors import ApiError
from latticeforge_operator.devcluster.resources import JsonObject, ResourceKey
from latticeforge_operator.devcluster.store import Store

GROUP = "rbac.authorization.k8s.io"
ROLES = ResourceKey(f"{GROUP}/v1", "roles")
CLUSTER_ROLES = ResourceKey(f"{GROUP}/v1", "clusterroles")
ROLE_BINDINGS = ResourceKey(f"{GROUP}/v1", "rolebindings")
CLUSTER_ROLE_BINDINGS = ResourceKey(f"{GROUP}/v1", "clusterrolebindings")


@dataclass(frozen=True, slots=True)
class Account:
    """A ServiceAccount that makes requests."""

    namespace: str
    name: str

    @property
    def user(self) -> str:
        """Its user name."""
        return f"system:serviceaccount:{self.namespace}:{self.name}"

    def is_subject(self, subject: JsonObject, namespace: str) -> bool:
        """Whether a binding in a namespace (empty: in none) means it."""
        groups = {
            "system:authenticated",
            "system:serviceaccounts",
            f"system:serviceaccounts:{self.namespace}",
        }
        name = subject["name"]
        if subject["kind"] == "ServiceAccount":
            return (subject.get("namespace") or namespace, name) == (self.namespace, self.name)
        return name in (groups if subject["kind"] == "Group" else {self.user})


@dataclass(frozen=True, slots=True)
class Action:
    """What a request wants to do.

    Attributes:
        verb: get, list, watch, create, update, patch, delete or deletecollection.
        key: the resource.
        subresource: empty for the object itself.
        namespace: empty for cluster scope and for all namespaces.
        name: empty where the request names no object.
    """

    verb: str
    key: ResourceKey
    subresource: str = ""
    namespace: str = ""
    name: str = ""

    @property
    def resource(self) -> str:
        """The resource as rules name it."""
        return f"{self.key.plural}/{self.subresource}" if self.subresource else self.key.plural


def check(store: Store, account: Account, action: Action) -> None:
    """Raises a 403 ApiError unless the account may do it."""
    if any(_allows(rule, action) for rule in _rules(store, account, action.namespace)):
        return
    group = action.key.group
    space = action.namespace
    where = f"in the namespace {_quoted(space)}" if space else "at the cluster scope"
    what = f"{action.key.qualified_plural} {_quoted(action.name) if action.name else ''}".rstrip()
    raise ApiError(
        403,
        f"{what} is forbidden: User {_quoted(account.user)} cannot {action.verb} resource "
        f"{_quoted(action.resource)} in API group {_quoted(group)} {where}",
        details={"name": action.name, "group": group, "kind": action.key.plural},
    )


def check_grant(store: Store, account: Account, key: ResourceKey, obj: JsonObject) -> None:
    """Raises a 403 ApiError if an object grants what the account may not do itself.

    Args:
        store: the objects.
        account: who writes the object.
        key: its resource; all but roles and their bindings grant nothing.
        obj: the whole object.
    """
    namespace = obj["metadata"].get("namespace") or ""
    if key in {ROLES, CLUSTER_ROLES}:
        granted: Sequence[JsonObject] = obj.get("rules") or ()
    elif key in {ROLE_BINDINGS, CLUSTER_ROLE_BINDINGS} and "roleRef" in obj:
        granted = tuple(_role_rules(store, obj["roleRef"], namespace))
    else:
        return
    own = tuple(_rules(store, account, namespace))
    extra = [rule for rule in granted if not _is_covered(rule, own)]
    if extra:
        name = obj["metadata"].get("name", "")
        raise ApiError(
            403,
            f"{key.qualified_plural} {_quoted(name)} is forbidden: user {_quoted(account.user)} is "
            f"attempting to grant RBAC permissions not currently held: {extra}",
            details={"name": name, "group": key.group, "kind": key.plural},
        )


def _quoted(text: str) -> str:
    return f'"{text}"'


def _rules(store: Store, account: Account, namespace: str) -> Iterator[JsonObject]:
    """Every rule that holds for the account in a namespace, or (empty) in all."""
    bindings = [*store.list(CLUSTER_ROLE_BINDINGS)]
    if namespace:
        bindings += store.list(ROLE_BINDINGS, namespace)
    for binding in bindings:
        where = binding["metadata"].get("namespace") or ""
        if any(account.is_subject(subject, where) for subject in binding.get("subjects") or ()):
            yield from _role_rules(store, binding["roleRef"], where)


def _role_rules(store: Store, reference: JsonObject, namespace: str) -> Iterator[JsonObject]:
    """The rules of the role that a binding in a namespace refers to; none if it is not there."""
    is_role = reference["kind"] == "Role"
    found = store.peek(
        ROLES if is_role else CLUSTER_ROLES, namespace if is_role else "", reference["name"]
    )
    yield from (found.object.get("rules") or () if found is not None else ())


def _allows(rule: JsonObject, action: Action) -> bool:
    return (
        _matches(rule.get("verbs"), action.verb)
        and _matches(rule.get("apiGroups"), action.key.group)
        and _matches(rule.get("resources"), action.resource)
        and (not rule.get("resourceNames") or action.name in rule["resourceNames"])
    )


def _matches(listed: Sequence[str] | None, value: str) -> bool:
    return listed is not None and ("*" in listed or value in listed)


def _is_covered(rule: JsonObject, own: Sequence[JsonObject]) -> bool:
    """Whether everything that a rule grants is granted by the account's own rules."""
    granted = product(
        rule.get("verbs") or (),
        rule.get("apiGroups") or (),
        rule.get("resources") or (),
        rule.get("resourceNames") or ("",),
    )
    return all(
        any(_allows(held, action) for held in own)
        for verb, group, resource, name in granted
        for action in [_granted(verb, group, resource, name)]
    )


def _granted(verb: str, group: str, resource: str, name: str) -> Action:
    """What a rule lets do; rules name no version."""
    plural, _, subresource = resource.partition("/")
    key = ResourceKey(f"{group}/" if group else "", plural)
    return Action(verb, key, subresource, name=name)
