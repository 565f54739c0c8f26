"""What the chart lets the operator do: exactly its own list, and no Secret."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from tests.fixtures.chart import CHART, MATRIX, NAMESPACE, RELEASE, Manifest, helm, of_kind, render

from latticeforge_operator.cluster import access


def rules_of(manifests: Iterable[Manifest]) -> set[tuple[str, str, str]]:
    """Group, resource and verb of everything that roles grant."""
    return {
        (group, resource, verb)
        for manifest in manifests
        for rule in manifest["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def granted(*lists: tuple[access.Rule, ...]) -> set[tuple[str, str, str]]:
    """The same of the operator's own list."""
    return {
        (rule.group, resource, verb)
        for rules in lists
        for rule in rules
        for resource in rule.resources
        for verb in rule.verbs
    }


def operators(manifests: list[Manifest], kind: str) -> list[Manifest]:
    """Roles of a kind that are bound to the operator's account."""
    (deployment,) = of_kind(manifests, "Deployment")
    account = deployment["spec"]["template"]["spec"]["serviceAccountName"]
    subject = {"kind": "ServiceAccount", "name": account, "namespace": NAMESPACE}
    bound = {
        (binding["metadata"].get("namespace"), binding["roleRef"]["name"])
        for binding in of_kind(manifests, f"{kind}Binding")
        if binding["subjects"] == [subject] and binding["roleRef"]["kind"] == kind
    }
    roles = of_kind(manifests, kind)
    return [r for r in roles if (r["metadata"].get("namespace"), r["metadata"]["name"]) in bound]


def test_cluster_wide_it_may_do_exactly_what_its_list_says() -> None:
    manifests = render({})
    roles = operators(manifests, "ClusterRole")
    every = (access.IN_NAMESPACE, access.IN_CLUSTER, access.EVERYWHERE)
    assert rules_of(roles) == granted(*every)
    assert of_kind(manifests, "Role") == []


def test_in_namespaces_it_may_do_so_there_and_read_pools_elsewhere() -> None:
    manifests = render(MATRIX["namespaced"])
    assert rules_of(operators(manifests, "ClusterRole")) == granted(access.IN_CLUSTER)
    roles = operators(manifests, "Role")
    assert {role["metadata"]["namespace"] for role in roles} == {"team-a", "team-b"}
    for role in roles:
        assert rules_of([role]) == granted(access.IN_NAMESPACE)


@pytest.mark.parametrize("case", MATRIX)
def test_nobody_may_read_secrets_and_nothing_is_granted_wholesale(case: str) -> None:
    manifests = render(MATRIX[case])
    rules = rules_of([*of_kind(manifests, "Role"), *of_kind(manifests, "ClusterRole")])
    assert not {rule for rule in rules if rule[1].partition("/")[0] in {"secrets", "*"}}
    assert not {rule for rule in rules if "*" in rule}
    assert not {verb for _, _, verb in rules} & {"escalate", "bind", "impersonate"}


def test_the_reasons_stand_beside_the_rules() -> None:
    text = helm("template", RELEASE, str(CHART), "-s", "templates/rbac.yaml")
    for rule in (*access.IN_NAMESPACE, *access.IN_CLUSTER, *access.EVERYWHERE):
        assert f"# {rule.why}" in text


def test_whoever_may_edit_a_namespace_may_edit_its_stacks_and_no_pool() -> None:
    roles = [
        role
        for role in of_kind(render({}), "ClusterRole")
        if any("aggregate-to" in label for label in role["metadata"]["labels"])
    ]
    assert {resource for _, resource, _ in rules_of(roles)} == {"stackedtrainings"}
    view = [r for r in roles if "rbac.authorization.k8s.io/aggregate-to-view" in labels(r)]
    assert {verb for _, _, verb in rules_of(view)} == {"get", "list", "watch"}


def labels(manifest: Manifest) -> dict[str, str]:
    found: dict[str, str] = manifest["metadata"]["labels"]
    return found
