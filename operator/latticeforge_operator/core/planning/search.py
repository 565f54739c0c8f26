"""The fastest strategy of one stage that fits on given GPUs.

Every sharding that the trainer runs is tried with growing micro-batches, until they no longer fit
or no longer pay. What is recomputed is left to the trainer, which chooses by the memory that it
finds (`Recompute.AUTO`, which the estimate simulates); a mode is named only where more memory must
stay free than the trainer would leave.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from latticeforge_operator.api import GPUPool
from latticeforge_operator.api.base import parse_quantity
from latticeforge_operator.core.planning.history import Factor
from latticeforge_operator.core.planning.plan import Misfit, StageData, StagePlan
from latticeforge_operator.core.planning.strategies import (
    NAMED,
    Sharding,
    micro_batches,
    shardings,
)
from latticeforge_trainer.contract import Offload, Recompute, Strategy, TrainPayload
from latticeforge_trainer.estimate.base_model import BaseModel
from latticeforge_trainer.estimate.chips import Chip
from latticeforge_trainer.estimate.host import host_memory
from latticeforge_trainer.estimate.memory import Memory, gpu_memory
from latticeforge_trainer.estimate.speed import speed
from latticeforge_trainer.estimate.terms import Term, total
from latticeforge_trainer.estimate.training import Run

ALIKE = 0.99
"""A strategy within this share of the fastest is taken before it if it needs less machinery."""

_OF_NO_WEIGHT = {
    "learning_rate",
    "schedule",
    "warmup_ratio",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "max_grad_norm",
    "continue_adapter",
    "seed",
}
"""What changes a result, but neither memory nor speed."""


@dataclass(frozen=True)
class Task:
    """One stage to be trained."""

    stage: str
    payload: TrainPayload
    model: BaseModel
    data: StageData
    factor: Factor

    @property
    def shape(self) -> str:
        """All of it that memory and speed follow from."""
        return f"{self.payload.model_dump_json(exclude=_OF_NO_WEIGHT)} {self.data.document_length}"

    def taken(self, plan: StagePlan) -> StagePlan:
        """The plan of a task of the same shape, for this one."""
        run = replace(plan.run, payload=self.payload)
        return replace(plan, stage=self.stage, run=run, factor=self.factor, data=self.data)


@dataclass(frozen=True)
class Site:
    """GPUs of a pool, in pods of equal size."""

    pool: GPUPool
    chip: Chip
    nodes: int
    """Pods, each on a node of its own."""
    processes: int
    """GPUs of each pod."""
    headroom: float = 0.0
    """Share of the GPU memory that is left free beyond the estimate's own margin."""

    @property
    def gpus(self) -> int:
        """Over all pods."""
        return self.nodes * self.processes

    @cached_property
    def host_bytes(self) -> int | None:
        """A pod's share of its node's memory; None: the pool does not say."""
        if self.pool.spec.host_memory is None:
            return None
        whole = parse_quantity(self.pool.spec.host_memory)
        return int(whole * self.processes / max(1, self.pool.spec.gpus_per_node))

    def capacity(self, memory: Memory) -> int:
        """What of a GPU's memory may be used."""
        return int(memory.capacity * (1 - self.headroom))


def search(task: Task, site: Site) -> StagePlan | list[Misfit]:
    """The fastest strategy that fits, or why none does: the least need of each sharding."""
    plans: list[StagePlan] = []
    misfits: list[Misfit] = []
    for sharding in shardings(task.payload, site.gpus):
        found = list(_growing(task, site, sharding))
        plans += [result for result in found if isinstance(result, StagePlan)]
        if isinstance(found[0], Misfit):
            misfits.append(found[0])
    if not plans:
        return misfits
    fastest = max(plan.speed.tokens_per_second for plan in plans)
    return next(plan for plan in plans if plan.speed.tokens_per_second >= ALIKE * fastest)


def least(misfits: Sequence[Misfit]) -> Misfit:
    """The one that needs the least of those that keep everything on the GPUs."""
    resident = [misfit for misfit in misfits if misfit.strategy.offload is Offload.NONE]
    return min(resident, key=lambda misfit: misfit.memory.reserved)


def _growing(task: Task, site: Site, sharding: Sharding) -> Iterator[StagePlan | Misfit]:
    """Ever larger micro-batches, while they fit and pay."""
    best = 0.0
    for micro_batch in micro_batches(task.payload, site.gpus):
        result = _tried(task, site, sharding, micro_batch)
        yield result
        if isinstance(result, Misfit) or result.speed.tokens_per_second < best:
            return
        best = result.speed.tokens_per_second


def _tried(task: Task, site: Site, sharding: Sharding, micro_batch: int) -> StagePlan | Misfit:
    """One micro-batch: recomputed as the trainer chooses, else as little as leaves enough free."""
    result = _judged(task, site, _strategy(site, sharding, micro_batch, Recompute.AUTO))
    if isinstance(result, StagePlan) or set(result.memory.modes) == {Recompute.OFFLOAD}:
        return result  # it fits; or the trainer itself would find nothing smaller
    smallest = _judged(task, site, _strategy(site, sharding, micro_batch, Recompute.OFFLOAD))
    if isinstance(smallest, Misfit) and not smallest.fits_gpu:
        return result
    named = (_judged(task, site, _strategy(site, sharding, micro_batch, mode)) for mode in NAMED)
    return next((plan for plan in named if isinstance(plan, StagePlan)), result)


def _strategy(site: Site, sharding: Sharding, micro_batch: int, mode: Recompute) -> Strategy:
    stage, offload = sharding
    return Strategy(
        processes=site.processes,
        nodes=site.nodes,
        micro_batch=micro_batch,
        zero_stage=stage,
        offload=offload,
        recompute=mode,
    )


def _judged(task: Task, site: Site, strategy: Strategy) -> StagePlan | Misfit:
    run = Run(task.model, task.payload, strategy, site.chip)
    memory = gpu_memory(run)
    host = host_memory(run, memory)
    capacity = site.capacity(memory)
    if memory.reserved > capacity or not _fits_host(site, run, memory, host):
        return Misfit(task.stage, strategy, memory, capacity, host)
    return StagePlan(
        stage=task.stage,
        run=run,
        memory=memory,
        host=host,
        host_left=None if site.host_bytes is None else site.host_bytes - total(host),
        speed=speed(run, task.data.document_length, memory=memory),
        factor=task.factor,
        data=task.data,
    )


def _fits_host(site: Site, run: Run, memory: Memory, host: tuple[Term, ...]) -> bool:
    """Where host memory is not known, nothing is moved there."""
    if site.host_bytes is None:
        return not run.offloads and Recompute.OFFLOAD not in memory.modes
    return total(host) <= site.host_bytes
