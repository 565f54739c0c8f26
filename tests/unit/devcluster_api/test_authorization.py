"""RBAC: what roles let an account do, and what it may grant."""

from __future__ import annotations

from typing import Any

import pytest

from latticeforge_operator.devcluster.authorization import (
    CLUSTER_ROLE_BINDINGS,
    CLUSTER_ROLES,
    GROUP,
    ROLE_BINDINGS,
    ROLES,
    Account,
    Action,
    check,
    check_grant,
)
from latticeforge_operator.devcluster.errors import ApiError
from latticeforge_operator.devcluster.resources import ResourceKey
from latticeforge_operator.devcluster.store import Store

ACCOUNT = Account("team", "operator")
MAPS, SECRETS = ResourceKey("v1", "configmaps"), ResourceKey("v1", "secrets")
JOBS, NODES = ResourceKey("batch/v1", "jobs"), ResourceKey("v1", "nodes")
ME = {"kind": "ServiceAccount", "name": "operator", "namespace": "team"}


def rule(resource: str, *verbs: str, group: str = "", **fields: Any) -> dict[str, Any]:
    return {"apiGroups": [group], "resources": [resource], "verbs": list(verbs), **fields}


def binding(kind: str, name: str, *subjects: dict[str, Any]) -> dict[str, Any]:
    reference = {"apiGroup": GROUP, "kind": kind, "name": name}
    return {"metadata": {"name": name}, "roleRef": reference, "subjects": list(subjects)}


@pytest.fixture
def store() -> Store:
    """Rules for one namespace by a Role and by a ClusterRole, and for all."""
    made = Store()
    for name in ("team", "other"):
        made.create(ResourceKey("v1", "namespaces"), "", {"metadata": {"name": name}})
    own = [
        rule("configmaps", "get", resourceNames=["mine"]),
        rule("jobs", "list", group="batch"),
        rule("roles", "create", group=GROUP),
    ]
    made.create(ROLES, "team", {"metadata": {"name": "own"}, "rules": own})
    made.create(ROLE_BINDINGS, "team", binding("Role", "own", ME))
    for name, rules in (
        ("maps", [rule("configmaps", "create", "patch")]),
        ("nodes", [rule("nodes", "get")]),
        ("everything", [rule("*", "*", group="*")]),
    ):
        made.create(CLUSTER_ROLES, "", {"metadata": {"name": name}, "rules": rules})
    made.create(ROLE_BINDINGS, "team", binding("ClusterRole", "maps", ME))
    group = {"kind": "Group", "name": "system:serviceaccounts:team", "apiGroup": GROUP}
    made.create(CLUSTER_ROLE_BINDINGS, "", binding("ClusterRole", "nodes", group))
    other = {**ME, "name": "another"}
    made.create(CLUSTER_ROLE_BINDINGS, "", binding("ClusterRole", "everything", other))
    made.create(ROLE_BINDINGS, "other", binding("Role", "missing", ME))
    return made


@pytest.mark.parametrize(
    ("action", "allowed"),
    [
        (Action("get", MAPS, namespace="team", name="mine"), True),
        (Action("get", MAPS, namespace="team", name="yours"), False),
        (Action("list", MAPS, namespace="team"), False),
        (Action("get", MAPS, namespace="other", name="mine"), False),
        (Action("create", MAPS, namespace="team"), True),
        (Action("patch", MAPS, namespace="team", name="any"), True),
        (Action("patch", MAPS, "status", namespace="team", name="any"), False),
        (Action("list", JOBS, namespace="team"), True),
        (Action("list", JOBS), False),
        (Action("list", ResourceKey("v1", "jobs"), namespace="team"), False),
        (Action("get", NODES, name="n"), True),
        (Action("get", SECRETS, namespace="team", name="s"), False),
    ],
)
def test_what_an_account_may_do(store: Store, action: Action, *, allowed: bool) -> None:
    if allowed:
        check(store, ACCOUNT, action)
        return
    with pytest.raises(ApiError, match=r"is forbidden: User .* cannot") as refused:
        check(store, ACCOUNT, action)
    assert refused.value.code == 403


@pytest.mark.parametrize("resource", [MAPS, SECRETS, JOBS, NODES])
def test_wildcards_are_everything(store: Store, resource: ResourceKey) -> None:
    check(store, Account("team", "another"), Action("delete", resource, "status", "other", "x"))


@pytest.mark.parametrize(
    ("granted", "allowed"),
    [
        (rule("configmaps", "get", "patch", resourceNames=["mine"]), True),
        (rule("configmaps", "patch"), True),
        (rule("configmaps", "get"), False),
        (rule("configmaps", "get", resourceNames=["yours"]), False),
        (rule("configmaps", "*"), False),
        (rule("configmaps/status", "patch"), False),
        (rule("secrets", "get"), False),
        (rule("jobs", "list", group="batch"), True),
    ],
)
def test_it_may_grant_what_it_may_do(
    store: Store, granted: dict[str, Any], *, allowed: bool
) -> None:
    meta = {"name": "given", "namespace": "team"}
    role = {"metadata": meta, "rules": [granted]}
    if allowed:
        check_grant(store, ACCOUNT, ROLES, role)
    else:
        with pytest.raises(ApiError, match="attempting to grant RBAC permissions not currently"):
            check_grant(store, ACCOUNT, ROLES, role)
    store.create(ROLES, "team", role)
    bound = {**binding("Role", "given", ME), "metadata": meta}
    if allowed:
        check_grant(store, ACCOUNT, ROLE_BINDINGS, bound)
    else:
        with pytest.raises(ApiError, match=r'rolebindings.* "given" is forbidden'):
            check_grant(store, ACCOUNT, ROLE_BINDINGS, bound)
