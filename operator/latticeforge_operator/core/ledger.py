"""Attempts → seconds held → money.

A pod's seconds run from the moment it is scheduled until it is gone. They are kept in status by
the pod's name and never fall, so pods that have vanished stay counted, once; each new second is
charged at the price of the moment, so a changed price applies from then on.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from decimal import Decimal

from latticeforge_operator.api.status import Attempt, CostStatus, StepStatus
from latticeforge_operator.core.planning import Placement
from latticeforge_operator.core.values import PodView

CENT = Decimal("0.01")
MICRO = Decimal("0.000001")
_SECONDS_PER_HOUR = 3600


def held_seconds(pods: Iterable[PodView], now: datetime) -> dict[str, float]:
    """Seconds that each pod has held its resources, by name."""
    return {
        pod.name: max(0.0, ((pod.finished_at or now) - pod.scheduled_at).total_seconds())
        for pod in pods
        if pod.scheduled_at is not None
    }


def charge(attempt: Attempt, held: dict[str, float], placement: Placement) -> Attempt:
    """The attempt with the seconds held since it was last looked at added to its bill."""
    pods = attempt.pods | {name: max(s, attempt.pods.get(name, 0.0)) for name, s in held.items()}
    new = sum(pods.values()) - sum(attempt.pods.values())
    if new <= 0:
        return attempt
    rate = placement.price_per_hour / placement.pods / _SECONDS_PER_HOUR
    cost = (Decimal(attempt.cost) + rate * Decimal(new)).quantize(MICRO)
    return attempt.model_copy(update={"pods": pods, "cost": str(cost)})


def total(steps: Iterable[StepStatus], retired: Decimal) -> Decimal:
    """Money spent on these steps, and on steps that are no longer part of the stack."""
    return retired + sum((Decimal(a.cost) for s in steps for a in s.attempts), start=Decimal(0))


def summary(steps: Iterable[StepStatus], retired: Decimal, currency: str) -> CostStatus:
    """The bill as status shows it."""
    steps = list(steps)
    attempts = [attempt for step in steps for attempt in step.attempts]
    lost = sum(
        (Decimal(a.cost) for a in attempts if a.outcome not in (None, "Done")), start=Decimal(0)
    )
    return CostStatus(
        spent=str(total(steps, retired).quantize(CENT)),
        currency=currency,
        lost=str((lost + retired).quantize(CENT)),
        retired=str(retired),
        gpu_seconds=round(sum(sum(a.pods.values()) * a.gpus_per_pod for a in attempts), 1),
    )
