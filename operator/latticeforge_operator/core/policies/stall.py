"""Whether a train step stands still: its pods run, and nothing has moved for too long."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from latticeforge_operator.core.values import JobView, PodView
from latticeforge_trainer.contract import Progress


def stalls_at(
    job: JobView, pods: Sequence[PodView], progress: Progress | None, timeout: timedelta
) -> datetime | None:
    """When a running Job counts as stalled if nothing moves until then; None while it waits.

    Args:
        job: The Job of a train step.
        pods: Its pods.
        progress: The step's last report, which may be of an earlier attempt.
        timeout: How long progress may stand still.
    """
    active = [pod for pod in pods if pod.active]
    if job.suspended or job.deleting or not active:
        return None
    if any(pod.phase != "Running" or pod.deleting for pod in active):
        return None
    moments = [job.created_at, *(pod.scheduled_at for pod in active if pod.scheduled_at)]
    if progress is not None:
        moments.append(datetime.fromisoformat(progress.updated_at))
    return max(moments) + timeout
