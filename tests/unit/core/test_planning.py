"""Which pool, how many pods, how many GPUs."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.core.builders import pool, spec, stack, stage

from latticeforge_operator.core.planning import PlanError, choose_pool, place
from latticeforge_trainer.contract import StepKind

FULL = stage("one", method="Full")
ADAPTER = stage("one", method="LoRA")


def test_the_named_pool_is_taken() -> None:
    pools = (pool("cheap", pricePerGPUHour="1"), pool("named"))
    assert choose_pool(stack(spec(compute={"pool": "named"})).spec, pools).name == "named"


def test_else_the_cheapest_and_by_name_among_equals() -> None:
    pools = (pool("b", pricePerGPUHour="1"), pool("a", pricePerGPUHour="1.0"), pool("c"))
    assert choose_pool(stack().spec, pools).name == "a"


@pytest.mark.parametrize(
    ("compute", "pools", "sentence"),
    [
        ({"pool": "x"}, (pool("b"), pool("a")), "compute.pool x does not exist (there are: a, b)"),
        ({"pool": "x"}, (), "there are: none"),
        ({}, (), "there is no GPUPool"),
    ],
)
def test_no_pool(compute: dict[str, Any], pools: Any, sentence: str) -> None:
    with pytest.raises(PlanError) as error:
        choose_pool(stack(spec(compute=compute)).spec, pools)
    assert sentence in str(error.value)


def test_fp8_is_for_pools_whose_gpus_have_it() -> None:
    old, new = pool("old", accelerator="A100", pricePerGPUHour="1"), pool("new")
    fp8 = stage("one", lora={"baseDtype": "FP8"})
    assert choose_pool(stack(spec(ADAPTER)).spec, (old, new)).name == "old"
    assert choose_pool(stack(spec(fp8)).spec, (old, new)).name == "new"
    for compute, pools in (({"pool": "old"}, (old, new)), ({}, (old,))):
        with pytest.raises(PlanError, match="FP8 needs GPUs with 8-bit products, and pool old has"):
            choose_pool(stack(spec(ADAPTER, fp8 | {"name": "two"}, compute=compute)).spec, pools)


def test_the_budget_is_in_the_pools_currency() -> None:
    fields = spec(budget={"limit": "5", "currency": "EUR"})
    with pytest.raises(PlanError, match=r"budget.currency is EUR, but pool h200 is priced in USD"):
        choose_pool(stack(fields).spec, (pool(),))
    assert choose_pool(stack(fields).spec, (pool(currency="EUR"),)).name == "h200"


@pytest.mark.parametrize(
    ("gpus", "pods", "per_pod"), [(None, 1, 1), (1, 1, 1), (8, 1, 8), (12, 2, 6), (16, 2, 8)]
)
def test_gpus_become_pods(gpus: int | None, pods: int, per_pod: int) -> None:
    training = stack(spec(FULL, compute={} if gpus is None else {"gpus": gpus}))
    placement = place(training.spec, training.spec.stages[0], StepKind.TRAIN, pool())
    assert (placement.pods, placement.gpus_per_pod) == (pods, per_pod)
    assert (placement.strategy.nodes, placement.strategy.processes) == (pods, per_pod)
    assert placement.strategy.zero_stage == (3 if (gpus or 1) > 1 else 0)
    assert placement.units == pods * per_pod


def test_adapters_need_no_sharding() -> None:
    training = stack(spec(ADAPTER, compute={"gpus": 8}))
    placement = place(training.spec, training.spec.stages[0], StepKind.TRAIN, pool())
    assert placement.strategy.zero_stage == 0


@given(st.integers(1, 200), st.integers(1, 16))
def test_pods_hold_exactly_what_is_asked_or_it_is_refused(gpus: int, per_node: int) -> None:
    training = stack(spec(FULL, compute={"gpus": gpus}))
    try:
        placement = place(
            training.spec, training.spec.stages[0], StepKind.TRAIN, pool(gpusPerNode=per_node)
        )
    except PlanError as error:
        assert f"ask for a multiple of {per_node}" in str(error)  # noqa: PT017  (either is right)
    else:
        assert placement.pods * placement.gpus_per_pod == gpus
        assert placement.gpus_per_pod <= per_node


def test_evaluation_takes_one_gpu() -> None:
    training = stack(spec(FULL, compute={"gpus": 16}))
    placement = place(training.spec, training.spec.stages[0], StepKind.EVALUATE, pool())
    assert (placement.pods, placement.gpus_per_pod, placement.on_pool) == (1, 1, True)


@pytest.mark.parametrize("kind", [StepKind.PREPARE, StepKind.MERGE, StepKind.PUBLISH])
def test_the_other_steps_hold_nothing(kind: StepKind) -> None:
    training = stack(spec(FULL, compute={"gpus": 16, "queue": "research"}))
    placement = place(training.spec, training.spec.stages[0], kind, pool())
    assert (placement.on_pool, placement.gpus_per_pod, placement.queue) == (False, 0, None)
    assert placement.price_per_hour == 0


def test_a_cpu_pool_is_paid_by_the_pod() -> None:
    training = stack(spec(FULL))
    cpus = pool(accelerator="CPU", gpusPerNode=0, pricePerGPUHour="0.2")
    placement = place(training.spec, training.spec.stages[0], StepKind.TRAIN, cpus)
    assert (placement.gpus_per_pod, placement.units) == (0, 1)


def test_a_pool_without_gpus_is_told_not_divided_by() -> None:
    training = stack(spec(FULL))
    with pytest.raises(PlanError, match="pool h200 of accelerator H200 has gpusPerNode 0"):
        place(training.spec, training.spec.stages[0], StepKind.TRAIN, pool(gpusPerNode=0))
