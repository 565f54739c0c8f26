"""Where and how a stack runs, and what that takes: placement, memory, time and money.

    stack         from a spec, pools and a model to a plan: `plan_stack`, and `survey` for people
    options       the stack on so many GPUs of one pool, or why it cannot be
    search        the fastest strategy of one stage that fits there
    strategies    what the trainer can run: the space of the search
    timing        how long every step takes, with low and high
    history       what finished runs have measured
    choice        objective, budget, deadline: which option is taken
    alternatives  edits that would make it fit, or faster
    words         sentences with their numbers; `assumptions` what figures rest on
    plan          the values; `document` shows them as status and JSON
    placement     the pods of one step, where nothing is predicted

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
