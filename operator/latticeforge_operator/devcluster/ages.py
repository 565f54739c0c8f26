"""Durations and ages in the two or three characters that `kubectl get` gives them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

_MINUTE, _HOUR, _DAY, _YEAR = 60, 3600, 86400, 365 * 86400
# Below each limit (seconds), the units to show: the coarse one alone, or with the finer one.
_STEPS = (
    (2 * _MINUTE, (1, "s"), None),
    (10 * _MINUTE, (_MINUTE, "m"), (1, "s")),
    (3 * _HOUR, (_MINUTE, "m"), None),
    (8 * _HOUR, (_HOUR, "h"), (_MINUTE, "m")),
    (2 * _DAY, (_HOUR, "h"), None),
    (8 * _DAY, (_DAY, "d"), (_HOUR, "h")),
    (2 * _YEAR, (_DAY, "d"), None),
    (8 * _YEAR, (_YEAR, "y"), (_DAY, "d")),
    (float("inf"), (_YEAR, "y"), None),
)


def human_duration(seconds: float) -> str:
    """Shortens a duration: 95s, 5m30s, 47m, 3h12m, 12h, 3d4h, 40d, 2y3d."""
    if seconds < -1:
        return "<invalid>"
    whole = max(0, int(seconds))
    _, (size, unit), finer = next(step for step in _STEPS if whole < step[0])
    text = f"{whole // size}{unit}"
    rest = whole % size // finer[0] if finer else 0
    return f"{text}{rest}{finer[1]}" if finer and rest else text


def age(value: Any, now: datetime) -> str:
    """Time since an RFC 3339 timestamp."""
    try:
        then = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return "<unknown>"
    return human_duration((now - then.astimezone(UTC)).total_seconds())
