"""A stack as plain lines for logs and pipes: one line per change, a pure function of two views."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from latticeforge_operator.api.status import StepPhase, StepStatus
from latticeforge_operator.cli import wording
from latticeforge_operator.cli.stackview import StackView

_QUARTERS = 4


def changes(before: StackView | None, after: StackView, now: datetime) -> list[str]:
    """What happened between two views, oldest first.

    Args:
        before: The view last shown; None at the start, when everything is news.
        after: The view now.
        now: The time that durations are counted to.
    """
    known = {(s.name, s.digest): s for s in before.status.steps} if before else {}
    lines = [
        line
        for step in after.status.steps
        for line in _step_changes(known.get((step.name, step.digest)), step, now)
    ]
    seen = set(before.events) if before else set()
    lines += [
        f"{event.reason}: {event.message}"
        for event in after.events
        if event.warning and event not in seen
    ]
    if before is None or before.status.phase is not after.status.phase:
        message = f": {after.status.message}" if after.status.message else ""
        lines.append(f"{after.name} is {after.status.phase}{message}")
    return lines


def _step_changes(before: StepStatus | None, step: StepStatus, now: datetime) -> Iterator[str]:
    phase_before = before.phase if before else StepPhase.PENDING
    attempts_before = len(before.attempts) if before else 0
    if len(step.attempts) > attempts_before and len(step.attempts) > 1:
        last = step.attempts[-2]
        reason = last.reason or last.outcome or "ended"
        yield f"{step.name}: attempt {len(step.attempts)}, after: {reason}"
    if step.phase is phase_before:
        if step.phase is StepPhase.RUNNING:
            yield from _quarters(before, step)
        return
    yield f"{step.name}: {_arrival(step, now)}"


def _quarters(before: StepStatus | None, step: StepStatus) -> Iterator[str]:
    reached = int(step.fraction * _QUARTERS)
    if 0 < reached < _QUARTERS and reached > int((before.fraction if before else 0) * _QUARTERS):
        details = wording.meters(step) or step.message
        yield f"{step.name}: {wording.percent(step.fraction)}{'  ' if details else ''}{details}"


def _arrival(step: StepStatus, now: datetime) -> str:
    """How the step came into the phase that it is in now."""
    result = wording.result_line(step)
    brought = f": {result}" if result else ""
    if step.phase is StepPhase.DONE:
        seconds = wording.elapsed(step, now)
        return f"done{f' in {wording.duration(seconds)}' if seconds is not None else ''}{brought}"
    if step.phase is StepPhase.REUSED:
        return f"reused{brought}"
    if step.phase is StepPhase.FAILED:
        return f"failed: {step.message}"
    return "started" if step.phase is StepPhase.RUNNING else "waiting"
