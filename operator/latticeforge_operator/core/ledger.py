"""Attempts → seconds held → money.

A pod's seconds run from the moment it is scheduled until it is gone. They are kept in status by
the pod's name and never fall, so pods that have vanished stay counted, once; each new second is
charged at the price of the moment, so a changed price applies from then on.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from decimal import Decimal

from latticeforge_operator.api import GPUPool
from latticeforge_operator.api.status import Attempt, CostStatus, StepStatus
from latticeforge_operator.core.planning import is_on_pool
from latticeforge_operator.core.steps import kind_of
from latticeforge_operator.core.values import PodView

CENT = Decimal("0.01")
MICRO = Decimal("0.000001")
_SECONDS_PER_HOUR = 3600


def held_seconds(pods: Iterable[PodView], now: datetime) -> dict[str, float]:
    """Seconds that each pod has held its resources, by name.

    A pod that has ended nobody knows when is left out: it is not charged any further.
    """
    return {
        pod.name: max(0.0, (end - pod.scheduled_at).total_seconds())
        for pod in pods
        if pod.scheduled_at is not None and (end := _held_until(pod, now)) is not None
    }


def _held_until(pod: PodView, now: datetime) -> datetime | None:
    return pod.finished_at or (now if pod.active else None)


def charge(attempt: Attempt, held: dict[str, float], price: Decimal) -> Attempt:
    """The attempt with the seconds held since it was last looked at added to its bill.

    Args:
        attempt: The attempt so far.
        held: Seconds that each of its pods has held its resources.
        price: Money per hour that one of its pods costs now.
    """
    pods = attempt.pods | {name: max(s, attempt.pods.get(name, 0.0)) for name, s in held.items()}
    new = sum(pods.values()) - sum(attempt.pods.values())
    if new <= 0:
        return attempt
    cost = (Decimal(attempt.cost) + price * Decimal(new) / _SECONDS_PER_HOUR).quantize(MICRO)
    return attempt.model_copy(update={"pods": pods, "cost": str(cost)})


def pod_price(step: str, attempt: Attempt, pool: GPUPool) -> Decimal:
    """Money per hour of one pod of an attempt; steps that run off the pool hold nothing."""
    if not is_on_pool(kind_of(step)):
        return Decimal(0)
    return Decimal(pool.spec.price_per_gpu_hour) * max(1, attempt.gpus_per_pod)


def charge_attempt(
    step: str, attempt: Attempt, pods: Iterable[PodView], pool: GPUPool, now: datetime
) -> Attempt:
    """The attempt of a step, charged for its pods as they are observed."""
    held = held_seconds([pod for pod in pods if pod.job == attempt.job], now)
    return charge(attempt, held, pod_price(step, attempt, pool))


def charge_all(
    steps: Iterable[StepStatus], pods: Iterable[PodView], pool: GPUPool, now: datetime
) -> list[StepStatus]:
    """Every step with its attempts charged, also those that have ended: a pod may outlive them."""
    pods = list(pods)

    def charged(step: StepStatus) -> StepStatus:
        attempts = [charge_attempt(step.name, a, pods, pool, now) for a in step.attempts]
        return step.model_copy(update={"attempts": attempts})

    return [charged(step) for step in steps]


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
    spent = total(steps, retired).quantize(CENT)
    lost = (lost + retired).quantize(CENT)
    return CostStatus(
        spent=str(spent),
        currency=currency,
        useful=str(spent - lost),
        lost=str(lost),
        retired=str(retired),
        gpu_seconds=round(sum(sum(a.pods.values()) * a.gpus_per_pod for a in attempts), 1),
    )
