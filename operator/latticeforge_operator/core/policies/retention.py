"""When what an ended stack has left behind is removed."""

from __future__ import annotations

from datetime import datetime

from latticeforge_operator.api.base import parse_duration


def removal_at(finished_at: str | None, ttl: str | None) -> datetime | None:
    """The moment from which Jobs and the stack's own volume go; None: they stay.

    Args:
        finished_at: `status.finishedAt`.
        ttl: `spec.ttlAfterFinished`.
    """
    if finished_at is None or ttl is None:
        return None
    return datetime.fromisoformat(finished_at) + parse_duration(ttl)
