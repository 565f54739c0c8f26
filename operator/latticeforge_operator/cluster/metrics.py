"""Every metric that the operator serves: its name, what it says, and by which labels.

`telemetry` fills them; docs/reference/metrics.md lists them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Described:
    """One metric.

    Attributes:
        kind: What Prometheus takes it for.
        name: Without the suffixes that Prometheus gives to counters and histograms.
        text: What it says.
        labels: What tells its series apart.
    """

    kind: Literal["counter", "gauge", "histogram"]
    name: str
    text: str
    labels: tuple[str, ...] = ()

    @property
    def described(self) -> tuple[str, str, tuple[str, ...]]:
        """Name, text and labels, as prometheus_client takes them."""
        return self.name, self.text, self.labels


_PLACE = ("namespace", "pool")
_MONEY = (*_PLACE, "currency")

PASSES = Described(
    "counter",
    "latticeforge_reconciles",
    "Passes over stacks, by how they ended: done, unavailable (the API server) or defect (a bug)",
    ("result",),
)
PASS_SECONDS = Described(
    "histogram",
    "latticeforge_reconcile_duration_seconds",
    "How long one pass over one stack took",
)
FIRST_STEP_SECONDS = Described(
    "histogram",
    "latticeforge_time_to_first_step_seconds",
    "From the creation of a stack to its first Job",
)
CALLS = Described(
    "counter",
    "latticeforge_api_requests",
    "Requests to the API server, watches aside, by HTTP method",
    ("method",),
)
STACKS = Described("gauge", "latticeforge_stacks", "Stacks by phase", ("namespace", "phase"))
STEPS = Described(
    "gauge", "latticeforge_steps", "Steps by kind and phase", ("namespace", "kind", "phase")
)
GPUS_HELD = Described("gauge", "latticeforge_gpus_held", "GPUs that pods hold", _PLACE)
GPUS_IDLE = Described(
    "gauge",
    "latticeforge_gpus_idle",
    "Of the GPUs that pods hold, those of steps that report no work yet",
    _PLACE,
)
SPENT = Described("gauge", "latticeforge_spent", "Money spent on the stacks there are", _MONEY)
LOST = Described("gauge", "latticeforge_lost", "Money spent on work that was redone", _MONEY)
WAITING = Described(
    "gauge",
    "latticeforge_waiting",
    "Money spent on GPUs that were held before the work began",
    _MONEY,
)
BUDGET_USED = Described(
    "gauge",
    "latticeforge_budget_used_ratio",
    "Share of the budget that is spent, of each stack that has one and has not ended",
    ("namespace", "training"),
)
QUEUED_SECONDS = Described(
    "gauge",
    "latticeforge_queued_seconds",
    "Seconds that attempts waited for their first node",
    _PLACE,
)
TOKENS = Described(
    "gauge",
    "latticeforge_tokens_per_second",
    "Real tokens that running steps train on each second",
    _PLACE,
)
# Sums, where a mean of MFU would weigh one GPU like eight: divide by the GPUs held.
FLOPS = Described(
    "gauge",
    "latticeforge_model_flops_per_second",
    "Model FLOPs that running steps do each second",
    _PLACE,
)
ATTEMPTS = Described(
    "gauge", "latticeforge_attempts", "Attempts that ended, by outcome", ("namespace", "outcome")
)

METRICS = (
    STACKS,
    STEPS,
    ATTEMPTS,
    SPENT,
    LOST,
    WAITING,
    BUDGET_USED,
    GPUS_HELD,
    GPUS_IDLE,
    QUEUED_SECONDS,
    TOKENS,
    FLOPS,
    FIRST_STEP_SECONDS,
    PASSES,
    PASS_SECONDS,
    CALLS,
)
"""All of them: what is asked most comes first."""
