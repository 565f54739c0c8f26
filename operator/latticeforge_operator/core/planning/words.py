"""What is planned and what is refused, in sentences with their numbers."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from latticeforge_operator.api import GPUPool, StackedTrainingSpec
from latticeforge_operator.api.base import parse_duration
from latticeforge_operator.api.training import OnExceed
from latticeforge_operator.core.planning.plan import Misfit, Option, StagePlan
from latticeforge_operator.core.planning.search import Site, Task, least
from latticeforge_trainer.contract import Method, Offload, Recompute
from latticeforge_trainer.estimate.base_model import BaseModel
from latticeforge_trainer.estimate.terms import GIB, Term, total

ADAMW_BYTES = 16
"""Of each parameter in plain mixed precision: weights and gradients in 16 bits, and in 32 bits the
weights and both moments."""

_SECONDS_PER_HOUR = 3600

_OFFLOADED = {
    Offload.OPTIMIZER: "AdamW's states in host memory",
    Offload.ALL: "weights and AdamW's states in host memory",
}

_RECOMPUTED = {
    Recompute.NOTHING: "nothing recomputed",
    Recompute.ELEMENTWISE: "norms and gated products recomputed",
    Recompute.LAYERS: "whole layers recomputed",
    Recompute.OFFLOAD: "whole layers recomputed, their inputs in host memory",
}

_IN_MIXTURES = {
    Recompute.ELEMENTWISE: "in norms and gated products",
    Recompute.LAYERS: "whole",
    Recompute.OFFLOAD: "whole with their inputs in host memory",
}


def gib(size: float) -> str:
    """A size as `135.4 GiB`."""
    return f"{size / GIB:,.1f} GiB"


def billions(count: int) -> str:
    """Parameters as `72.7 B`."""
    return f"{count / 1e9:.1f} B" if count >= 1e8 else f"{count / 1e6:.0f} M"


def strategy(stage: StagePlan) -> str:
    """How a stage trains: `ZeRO-3, AdamW's states in host memory, micro-batch 2 x 4, …`."""
    used = stage.strategy
    nodes = f" on {used.nodes} nodes" if used.nodes > 1 else ""
    parts = [f"{_sharding(used.zero_stage, stage.run.world)}{nodes}"]
    if used.offload is not Offload.NONE:
        parts.append(_OFFLOADED[used.offload])
    parts.append(f"micro-batch {used.micro_batch} × {stage.run.micro_batches}")
    parts.append(_recomputed(stage.memory.modes))
    return ", ".join(parts)


def _sharding(stage: int, world: int) -> str:
    if stage:
        return f"ZeRO-{stage}"
    return "data-parallel" if world > 1 else "one GPU"


def _recomputed(modes: Sequence[Recompute]) -> str:
    if len(set(modes)) == 1:
        return _RECOMPUTED[modes[0]]
    counts = ((modes.count(mode), how) for mode, how in _IN_MIXTURES.items())
    parts = ", ".join(f"{count} {how}" for count, how in counts if count)
    return f"of {len(modes)} layers recomputed: {parts}"


def states(model: BaseModel, gpus: int) -> str:
    """The arithmetic of plain AdamW: `16 bytes × 72.7 B ÷ 8 = 135.4 GiB`."""
    size = ADAMW_BYTES * model.parameters.total / gpus
    shared = f" ÷ {gpus}" if gpus > 1 else ""
    return f"{ADAMW_BYTES} bytes × {billions(model.parameters.total)}{shared} = {gib(size)}"


def unfit(site: Site, task: Task) -> str:
    """What does not fit where."""
    where = f"{site.gpus} × {site.chip.name}" if site.gpus > 1 else f"one {site.chip.name}"
    return (
        f"stage {task.stage}: method {task.payload.method} of "
        f"{billions(task.model.parameters.total)} parameters does not fit on {where} of pool "
        f"{site.pool.name}"
    )


def misfit(site: Site, task: Task, misfits: Sequence[Misfit]) -> str:
    """Why a stage does not fit: the least that it needs, on the GPUs and in host memory."""
    closest = least(misfits)
    sharded = _sharding(closest.strategy.zero_stage, site.gpus) if site.gpus > 1 else "it"
    parts = []
    if not closest.fits_gpu:
        parts.append(
            f"{sharded} takes {gib(closest.memory.reserved)} on each GPU, which offers "
            f"{gib(closest.capacity)}{_of_states(site, task)}"
        )
    return "; ".join([*parts, *_host(site, misfits)])


def _of_states(site: Site, task: Task) -> str:
    exact = task.payload.method is Method.FULL and task.payload.optimizer_states == "fp32"
    return f" ({states(task.model, site.gpus)} before activations)" if exact else ""


def _host(site: Site, misfits: Sequence[Misfit]) -> list[str]:
    """What is missing of host memory, where the GPUs alone would do."""
    waiting = [m for m in misfits if m.fits_gpu]
    if not waiting:
        return []
    modest = min(waiting, key=lambda m: total(m.host))
    what = _OFFLOADED.get(modest.strategy.offload, "layers' inputs in host memory")
    needed = f"with {what} it takes {gib(total(modest.host))} of each pod's host memory"
    if site.host_bytes is None:
        return [f"{needed}, and the pool does not say its hostMemory"]
    share = f"{site.processes} of a node's {site.pool.spec.gpus_per_node} GPUs"
    return [f"{needed}, and the share of {share} is {gib(site.host_bytes)}"]


def too_large_to_evaluate(stage: str, size: int, capacity: int, pool: GPUPool) -> str:
    """Why a model cannot be evaluated."""
    return (
        f"stage {stage}: evaluation loads the whole model on one GPU, {gib(size)}, and one "
        f"{pool.spec.accelerator} of pool {pool.name} offers {gib(capacity)}; use a pool of "
        "larger GPUs, or leave evaluate out"
    )


def too_large_for_volume(terms: Sequence[Term], needed: int, spec: StackedTrainingSpec) -> str:
    """Why a volume is too small."""
    largest = max(terms, key=lambda term: term.bytes)
    return (
        f"storage.size {spec.storage.size} is too small: the stack writes {gib(needed)}, of which "
        f"{gib(largest.bytes)} for {largest.name} ({largest.why}); ask for {rounded_up(needed)}"
    )


def rounded_up(size: int) -> str:
    """A quantity with room: the next multiple of 100 Gi."""
    return f"{-(-size // (100 * GIB)) * 100}Gi"


def hours(seconds: float) -> str:
    """A time as `1.7 h`, or in minutes below an hour."""
    if seconds < _SECONDS_PER_HOUR:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / _SECONDS_PER_HOUR:.1f} h"


def too_slow(spec: StackedTrainingSpec, option: Option) -> str | None:
    """Why an option misses the deadline; None: it does not, or nobody knows."""
    if spec.compute.deadline is None or not option.predicted:
        return None
    expected = option.seconds.expected
    if expected <= parse_duration(spec.compute.deadline).total_seconds():
        return None
    return f"takes {hours(expected)}, more than compute.deadline {spec.compute.deadline}"


def too_dear(spec: StackedTrainingSpec, option: Option) -> str | None:
    """Why an option breaks the budget even at best; None: it does not, or nobody knows."""
    budget = spec.budget
    if budget is None or budget.on_exceed is OnExceed.WARN or not option.predicted:
        return None
    if option.cost.low <= Decimal(budget.limit):
        return None
    return f"costs {cost(option)}, more than budget.limit {budget.limit} even at best"


def cost(option: Option) -> str:
    """Money as `48.12 USD (40.10–60.15)`."""
    spread, currency = option.cost, option.pool.spec.currency
    return f"{spread.expected:,} {currency} ({spread.low:,}–{spread.high:,})"


def tradeoff(option: Option) -> str:
    """What was given for fitting, in one sentence; empty where nothing was."""
    moved = next((s for s in option.stages if s.strategy.offload is not Offload.NONE), None)
    if moved is None:
        return ""
    update = next((t.seconds for t in moved.speed.terms if t.name == "update"), 0.0)
    exact = moved.run.payload.optimizer_states == "fp32"
    why = f"{states(moved.run.model, moved.run.world)} alone" if exact else "states and activations"
    return (
        f"{'exact AdamW' if exact else 'AdamW'} ({why}) does not fit on the GPUs beside "
        f"activations, so with {_OFFLOADED[moved.strategy.offload]} ({gib(total(moved.host))} of "
        f"each pod's) every step waits {update:.0f} of its {moved.speed.seconds_per_step:.0f} s "
        "for the host to update the weights"
    )
