"""Every pod that the operator makes, against the restricted Pod Security profile."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from tests.fixtures.pod_security import CONTROLS, READ_ONLY_ROOT, violations
from tests.unit.cluster.test_manifests import STACKS, made, pod_spec

GOOD: dict[str, Any] = {
    "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
    "containers": [
        {
            "name": "a",
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            },
        }
    ],
    "volumes": [{"name": "v", "emptyDir": {}}],
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """`GOOD` with another value at a path; numbers are positions of lists."""
    spec = copy.deepcopy(GOOD)
    *parents, last = (int(part) if part.isdecimal() else part for part in path.split("."))
    node: Any = spec
    for part in parents:
        node = node[part] if isinstance(part, int) else node.setdefault(part, {})
    node[last] = value
    return spec


@pytest.mark.parametrize("case", STACKS)
def test_the_pods_of_every_step_fit(case: str) -> None:
    for launch, found in made(case):
        # A pool's pod template may add containers: they are the platform team's own.
        spec = {**pod_spec(found), "containers": pod_spec(found)["containers"][:1]}
        assert violations(spec, (*CONTROLS, READ_ONLY_ROOT)) == [], launch.step


def test_a_pod_that_fits() -> None:
    assert violations(GOOD) == []
    assert violations(GOOD, (READ_ONLY_ROOT,)) != []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("hostNetwork", True),
        ("hostPID", True),
        ("hostIPC", True),
        ("volumes.0", {"name": "v", "hostPath": {"path": "/"}}),
        ("volumes.0", {"name": "v", "nfs": {"path": "/"}}),
        ("securityContext.runAsNonRoot", False),
        ("securityContext.runAsNonRoot", None),
        ("securityContext.runAsUser", 0),
        ("securityContext.seccompProfile", {"type": "Unconfined"}),
        ("securityContext.seccompProfile", None),
        ("securityContext.sysctls", [{"name": "kernel.msgmax", "value": "1"}]),
        ("securityContext.appArmorProfile", {"type": "Unconfined"}),
        ("securityContext.seLinuxOptions", {"type": "spc_t"}),
        ("securityContext.seLinuxOptions", {"user": "root"}),
        ("securityContext.windowsOptions", {"hostProcess": True}),
        ("containers.0.securityContext.privileged", True),
        ("containers.0.securityContext.allowPrivilegeEscalation", None),
        ("containers.0.securityContext.allowPrivilegeEscalation", True),
        ("containers.0.securityContext.capabilities", {"drop": ["NET_RAW"]}),
        ("containers.0.securityContext.capabilities", {"drop": ["ALL"], "add": ["SYS_ADMIN"]}),
        ("containers.0.securityContext.runAsUser", 0),
        ("containers.0.securityContext.runAsNonRoot", False),
        ("containers.0.securityContext.procMount", "Unmasked"),
        ("containers.0.securityContext.seccompProfile", {"type": "Unconfined"}),
        ("containers.0.ports", [{"containerPort": 80, "hostPort": 80}]),
        ("containers.0.livenessProbe", {"httpGet": {"host": "10.0.0.1", "port": 80}}),
        ("containers.0.lifecycle", {"preStop": {"tcpSocket": {"host": "10.0.0.1", "port": 80}}}),
        ("initContainers", [{"name": "i"}]),
    ],
)
def test_a_pod_that_does_not(path: str, value: Any) -> None:
    assert violations(changed(path, value)) != []
