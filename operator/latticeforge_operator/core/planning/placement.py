"""The pods of one step: pool, GPUs, and the trainer's strategy where nothing is predicted.

Nothing is predicted on CPU, and where the model is not known: then the pool is the one that is
named, or else the cheapest, and the GPUs are those asked for, or else one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from latticeforge_operator.api import GPUPool, StackedTrainingSpec, Stage
from latticeforge_operator.api.pool import Accelerator
from latticeforge_trainer.contract import Method, StepKind, Strategy

_ON_POOL = frozenset({StepKind.TRAIN, StepKind.EVALUATE})

WITHOUT_FP8 = frozenset({Accelerator.A100})
"""Accelerators without 8-bit products, which came with compute capability 8.9."""


class PlanError(Exception):
    """The stack cannot be placed; the message says why and what would help."""


@dataclass(frozen=True)
class Placement:
    """The pods of one step."""

    pool: GPUPool
    pods: int
    gpus_per_pod: int
    """0 for steps on CPU and on pools without GPUs."""
    on_pool: bool
    """Whether the pods belong on the pool's nodes (train and evaluate) or anywhere (CPU steps)."""
    strategy: Strategy
    queue: str | None = None

    @property
    def units(self) -> int:
        """What is billed per hour: GPUs, or pods of a CPU pool; CPU steps hold nothing."""
        if not self.on_pool:
            return 0
        return self.pods * max(1, self.gpus_per_pod)

    @property
    def price_per_hour(self) -> Decimal:
        """Money per hour while the pods are held."""
        return Decimal(self.pool.spec.price_per_gpu_hour) * self.units


def is_on_pool(kind: StepKind) -> bool:
    """Whether a step of this kind holds a pool's nodes; the others run anywhere, on CPU."""
    return kind in _ON_POOL


def choose_pool(spec: StackedTrainingSpec, pools: Sequence[GPUPool]) -> GPUPool:
    """The named pool, or the cheapest that serves.

    Raises:
        PlanError: There is no such pool, its GPUs cannot do what a stage asks for, or the budget is
            in another currency than its price.
    """
    pool = _cheapest(spec, eligible(spec, pools))
    if why := unserved(spec, pool):
        raise PlanError(why)
    return pool


def eligible(spec: StackedTrainingSpec, pools: Sequence[GPUPool]) -> list[GPUPool]:
    """The named pool, or all.

    Raises:
        PlanError: There is none.
    """
    names = ", ".join(sorted(pool.name for pool in pools)) or "none"
    if spec.compute.pool is None:
        if not pools:
            raise PlanError("there is no GPUPool; ask the platform team to create one")
        return list(pools)
    named = [pool for pool in pools if pool.name == spec.compute.pool]
    if not named:
        raise PlanError(
            f"compute.pool {spec.compute.pool} does not exist (there are: {names}); "
            "create the GPUPool, or name another"
        )
    return named


def unserved(spec: StackedTrainingSpec, pool: GPUPool) -> str | None:
    """Why a pool is not for a stack, whatever its size; None: it is."""
    if not _serves(spec, pool):
        return (
            f"lora.baseDtype FP8 needs GPUs with 8-bit products, and pool {pool.name} has "
            f"{pool.spec.accelerator}; name a pool of H100, H200 or L40S, or leave baseDtype out"
        )
    if spec.budget is not None and spec.budget.currency != pool.spec.currency:
        return (
            f"budget.currency is {spec.budget.currency}, but pool {pool.name} is priced in "
            f"{pool.spec.currency}; give the budget in {pool.spec.currency}"
        )
    return None


def pods_of(gpus: int, pool: GPUPool) -> tuple[int, int]:
    """How many pods hold `gpus` GPUs of a pool, and how many each of them holds.

    Raises:
        PlanError: The pool's nodes have no GPUs, or those asked for do not divide into pods.
    """
    per_node = pool.spec.gpus_per_node
    if per_node == 0:
        raise PlanError(
            f"pool {pool.name} of accelerator {pool.spec.accelerator} has gpusPerNode 0; "
            "correct the GPUPool, or name another"
        )
    pods = -(-gpus // per_node)
    if gpus % pods:
        raise PlanError(
            f"compute.gpus {gpus} does not divide into whole pods on pool {pool.name} "
            f"with {per_node} GPUs per node; ask for a multiple of {per_node}"
        )
    return pods, gpus // pods


def _cheapest(spec: StackedTrainingSpec, pools: Sequence[GPUPool]) -> GPUPool:
    serving = [pool for pool in pools if _serves(spec, pool)] or pools  # then it is said why not
    return min(serving, key=lambda pool: (Decimal(pool.spec.price_per_gpu_hour), pool.name))


def _serves(spec: StackedTrainingSpec, pool: GPUPool) -> bool:
    wants_fp8 = any(stage.lora and stage.lora.base_dtype for stage in spec.stages)
    return not (wants_fp8 and pool.spec.accelerator in WITHOUT_FP8)


def place(
    spec: StackedTrainingSpec, stage: Stage | None, kind: StepKind, pool: GPUPool
) -> Placement:
    """The pods of a step on `pool`.

    Raises:
        PlanError: The pool's nodes have no GPUs, or those asked for do not divide into pods.
    """
    if stage is None or not is_on_pool(kind):
        return Placement(pool, pods=1, gpus_per_pod=0, on_pool=False, strategy=Strategy())
    queue = spec.compute.queue
    if pool.spec.accelerator is Accelerator.CPU:
        return Placement(
            pool, pods=1, gpus_per_pod=0, on_pool=True, strategy=Strategy(), queue=queue
        )
    gpus = 1 if kind is StepKind.EVALUATE else spec.compute.gpus or 1
    pods, processes = pods_of(gpus, pool)
    strategy = Strategy(
        processes=processes,
        nodes=pods,
        zero_stage=3 if gpus > 1 and stage.method is Method.FULL else 0,
    )
    return Placement(
        pool, pods=pods, gpus_per_pod=processes, on_pool=True, strategy=strategy, queue=queue
    )
