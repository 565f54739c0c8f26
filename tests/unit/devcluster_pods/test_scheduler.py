"""Where pods go, and what those that fit nowhere are told."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticeforge_operator.devcluster.controllers.quantities import parse_quantity
from latticeforge_operator.devcluster.controllers.scheduler import Placement, place, requests

ALLOCATABLE = {"cpu": "4", "memory": "8Gi", "pods": "10", "nvidia.com/gpu": "2"}
BOUND = {"data": {"metadata": {"name": "data"}, "status": {"phase": "Bound"}}}


def node(labels: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "one", "labels": labels or {}},
        "spec": spec,
        "status": {"allocatable": ALLOCATABLE},
    }


def pod(phase: str = "Running", **spec: Any) -> dict[str, Any]:
    return {"spec": {"containers": [], **spec}, "status": {"phase": phase}}


def container(**resources: Any) -> dict[str, Any]:
    return {"name": "main", "resources": {"requests": resources}}


def gpu_pod(gpus: int, **spec: Any) -> dict[str, Any]:
    limits = {"limits": {"nvidia.com/gpu": str(gpus)}}
    return pod(containers=[{"name": "main", "resources": limits}], **spec)


def told(wanted: dict[str, Any], *others: dict[str, Any], on: dict[str, Any] | None = None) -> str:
    return place(wanted, [on or node()], others, BOUND).message


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("2", 2),
        ("500m", Fraction(1, 2)),
        ("1.5Gi", 3 * 2**29),
        ("1e3", 1000),
        ("0.1", Fraction(1, 10)),
        ("100k", 100_000),
        (3, 3),
    ],
)
def test_quantities_are_exact(text: str, number: Fraction) -> None:
    assert parse_quantity(text) == number


@pytest.mark.parametrize("text", ["", "Gi", "1 Gi", "two", "1GiB"])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no quantity; write it like"):
        parse_quantity(text)


def test_a_pod_takes_what_its_containers_take_together() -> None:
    both = pod(containers=[container(cpu="500m"), container(cpu="1")])
    assert requests(both) == {"cpu": Fraction(3, 2)}


def test_a_hungry_init_container_counts_alone() -> None:
    wanted = pod(containers=[container(cpu="1", memory="1Gi")], initContainers=[container(cpu="3")])
    assert requests(wanted) == {"cpu": 3, "memory": 2**30}


def test_a_limit_stands_for_a_missing_request() -> None:
    resources = {"limits": {"cpu": "2", "memory": "1Gi"}, "requests": {"cpu": "1"}}
    wanted = pod(containers=[{"name": "main", "resources": resources}])
    assert requests(wanted) == {"cpu": 1, "memory": 2**30}


def test_a_pod_that_fits_gets_the_node() -> None:
    assert place(gpu_pod(2), [node()], [], {}) == Placement("one")


def test_devices_in_use_are_not_given_twice() -> None:
    running = gpu_pod(1, nodeName="one")
    assert told(gpu_pod(2), running) == ("0/1 nodes are available: 1 Insufficient nvidia.com/gpu.")


def test_finished_pods_hold_nothing() -> None:
    over = gpu_pod(2, nodeName="one") | {"status": {"phase": "Succeeded"}}
    assert told(gpu_pod(2), over) == ""


def test_every_shortage_is_named() -> None:
    wanted = pod(containers=[container(cpu="5", memory="9Gi", **{"rdma/hca": "1"})])
    assert told(wanted) == (
        "0/1 nodes are available: 1 Insufficient cpu, 1 Insufficient memory, "
        "1 Insufficient rdma/hca."
    )


def test_a_node_takes_so_many_pods() -> None:
    others = [pod(nodeName="one")] * 10
    assert told(pod(), *others) == "0/1 nodes are available: 1 Too many pods."


def test_the_node_selector_must_match() -> None:
    wanted = pod(nodeSelector={"gpu": "h200"})
    assert "didn't match Pod's node affinity/selector" in told(wanted, on=node({"gpu": "a100"}))
    assert told(wanted, on=node({"gpu": "h200"})) == ""


@pytest.mark.parametrize(
    ("toleration", "tolerated"),
    [
        ({}, False),
        ({"operator": "Exists"}, True),
        ({"key": "gpu", "operator": "Exists"}, True),
        ({"key": "gpu", "value": "yes"}, True),
        ({"key": "gpu", "value": "no"}, False),
        ({"key": "other", "operator": "Exists"}, False),
        ({"key": "gpu", "operator": "Exists", "effect": "NoExecute"}, False),
        ({"key": "gpu", "value": "yes", "effect": "NoSchedule"}, True),
    ],
)
def test_taints_repel_who_does_not_tolerate_them(
    toleration: dict[str, str], tolerated: bool
) -> None:
    tainted = node(taints=[{"key": "gpu", "value": "yes", "effect": "NoSchedule"}])
    message = told(pod(tolerations=[toleration]), on=tainted)
    assert message == (
        "" if tolerated else "0/1 nodes are available: 1 node(s) had untolerated taint {gpu: yes}."
    )


def test_a_soft_taint_repels_nobody() -> None:
    tainted = node(taints=[{"key": "gpu", "effect": "PreferNoSchedule"}])
    assert told(pod(), on=tainted) == ""


def test_a_cordoned_node_takes_nobody() -> None:
    assert "were unschedulable" in told(pod(), on=node(unschedulable=True))


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        ("data", ""),
        ("gone", '0/1 nodes are available: persistentvolumeclaim "gone" not found.'),
        (
            "new",
            "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims.",
        ),
        ("old", '0/1 nodes are available: persistentvolumeclaim "old" is being deleted.'),
    ],
)
def test_claims_must_be_bound(claim: str, message: str) -> None:
    claims = {
        **BOUND,
        "new": {"metadata": {"name": "new"}},
        "old": {"metadata": {"name": "old", "deletionTimestamp": "2030-01-01T00:00:00Z"}},
    }
    volume = {"name": "v", "persistentVolumeClaim": {"claimName": claim}}
    assert place(pod(volumes=[volume]), [node()], [], claims).message == message


amounts = st.fixed_dictionaries(
    {}, optional={"cpu": st.sampled_from(["250m", "1", "3"]), "nvidia.com/gpu": st.just("1")}
)


@given(st.lists(st.lists(amounts, min_size=1, max_size=2), max_size=12))
def test_capacity_is_never_exceeded(wishes: list[list[dict[str, str]]]) -> None:
    placed: list[dict[str, Any]] = []
    for wish in wishes:
        wanted = pod(containers=[container(**amount) for amount in wish])
        if place(wanted, [node()], placed, {}).node:
            placed.append(pod(nodeName="one", containers=wanted["spec"]["containers"]))
    for resource, limit in ALLOCATABLE.items():
        held = sum(requests(each).get(resource, Fraction(0)) for each in placed)
        assert held <= parse_quantity(limit)
    assert len(placed) <= 10
