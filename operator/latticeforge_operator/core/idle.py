"""Decisions about stacks that cannot be moved on: refused, ended, or without a pool."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal

from latticeforge_operator.api import StackedTraining, TrainingStatus
from latticeforge_operator.api.status import Phase
from latticeforge_operator.api.training import Mode
from latticeforge_operator.core import ledger
from latticeforge_operator.core.planner import pool_at_hand
from latticeforge_operator.core.planning import PlanError
from latticeforge_operator.core.policies import retention
from latticeforge_operator.core.report import Report, timestamp
from latticeforge_operator.core.values import Decision, Event, Observed


def refuse(
    training_generation: int,
    status: TrainingStatus,
    observed: Observed,
    message: str,
    now: datetime,
) -> Decision:
    """The decision for a spec that cannot be read or met: a condition, not a crash.

    Args:
        training_generation: `metadata.generation`.
        status: The status so far; its costs and steps are kept.
        observed: The stack's part of the cluster; what runs for an earlier spec is ended.
        message: One sentence for its author.
        now: The time.
    """
    report = Report(status, training_generation, now)
    report.refused(message)
    events = [] if status.message == message else [Event("Refused", message, warning=True)]
    delete = tuple(job.name for job in observed.unfinished)
    return Decision(status=report.status, delete=delete, events=tuple(events))


def ended(
    training: StackedTraining, status: TrainingStatus, observed: Observed, now: datetime
) -> Decision:
    """The stack has ended and stays so; what still runs is ended, and billed until it is gone."""
    removal = retention.removal_at(status.finished_at, training.spec.ttl_after_finished)
    remove = removal is not None and now >= removal
    jobs = observed.jobs if remove else observed.unfinished
    delete = tuple(job.name for job in jobs if not job.deleting)
    delete_volume = remove and bool(training.spec.storage.size) and not status.volume_removed_at
    if delete_volume:
        status = status.model_copy(update={"volume_removed_at": timestamp(now)})
    try:
        pool = pool_at_hand(training.spec, status.plan, observed.pools)
        report = Report(status, training.generation, now)
        report.bill(ledger.charge_all(status.steps, observed.pods, pool, now), pool.spec.currency)
        status = report.status
    except PlanError:
        pass  # without its pool nothing has a price; the bill stays as it is
    return Decision(
        status=status,
        delete=delete,
        delete_volume=delete_volume,
        wake_at=None if remove else removal,
    )


def forgotten(status: TrainingStatus) -> TrainingStatus:
    """A status whose results went with the volume: nothing is done any more, all is still paid."""
    retired = ledger.total(status.steps, Decimal(status.cost.retired))
    cost = status.cost.model_copy(update={"retired": str(retired)})
    return status.model_copy(update={"steps": [], "cost": cost, "volume_removed_at": None})


def unplaced(
    training: StackedTraining,
    status: TrainingStatus,
    observed: Observed,
    message: str,
    now: datetime,
) -> Decision:
    """Nothing can be started; what runs goes on unless its user has asked for an end."""
    report = Report(status, training.generation, now)
    report.phase(Phase.PENDING, message)
    events = [] if status.message == message else [Event("Unplaced", message, warning=True)]
    stops = training.spec.suspend or training.spec.mode is Mode.PLAN
    suspend = tuple(job.name for job in observed.unfinished if stops and not job.suspended)
    return Decision(status=report.status, suspend=suspend, events=tuple(events))
