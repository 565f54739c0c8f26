"""RBAC: what the operator relies on to be, and to make its pods, no more than they need to be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.conformance.client import Api, Refused, eventually

GROUP = "rbac.authorization.k8s.io"
RBAC = f"{GROUP}/v1"
OPERATOR_RULES = [
    {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "create", "patch"]},
    {"apiGroups": [GROUP], "resources": ["roles", "rolebindings"], "verbs": ["create", "patch"]},
]
"""Of the operator's rules, those by which it lets a pod report."""
REPORT_RULE = {
    "apiGroups": [""],
    "resources": ["configmaps"],
    "resourceNames": ["report"],
    "verbs": ["get", "patch"],
}


def role(name: str, *rules: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": RBAC, "kind": "Role", "metadata": {"name": name}, "rules": list(rules)}


def binding(api: Api, name: str, account: str) -> dict[str, Any]:
    return {
        "apiVersion": RBAC,
        "kind": "RoleBinding",
        "metadata": {"name": name},
        "roleRef": {"apiGroup": GROUP, "kind": "Role", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": api.namespace}],
    }


def config_map(name: str, text: str = "") -> dict[str, Any]:
    data = {"text": text}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def acting(api: Api, account: str) -> Api:
    """The same namespace, as one of its ServiceAccounts."""
    return replace(api, user=f"system:serviceaccount:{api.namespace}:{account}")


@pytest.fixture
async def operator(api: Api) -> Api:
    """A client that may do what `OPERATOR_RULES` say."""
    await api.create(api.ns(RBAC, "roles"), role("operator", *OPERATOR_RULES))
    await api.create(api.ns(RBAC, "rolebindings"), binding(api, "operator", "operator"))
    await api.create(api.ns("v1", "configmaps"), config_map("report"))
    made = acting(api, "operator")
    await eventually(lambda: may(made.get(api.ns("v1", "configmaps", "report"))))
    return made


async def may(request: Any) -> bool:
    """Whether a request is answered; roles take a moment to hold."""
    try:
        await request
    except Refused as refused:
        if refused.code != 403:
            raise
        return False
    return True


async def test_what_no_role_grants_is_forbidden(operator: Api) -> None:
    with pytest.raises(Refused, match=r'secrets is forbidden: .* cannot list resource "secrets"'):
        await operator.get(operator.ns("v1", "secrets"))
    with pytest.raises(Refused, match='cannot list resource "configmaps"'):
        await operator.get(operator.ns("v1", "configmaps"))
    with pytest.raises(Refused, match='cannot get resource "configmaps"'):
        await operator.get("api/v1/namespaces/default/configmaps/report")


async def test_to_apply_what_is_not_there_is_to_create_it(api: Api, operator: Api) -> None:
    patcher = role("patcher", {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["patch"]})
    await api.create(api.ns(RBAC, "roles"), patcher)
    await api.create(api.ns(RBAC, "rolebindings"), binding(api, "patcher", "patcher"))
    only_patches, path = acting(api, "patcher"), api.ns("v1", "configmaps")
    there = config_map("report", "1")
    await eventually(lambda: may(only_patches.apply(f"{path}/report", there, "m", force="true")))
    with pytest.raises(Refused, match='cannot create resource "configmaps"'):
        await only_patches.apply(f"{path}/new", config_map("new"), "m")
    assert await may(operator.apply(f"{path}/new", config_map("new"), "m"))


async def test_a_role_for_one_name_is_for_that_name(api: Api, operator: Api) -> None:
    await operator.apply(api.ns(RBAC, "roles", "pod"), role("pod", REPORT_RULE), "m")
    await operator.apply(api.ns(RBAC, "rolebindings", "pod"), binding(api, "pod", "pod"), "m")
    pod, path = acting(api, "pod"), api.ns("v1", "configmaps")
    await eventually(lambda: may(pod.merge(f"{path}/report", {"data": {"text": "2"}})))
    assert (await pod.get(f"{path}/report"))["data"] == {"text": "2"}
    await api.create(path, config_map("other"))
    for refused in (pod.get(f"{path}/other"), pod.get(path), pod.delete(f"{path}/report")):
        with pytest.raises(Refused, match="configmaps"):
            await refused


@pytest.mark.parametrize(
    "rule",
    [
        {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]},
        {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["delete"]},
        {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["*"]},
    ],
)
async def test_nobody_grants_what_he_may_not_do(
    api: Api, operator: Api, rule: dict[str, Any]
) -> None:
    with pytest.raises(Refused, match="attempting to grant RBAC permissions not currently held"):
        await operator.apply(api.ns(RBAC, "roles", "more"), role("more", rule), "m")
    await api.create(api.ns(RBAC, "roles"), role("more", rule))
    with pytest.raises(Refused, match="attempting to grant RBAC permissions not currently held"):
        await operator.apply(api.ns(RBAC, "rolebindings", "more"), binding(api, "more", "x"), "m")
