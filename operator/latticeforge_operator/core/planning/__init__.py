"""Where and how a stack runs, and what that takes: placement, memory, time and money.

    placement   the pods of one step
    plan        the values: what was planned, and what else was looked at
    stack       `plan_stack`: from a spec, pools and a model to a plan

Everything is arithmetic on values: nothing here reads a clock, a file or a cluster.
"""

from latticeforge_operator.core.planning.document import plan_document, plan_status
from latticeforge_operator.core.planning.history import History, Measured, measured_in
from latticeforge_operator.core.planning.placement import (
    Placement,
    PlanError,
    choose_pool,
    is_on_pool,
    place,
)
from latticeforge_operator.core.planning.plan import (
    Alternative,
    Misfit,
    Option,
    Plan,
    Spread,
    StageData,
    StagePlan,
    Work,
    data_of,
)
from latticeforge_operator.core.planning.stack import is_predictable, plan_stack, survey

__all__ = [
    "Alternative",
    "History",
    "Measured",
    "Misfit",
    "Option",
    "Placement",
    "Plan",
    "PlanError",
    "Spread",
    "StageData",
    "StagePlan",
    "Work",
    "choose_pool",
    "data_of",
    "is_on_pool",
    "is_predictable",
    "measured_in",
    "place",
    "plan_document",
    "plan_stack",
    "plan_status",
    "survey",
]
