"""From a spec, pools and a model to a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from latticeforge_operator.api import GPUPool, StackedTrainingSpec
from latticeforge_operator.core.planning.history import History
from latticeforge_operator.core.planning.placement import PlanError, choose_pool, place
from latticeforge_operator.core.planning.plan import Option, Plan, StageData
from latticeforge_trainer.contract import StepKind

if TYPE_CHECKING:
    from latticeforge_trainer.estimate.base_model import BaseModel


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
        headroom: Share of the GPU memory to leave free beyond the model's own margin, for instance
            after a step has run out of it.

    Raises:
        PlanError: It cannot run; one sentence with numbers.
    """
    plan = survey(spec, pools, model, data=data, history=history, headroom=headroom)
    if plan.chosen is None:
        raise PlanError(plan.refusal or "nothing fits")
    return plan


def survey(
    spec: StackedTrainingSpec,
    pools: Sequence[GPUPool],
    model: BaseModel | None,
    *,
    data: Mapping[str, StageData] | None = None,
    history: History | None = None,
    headroom: float = 0.0,
) -> Plan:
    """The same, for people: every option is looked at, and a refusal comes with what would help.

    Raises:
        PlanError: There is nothing to look at, such as no pool.
    """
    del model, data, history, headroom
    pool = choose_pool(spec, tuple(pools))
    placements = [place(spec, stage, StepKind.TRAIN, pool) for stage in spec.stages]
    option = Option(pool, gpus=placements[0].pods * placements[0].gpus_per_pod)
    return Plan(spec, (option,), option)
