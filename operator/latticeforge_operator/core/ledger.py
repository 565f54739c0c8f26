"""Attempts → seconds held → money, of which a part is spent on waiting.

A pod's seconds run from the moment it is scheduled until it is gone. They are kept in status by
the pod's name and never fall, so pods that have vanished stay counted, once; each new second is
charged at the price of the moment, so a changed price applies from then on.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from decimal import ROUND_DOWN, Decimal

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


def idle_seconds(pods: Iterable[PodView], now: datetime) -> dict[str, float]:
    """Seconds that each pod of one Job has held its resources before the work began, by name.

    Pods that run together begin together: one that is ready waits for its peers, and holds its GPUs
    meanwhile.
    """
    pods = list(pods)
    active = [pod for pod in pods if pod.active]
    started = [pod.started_at for pod in active if pod.started_at is not None]
    together = max(started) if started and len(started) == len(active) else now
    idle = {}
    for name, seconds in held_seconds(pods, now).items():
        pod = next(pod for pod in pods if pod.name == name)
        begun = together if pod.active else pod.started_at or pod.finished_at or now
        waited = (begun - pod.scheduled_at).total_seconds() if pod.scheduled_at else 0.0
        idle[name] = min(max(0.0, waited), seconds)
    return idle


def charge(
    attempt: Attempt, held: dict[str, float], price: Decimal, idle: dict[str, float] | None = None
) -> Attempt:
    """The attempt with the seconds held since it was last looked at added to its bill.

    Args:
        attempt: The attempt so far.
        held: Seconds that each of its pods has held its resources.
        price: Money per hour that one of its pods costs now.
        idle: How many of them each has waited.
    """
    pods, waited = _grown(attempt.pods, held), _grown(attempt.idle, idle or {})
    new = sum(pods.values()) - sum(attempt.pods.values())
    if new <= 0:
        return attempt
    new_idle = min(new, sum(waited.values()) - sum(attempt.idle.values()))

    def more(sum_so_far: str, seconds: float) -> str:
        bill = Decimal(sum_so_far) + price * Decimal(seconds) / _SECONDS_PER_HOUR
        return str(bill.quantize(MICRO))

    return attempt.model_copy(
        update={
            "pods": pods,
            "cost": more(attempt.cost, new),
            "idle": waited,
            "idle_cost": more(attempt.idle_cost, new_idle),
        }
    )


def _grown(known: dict[str, float], seen: dict[str, float]) -> dict[str, float]:
    """What is known, where nothing ever falls."""
    return known | {name: max(s, known.get(name, 0.0)) for name, s in seen.items()}


def pod_price(step: str, attempt: Attempt, pool: GPUPool) -> Decimal:
    """Money per hour of one pod of an attempt; steps that run off the pool hold nothing."""
    if not is_on_pool(kind_of(step)):
        return Decimal(0)
    return Decimal(pool.spec.price_per_gpu_hour) * max(1, attempt.gpus_per_pod)


def charge_attempt(
    step: str, attempt: Attempt, pods: Iterable[PodView], pool: GPUPool, now: datetime
) -> Attempt:
    """The attempt of a step, charged for its pods as they are observed."""
    own = [pod for pod in pods if pod.job == attempt.job]
    price = pod_price(step, attempt, pool)
    return charge(attempt, held_seconds(own, now), price, idle_seconds(own, now))


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
    """The bill as status shows it: useful, lost and waiting are the whole of it, to the cent."""
    steps = list(steps)
    attempts = [attempt for step in steps for attempt in step.attempts]
    waiting = sum((Decimal(a.idle_cost) for a in attempts), start=Decimal(0))
    redone = (a for a in attempts if a.outcome not in (None, "Done"))
    lost = sum((Decimal(a.cost) - Decimal(a.idle_cost) for a in redone), start=retired)
    spent = total(steps, retired).quantize(CENT)
    lost, waiting = (part.quantize(CENT, ROUND_DOWN) for part in (lost, waiting))
    return CostStatus(
        spent=str(spent),
        currency=currency,
        useful=str(spent - lost - waiting),
        lost=str(lost),
        waiting=str(waiting),
        retired=str(retired),
        gpu_seconds=round(sum(sum(a.pods.values()) * a.gpus_per_pod for a in attempts), 1),
    )
