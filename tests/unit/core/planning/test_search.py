"""The fastest strategy that fits, against every strategy there is."""

from __future__ import annotations

import re
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.core.planning.cases import LARGE, SMALL, h200, request

from latticeforge_operator.core.planning import Misfit, StageData, StagePlan, words
from latticeforge_operator.core.planning.history import Factor
from latticeforge_operator.core.planning.options import site_of
from latticeforge_operator.core.planning.search import Task, search
from latticeforge_operator.core.planning.strategies import SHARDINGS, micro_batches, shardings
from latticeforge_trainer.contract import Method, Offload, Recompute, Strategy, TrainPayload
from latticeforge_trainer.estimate.chips import chip
from latticeforge_trainer.estimate.host import host_memory
from latticeforge_trainer.estimate.memory import gpu_memory
from latticeforge_trainer.estimate.speed import speed
from latticeforge_trainer.estimate.terms import total
from latticeforge_trainer.estimate.training import Run, conflict

METHODS = st.sampled_from(list(Method))
GPUS = st.sampled_from([1, 2, 4, 8, 16])


def found(
    gpus: int, model: Any = SMALL, pool_fields: dict[str, Any] | None = None, **fields: Any
) -> StagePlan | list[Misfit]:
    """What the search says of a stack's only stage."""
    asks, pool = request(model, **fields), h200(**(pool_fields or {}))
    return search(asks.tasks(pool)[0], site_of(asks, pool, gpus))


def payload(method: Method = Method.FULL, **fields: Any) -> TrainPayload:
    lora = None if method is Method.FULL else {"rank": 16}
    defaults = {"sequence_length": 4096, "global_batch_tokens": 131_072, "lora": lora}
    return TrainPayload(method=method, **({"learning_rate": 1e-5} | defaults | fields))


@given(METHODS, GPUS)
def test_every_sharding_is_one_that_the_trainer_runs(method: Method, gpus: int) -> None:
    for stage, offload in shardings(payload(method), gpus):
        assert conflict(payload(method), stage) is None
        assert offload is Offload.NONE or stage >= 2, "DeepSpeed offloads what it shards"


@pytest.mark.parametrize(
    ("fields", "gpus", "expected"),
    [
        ({"optimizer_states": "int8"}, 8, {(0, "none"), (1, "none"), (2, "none"), (3, "none")}),
        ({}, 1, {(0, "none"), (2, "optimizer"), (3, "optimizer"), (3, "all")}),
        ({"method": Method.QLORA}, 8, {(0, "none"), (2, "none")}),
        ({"method": Method.LORA, "lora": {"base_dtype": "fp8"}}, 8, {(0, "none")}),
    ],
    ids=["INT8 stays on the GPU", "one GPU shares with none", "NF4 is not cut up", "FP8 is whole"],
)
def test_shardings(fields: dict[str, Any], gpus: int, expected: set[tuple[int, str]]) -> None:
    assert {(z, o.value) for z, o in shardings(payload(**fields), gpus)} == expected


@given(st.integers(16, 10_000_000), st.sampled_from([512, 4096, 32_768]), st.integers(1, 64))
def test_micro_batches_make_up_the_batch_exactly(batch: int, length: int, gpus: int) -> None:
    asks = payload(sequence_length=length, global_batch_tokens=batch)
    for micro_batch in micro_batches(asks, gpus):
        run = Run(SMALL, asks, Strategy(processes=gpus, micro_batch=micro_batch), chip("H200"))
        whole = run.micro_batches * micro_batch * gpus
        assert whole - asks.sequences_per_step < gpus, "no process has a sequence too many"
        if asks.sequences_per_step % gpus == 0:
            assert whole == asks.sequences_per_step


@settings(deadline=None, max_examples=40)
@given(
    method=METHODS,
    gpus=GPUS,
    host=st.sampled_from([None, "200Gi", "1900Gi"]),
    length=st.sampled_from([2048, 8192]),
    model=st.sampled_from([SMALL, LARGE]),
    headroom=st.sampled_from([0.0, 0.1, 0.3]),
)
def test_what_is_found_fits(
    *, method: Method, gpus: int, host: str | None, length: int, model: Any, headroom: float
) -> None:
    parameters = {"sequenceLength": length, "globalBatchTokens": 262_144}
    asks = request(model, method=method, hyperparameters=parameters, headroom=headroom)
    pool = h200(hostMemory=host)
    site = site_of(asks, pool, gpus)
    plan = search(asks.tasks(pool)[0], site)
    if isinstance(plan, list):
        assert plan
        return
    again = gpu_memory(plan.run)
    assert again.fits
    assert again.reserved <= again.capacity * (1 - headroom)
    if site.host_bytes is None:
        assert plan.strategy.offload is Offload.NONE
        assert Recompute.OFFLOAD not in again.modes
    else:
        assert total(host_memory(plan.run)) <= site.host_bytes


