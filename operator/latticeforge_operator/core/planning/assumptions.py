"""What a plan's figures rest on, and what its author should know before it runs."""

from __future__ import annotations

from decimal import Decimal

from latticeforge_operator.api import StackedTrainingSpec
from latticeforge_operator.core.planning import timing, words
from latticeforge_operator.core.planning.choice import is_within_budget
from latticeforge_operator.core.planning.options import Request
from latticeforge_operator.core.planning.plan import Option, StagePlan


def assumptions(request: Request, option: Option) -> tuple[str, ...]:
    """What the chosen option's figures rest on, one sentence each."""
    return tuple(
        sentence
        for sentence in (
            *(_tokens(stage) for stage in option.stages),
            *(_speed(stage, option) for stage in option.stages),
            _aside(option),
            _nodes(request.spec, option),
            _host(option),
            _spot(option),
        )
        if sentence
    )


def _tokens(stage: StagePlan) -> str:
    data = stage.data
    if data.tokens is None:
        return f"{stage.stage}: tokens are unknown; figures are for a million of them"
    if data.exact:
        return f"{stage.stage}: {data.tokens:,} tokens, as given or counted"
    return (
        f"{stage.stage}: about {data.tokens:,} tokens, from the size of the data "
        f"(±{timing.TOKENS_ERROR:.0%})"
    )


def _speed(stage: StagePlan, option: Option) -> str:
    factor = stage.factor
    if factor.runs:
        return (
            f"{stage.stage}: {factor.runs} measured runs on pool {option.pool.name} were "
            f"{factor.value:.2f} times as fast as the model says (±{timing.MEASURED_ERROR:.0%})"
        )
    return f"{stage.stage}: tokens/s by the model alone (±{timing.SPEED_ERROR:.0%})"


def _aside(option: Option) -> str:
    if option.per_million:
        return ""
    return (
        "loading, evaluation, download and upload at assumed rates "
        f"(±{timing.ASIDE_ERROR:.0%}); an evaluate step holds one GPU"
    )


def _nodes(spec: StackedTrainingSpec, option: Option) -> str:
    if spec.compute.gpus is not None or option.pool.nodes is not None:
        return ""
    return f"pool {option.pool.name} does not say how many nodes it has: one is assumed"


def _host(option: Option) -> str:
    if option.pool.spec.host_memory is not None:
        return ""
    return (
        f"pool {option.pool.name} does not say its hostMemory: nothing is moved there, and "
        "checkpoints are taken to have room there"
    )


def _spot(option: Option) -> str:
    if not option.pool.spec.spot:
        return ""
    lost = max(timing.may_be_lost(stage) for stage in option.stages)
    return (
        f"spot nodes: the high figure has them taken back every {timing.SPOT_HOURS} h, with up to "
        f"{lost / 60:.0f} minutes of work lost"
    )


def warnings(spec: StackedTrainingSpec, option: Option) -> tuple[str, ...]:
    """What its author should know before it runs."""
    found = []
    if not is_within_budget(spec, option) and spec.budget is not None:
        found.append(
            f"the stack is expected to cost {words.cost(option)}, more than budget.limit "
            f"{Decimal(spec.budget.limit)}"
        )
    if option.per_million and (spec.budget is not None or spec.compute.deadline is not None):
        found.append("tokens are unknown, so budget and deadline have not been checked")
    has = option.pool.spec.gpus_per_node * (option.pool.nodes or 0)
    if option.pool.nodes is not None and option.gpus > has:
        found.append(f"{option.gpus} GPUs are asked for, and pool {option.pool.name} has {has} now")
    for stage in option.stages:
        sequences = stage.run.payload.sequences_per_step
        if sequences % stage.run.world:
            found.append(
                f"{stage.stage}: {sequences} sequences per step do not divide among "
                f"{stage.run.world} GPUs, so some wait; choose globalBatchTokens accordingly"
            )
    return tuple(found)
