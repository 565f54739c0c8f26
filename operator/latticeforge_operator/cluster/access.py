"""What the operator may do, rule by rule: the one list that chart and tests take it from.

It may create roles, and the API server lets nobody grant more than he holds: hence `get` on
ConfigMaps, which the operator itself never uses. It can read no Secret.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from latticeforge_operator.cluster.names import GROUP

RBAC = "rbac.authorization.k8s.io"


@dataclass(frozen=True)
class Rule:
    """Verbs on resources of one API group, and what they are needed for."""

    group: str
    resources: tuple[str, ...]
    verbs: tuple[str, ...]
    why: str

    def to_json(self) -> dict[str, Any]:
        """As a `PolicyRule`."""
        return {
            "apiGroups": [self.group],
            "resources": list(self.resources),
            "verbs": list(self.verbs),
        }


_WATCH = ("list", "watch")
_APPLY = ("create", "patch")

IN_NAMESPACE = (
    Rule(GROUP, ("stackedtrainings",), _WATCH, "see what users ask for"),
    Rule(GROUP, ("stackedtrainings/status",), ("patch",), "say where it stands"),
    Rule("batch", ("jobs",), (*_WATCH, *_APPLY, "delete"), "run the attempts of the steps"),
    Rule("", ("pods",), _WATCH, "bill them and tell why they wait or fail"),
    Rule("", ("configmaps",), ("get", *_WATCH, *_APPLY), "configs to the pods, reports back"),
    Rule("", ("serviceaccounts", "services"), _APPLY, "who the pods are, how they meet"),
    Rule("", ("persistentvolumeclaims",), (*_APPLY, "delete"), "the volume of a stack"),
    Rule("", ("events",), ("list", "create"), "tell people; see why a Job gets no pods"),
    Rule(RBAC, ("roles", "rolebindings"), _APPLY, "let the pods report, and nothing else"),
)
"""Needed in every namespace that is served."""

IN_CLUSTER = (Rule(GROUP, ("gpupools",), _WATCH, "see where stacks can run"),)
"""Needed whatever namespaces are served: pools belong to none."""

EVERYWHERE = (
    Rule(
        "apiextensions.k8s.io",
        ("customresourcedefinitions",),
        _WATCH,
        "notice a reinstalled definition",
    ),
)
"""Needed beside them when all namespaces are served."""