@settings(deadline=None, max_examples=15)
@given(METHODS, st.sampled_from([2, 8]), st.sampled_from([SMALL, LARGE]))
def test_nothing_that_fits_is_faster(method: Method, gpus: int, model: Any) -> None:
    """Every sharding with every micro-batch, as the trainer would choose to recompute."""
    asks, pool = request(model, method=method), h200()
    task, site = asks.tasks(pool)[0], site_of(asks, pool, gpus)
    plan = search(task, site)
    best = 0.0
    for (stage, offload), micro_batch in product(
        SHARDINGS[method], micro_batches(task.payload, gpus)
    ):
        strategy = Strategy(
            processes=gpus, zero_stage=stage, offload=offload, micro_batch=micro_batch
        )
        run = Run(task.model, task.payload, strategy, site.chip)
        memory = gpu_memory(run)
        if memory.fits and total(host_memory(run)) <= (site.host_bytes or 0):
            best = max(best, speed(run).tokens_per_second)
    assert isinstance(plan, StagePlan) == (best > 0)
    if isinstance(plan, StagePlan):
        assert plan.tokens_per_second >= 0.99 * best


@given(st.floats(1e-6, 1e-3), st.integers(0, 9), st.sampled_from([512, 4096]))
def test_tasks_of_one_shape_need_the_same(rate: float, seed: int, length: int) -> None:
    tasks = [
        Task("one", payload(sequence_length=4096), SMALL, StageData(), Factor()),
        Task(
            "two",
            payload(sequence_length=length, learning_rate=rate, seed=seed),
            SMALL,
            StageData(),
            Factor(),
        ),
    ]
    alike = len({task.shape for task in tasks}) == 1
    assert alike == (length == 4096)
    runs = [Run(SMALL, task.payload, Strategy(), chip("H200")) for task in tasks]
    assert (gpu_memory(runs[0]) == gpu_memory(runs[1])) == alike


@pytest.mark.parametrize("gpus", [2, 4])
def test_qlora_of_72b_is_not_sharded_for_nothing(gpus: int) -> None:
    plan = found(gpus, LARGE, method="QLoRA")
    assert isinstance(plan, StagePlan)
    assert (plan.strategy.zero_stage, plan.strategy.offload) == (0, Offload.NONE)


def test_full_of_72b_needs_its_states_on_the_host_of_one_node() -> None:
    plan = found(8, LARGE, method="Full")
    assert isinstance(plan, StagePlan)
    assert (plan.strategy.zero_stage, plan.strategy.offload) == (3, Offload.OPTIMIZER)


def test_nothing_goes_to_a_host_of_which_nothing_is_known() -> None:
    misfits = found(8, LARGE, {"hostMemory": None}, method="Full")
    assert isinstance(misfits, list)
    assert [m.strategy.offload for m in misfits if m.fits_gpu] == [Offload.OPTIMIZER, Offload.ALL]


def test_a_pod_has_its_share_of_a_node() -> None:
    asks = request(LARGE, method="Full")
    assert site_of(asks, h200(), 2).host_bytes == 475 * 2**30
    assert site_of(asks, h200(), 16).host_bytes == 1900 * 2**30


def test_after_running_out_of_memory_a_mode_is_named_that_leaves_more_free() -> None:
    usual, careful = (found(1, LARGE, method="QLoRA", headroom=share) for share in (0.0, 0.1))
    assert isinstance(usual, StagePlan)
    assert isinstance(careful, StagePlan)
    assert careful.memory.reserved <= 0.9 * careful.memory.capacity < usual.memory.reserved
    assert usual.strategy.recompute is Recompute.AUTO
    assert careful.strategy.recompute is not Recompute.AUTO


@pytest.mark.parametrize(
    ("gpus", "fields", "said"),
    [
        (
            8,
            {
                "method": "LoRA",
                "hyperparameters": {"sequenceLength": 512, "globalBatchTokens": 32_768},
            },
            "nothing recomputed",
        ),
        (
            1,
            {"method": "QLoRA", "hyperparameters": {"sequenceLength": 16_384}},
            r"of 80 layers recomputed: \d+ in norms and gated products, \d+ whole$",
        ),
        (
            1,
            {"method": "QLoRA", "hyperparameters": {"sequenceLength": 65_536}},
            r"of 80 layers recomputed: \d+ whole, \d+ whole with their inputs in host memory$",
        ),
    ],
)
def test_what_is_recomputed_is_said(gpus: int, fields: dict[str, Any], said: str) -> None:
    plan = found(gpus, LARGE, **fields)
    assert isinstance(plan, StagePlan)
    assert re.search(said, words.strategy(plan)), words.strategy(plan)
