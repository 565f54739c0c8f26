"""From a spec, pools and a model to a plan: every option is looked at, and one is chosen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from latticeforge_operator.api import GPUPool, StackedTrainingSpec
from latticeforge_operator.api.pool import Accelerator
from latticeforge_operator.core.planning import words
from latticeforge_operator.core.planning.alternatives import that_are_faster, that_fit
from latticeforge_operator.core.planning.assumptions import assumptions, warnings
from latticeforge_operator.core.planning.choice import choose, closest
from latticeforge_operator.core.planning.history import History
from latticeforge_operator.core.planning.options import Request, option_of
from latticeforge_operator.core.planning.placement import PlanError, choose_pool, eligible, place
from latticeforge_operator.core.planning.plan import Alternative, Option, Plan, StageData
from latticeforge_operator.core.steps import merges
from latticeforge_trainer.contract import StepKind
from latticeforge_trainer.estimate.base_model import BaseModel, why_untrainable


def plan_stack(
    spec: StackedTrainingSpec,
    pools: Sequence[GPUPool],
    model: BaseModel | None,
    *,
    data: Mapping[str, StageData] | None = None,
    history: History | None = None,
    headroom: float = 0.0,
) -> Plan:
    """The plan of a stack that can run.

    Args:
        spec: What the user asks for.
        pools: Those that there are.
        model: The base; None: it is not known, and nothing is predicted.
        data: What is known of the stages' data, by stage.
        history: What earlier runs have measured.
        headroom: Share of the GPU memory to leave free beyond the estimate's own margin, for
            instance after a step has run out of it.

    Raises:
        PlanError: It cannot run; one sentence with numbers.
    """
    if model is None or not is_predictable(spec, pools):
        return _unpredicted(spec, pools)
    request = Request(spec, model, data or {}, history or History(), headroom)
    plan = _plan(request, pools)
    if plan.chosen is None:
        advice = next(_that_help(request, plan, pools), None)
        raise PlanError(f"{plan.refusal}{_advised(advice)}")
    return plan


def survey(
    spec: StackedTrainingSpec,
    pools: Sequence[GPUPool],
    model: BaseModel | None,
    *,
    data: Mapping[str, StageData] | None = None,
    history: History | None = None,
) -> Plan:
    """The same for people: a refusal is a plan too, and edits that would help come with it.

    Raises:
        PlanError: There is nothing to look at: no such pool, or a base that cannot be trained.
    """
    if model is None or not is_predictable(spec, pools):
        return _unpredicted(spec, pools)
    request = Request(spec, model, data or {}, history or History())
    plan = _plan(request, pools)
    if plan.chosen is None:
        return replace(plan, alternatives=tuple(_that_help(request, plan, pools)))
    most = max(o.gpus for o in plan.options if o.pool == plan.chosen.pool)
    return replace(plan, alternatives=tuple(that_are_faster(request, plan.chosen, most)))


def _plan(request: Request, pools: Sequence[GPUPool]) -> Plan:
    spec = request.spec
    _refuse_base(request)
    gpu_pools = _with_gpus(eligible(spec, pools))
    _refuse_currencies(spec, gpu_pools)
    options = tuple(
        option_of(request, pool, gpus) for pool in gpu_pools for gpus in gpu_counts(spec, pool)
    )
    chosen = choose(spec, options)
    if chosen is None:
        return Plan(spec, options, None, refusal=closest(spec, options).refusal)
    return Plan(
        spec,
        options,
        chosen,
        tradeoff=words.tradeoff(chosen),
        assumptions=assumptions(request, chosen),
        warnings=warnings(spec, chosen),
    )


def gpu_counts(spec: StackedTrainingSpec, pool: GPUPool) -> Iterator[int]:
    """The GPUs that are asked for; else powers of two up to a node, then of whole nodes.

    As many nodes as the pool is known to have, or one.
    """
    if spec.compute.gpus is not None:
        yield spec.compute.gpus
        return
    per_node = max(1, pool.spec.gpus_per_node)
    yield from _doubling(per_node)
    yield from (per_node * nodes for nodes in _doubling(pool.nodes or 1) if nodes > 1)


def _doubling(most: int) -> Iterator[int]:
    count = 1
    while count < most:
        yield count
        count *= 2
    yield most


def _that_help(request: Request, plan: Plan, pools: Sequence[GPUPool]) -> Iterator[Alternative]:
    """Edits that would make a refused stack fit."""
    seen = {option.pool.name for option in plan.options}
    others = [pool for pool in _with_gpus(pools) if pool.name not in seen]
    return that_fit(request, closest(request.spec, plan.options), others)


def _advised(advice: Alternative | None) -> str:
    return f"; what would fit: {advice.change}" if advice else ""


def _refuse_base(request: Request) -> None:
    spec, model = request.spec, request.model
    for index, stage in enumerate(spec.stages):
        if why := why_untrainable(model.quantization, stage.method, spec.base.model):
            raise PlanError(f"{spec.base.model} {why}")
        if model.quantization is not None and merges(spec, index):
            raise PlanError(
                f"stage {stage.name}: an adapter cannot be merged into the {model.quantization} "
                f"weights of {spec.base.model}, as that changes what it computes; publish the "
                "adapter (artifact Adapter, handoff ContinueAdapter), or use the 16-bit base"
            )


def _refuse_currencies(spec: StackedTrainingSpec, pools: Sequence[GPUPool]) -> None:
    currencies = sorted({pool.spec.currency for pool in pools})
    if spec.budget is None and len(currencies) > 1:
        raise PlanError(
            f"the pools are priced in {' and '.join(currencies)}, which cannot be compared; name "
            "compute.pool, or give a budget in one of them"
        )


def is_predictable(spec: StackedTrainingSpec, pools: Sequence[GPUPool]) -> bool:
    """Whether there are GPUs to run on: on CPU nothing is predicted.

    Raises:
        PlanError: There is no pool at all, or not the one that is named.
    """
    return bool(_with_gpus(eligible(spec, pools)))


def _with_gpus(pools: Sequence[GPUPool]) -> list[GPUPool]:
    return [pool for pool in pools if pool.spec.accelerator is not Accelerator.CPU]


def _unpredicted(spec: StackedTrainingSpec, pools: Sequence[GPUPool]) -> Plan:
    """A plan of places alone."""
    pool = choose_pool(spec, pools)
    placements = [place(spec, stage, StepKind.TRAIN, pool) for stage in spec.stages]
    option = Option(pool, gpus=placements[0].pods * placements[0].gpus_per_pod)
    return Plan(spec, (option,), option)
