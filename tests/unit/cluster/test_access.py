"""The operator's permissions: one list, nothing in it for more than it says."""

from __future__ import annotations

import pytest
from tests.unit.cluster.test_manifests import made

from latticeforge_operator.cluster import access
from latticeforge_operator.cluster.client import BY_KIND

RULES = (*access.IN_NAMESPACE, *access.IN_CLUSTER, *access.EVERYWHERE)


def allowed(group: str, resource: str) -> set[str]:
    return {
        verb
        for rule in RULES
        if rule.group == group and resource in rule.resources
        for verb in rule.verbs
    }


def test_no_secret_no_wildcard_no_pod_is_touched() -> None:
    assert not allowed("", "secrets")
    assert allowed("", "pods") == {"list", "watch"}
    words = {w for rule in RULES for w in (rule.group, *rule.resources, *rule.verbs)}
    assert not words & {"*", "escalate", "bind", "impersonate", "pods/exec"}
    assert all(rule.why for rule in RULES)


def test_whatever_it_applies_it_may_apply() -> None:
    kinds = {manifest["kind"] for _, found in made("nodes") for manifest in found.values()}
    for kind in kinds:
        resource = BY_KIND[kind]
        group = resource.group_version.rpartition("/")[0]
        assert {"create", "patch"} <= allowed(group, resource.plural), kind


def test_it_grants_its_pods_nothing_that_it_may_not_do_itself() -> None:
    for _, found in made("plain"):
        for rule in found["Role"]["rules"]:
            for resource in rule["resources"]:
                assert set(rule["verbs"]) <= allowed(rule["apiGroups"][0], resource)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.why)
def test_a_rule_is_a_policy_rule(rule: access.Rule) -> None:
    assert rule.to_json() == {
        "apiGroups": [rule.group],
        "resources": list(rule.resources),
        "verbs": list(rule.verbs),
    }
