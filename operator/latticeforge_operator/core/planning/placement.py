"""Where and how a step runs: pool, pods, GPUs, and the trainer's strategy.

The choice is simple and says so: the pool that is named, or else the cheapest; the GPUs that are
asked for, or else one. Predicting memory, time and cost of alternatives builds on this.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from latticeforge_operator.api import GPUPool, StackedTrainingSpec, Stage
from latticeforge_operator.api.pool import Accelerator
from latticeforge_trainer.contract import Method, StepKind, Strategy

_ON_POOL = frozenset({StepKind.TRAIN, StepKind.EVALUATE})

_WITHOUT_FP8 = frozenset({Accelerator.A100})
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


def choose_pool(spec: StackedTrainingSpec, pools: tuple[GPUPool, ...]) -> GPUPool:
    """The named pool, or the cheapest that serves.

    Raises:
        PlanError: There is no such pool, its GPUs cannot do what a stage asks for, or the budget is
            in another currency than its price.
    """
    pool = _named_or_cheapest(spec, pools)
    if not _serves(spec, pool):
        raise PlanError(
            f"lora.baseDtype FP8 needs GPUs with 8-bit products, and pool {pool.name} has "
            f"{pool.spec.accelerator}; name a pool of H100, H200 or L40S, or leave baseDtype out"
        )
    if spec.budget is not None and spec.budget.currency != pool.spec.currency:
        raise PlanError(
            f"budget.currency is {spec.budget.currency}, but pool {pool.name} is priced in "
            f"{pool.spec.currency}; give the budget in {pool.spec.currency}"
        )
    return pool


def _named_or_cheapest(spec: StackedTrainingSpec, pools: tuple[GPUPool, ...]) -> GPUPool:
    names = ", ".join(sorted(pool.name for pool in pools)) or "none"
    if spec.compute.pool is not None:
        for pool in pools:
            if pool.name == spec.compute.pool:
                return pool
        raise PlanError(
            f"compute.pool {spec.compute.pool} does not exist (there are: {names}); "
            "create the GPUPool, or name another"
        )
    if not pools:
        raise PlanError("there is no GPUPool; ask the platform team to create one")
    serving = [pool for pool in pools if _serves(spec, pool)] or pools  # then it is said why not
    return min(serving, key=lambda pool: (Decimal(pool.spec.price_per_gpu_hour), pool.name))


def _serves(spec: StackedTrainingSpec, pool: GPUPool) -> bool:
    wants_fp8 = any(stage.lora and stage.lora.base_dtype for stage in spec.stages)
    return not (wants_fp8 and pool.spec.accelerator in _WITHOUT_FP8)


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
    per_node = pool.spec.gpus_per_node
    if per_node == 0:
        raise PlanError(
            f"pool {pool.name} of accelerator {pool.spec.accelerator} has gpusPerNode 0; "
            "correct the GPUPool, or name another"
        )
    gpus = 1 if kind is StepKind.EVALUATE else spec.compute.gpus or 1
    pods = -(-gpus // per_node)
    if gpus % pods:
        raise PlanError(
            f"compute.gpus {gpus} does not divide into whole pods on pool {pool.name} "
            f"with {per_node} GPUs per node; ask for a multiple of {per_node}"
        )
    strategy = Strategy(
        processes=gpus // pods,
        nodes=pods,
        zero_stage=3 if gpus > 1 and stage.method is Method.FULL else 0,
    )
    return Placement(
        pool, pods=pods, gpus_per_pod=gpus // pods, on_pool=True, strategy=strategy, queue=queue
    )
