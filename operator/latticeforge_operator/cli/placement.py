"""The plan that a stack follows, in a few lines: where, how long, how much, and how each stage."""

from __future__ import annotations

from rich.text import Text

from latticeforge_operator.api.status import PlanStatus, SpreadStatus, StagePlanStatus
from latticeforge_operator.cli.stackview import StackView


def placement(view: StackView) -> list[Text]:
    """Nothing while there is no plan."""
    plan = view.status.plan
    if plan is None:
        return []
    parts = [_where(plan)]
    if plan.hours is not None:
        parts.append(_spread(plan.hours, "h"))
    if plan.cost is not None:
        parts.append(_spread(plan.cost, plan.currency or ""))
    lines = [Text(" · ".join(parts)), *map(_stage, plan.stages)]
    return [*lines, Text(plan.tradeoff, style="dim")] if plan.tradeoff else lines


def _where(plan: PlanStatus) -> str:
    gpus = f"{plan.gpus} GPU{'s' if plan.gpus > 1 else ''}" if plan.gpus else "CPU"
    return f"pool {plan.pool}, {gpus}"


def _spread(spread: SpreadStatus, unit: str) -> str:
    return f"{spread.expected} {unit} ({spread.low} to {spread.high})"


def _stage(stage: StagePlanStatus) -> Text:
    parts = [stage.words]
    if stage.memory and stage.capacity:
        parts.append(f"{stage.memory} of {stage.capacity} GiB per GPU")
    if stage.tokens_per_second:
        parts.append(f"{stage.tokens_per_second:,.0f} tokens/s")
    return Text.assemble((stage.name, "bold"), f"  {' · '.join(filter(None, parts))}")
