"""Numbers, durations and step results as short text; everything here is pure."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any
from urllib.parse import unquote, urlparse

from pydantic import TypeAdapter, ValidationError

from latticeforge_operator.api.status import StepPhase, StepStatus, TrainingStatus
from latticeforge_trainer.contract import (
    EvaluateResult,
    MergeResult,
    PrepareResult,
    PublishResult,
    StepResult,
    TrainResult,
)

_RESULT: TypeAdapter[StepResult] = TypeAdapter(StepResult)


def duration(seconds: float) -> str:
    """`9s`, `1m 05s` or `2h 03m`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02d}m"


def percent(share: float, digits: int = 0) -> str:
    """`42 %`."""
    return f"{share * 100:.{digits}f} %"


def when(text: str | None) -> datetime | None:
    """The time that the API writes as RFC 3339."""
    return datetime.fromisoformat(text) if text else None


def elapsed(step: StepStatus, now: datetime | None) -> float | None:
    """Seconds from a step's start to its end or to now.

    Returns:
        None before it starts, and where it has no end although there is no now.
    """
    start, end = when(step.started_at), _end(step) or now
    return None if start is None or end is None else max(0.0, (end - start).total_seconds())


def _end(step: StepStatus) -> datetime | None:
    """A step that failed ended with its last attempt."""
    if step.phase is StepPhase.FAILED and step.attempts:
        return when(step.attempts[-1].ended_at)
    return when(step.finished_at)


def remaining(step: StepStatus, now: datetime | None) -> float | None:
    """Seconds that a running step still needs at its speed so far; None while that is a guess."""
    so_far = elapsed(step, now)
    if so_far is None or not 0.03 <= step.fraction < 1:
        return None
    return so_far * (1 - step.fraction) / step.fraction


def stack_remaining(status: TrainingStatus, now: datetime) -> float | None:
    """Seconds to `status.progress.eta`."""
    end = when(status.progress.eta)
    return max(0.0, (end - now).total_seconds()) if end else None


def money(status: TrainingStatus, limit: str | None) -> str:
    """What was spent, of how much, and what the whole is expected to cost."""
    cost = status.cost
    spent = f"{cost.spent} of {limit} {cost.currency}" if limit else f"{cost.spent} {cost.currency}"
    return f"{spent}, about {cost.forecast} in the end" if cost.forecast else spent


def meters(step: StepStatus) -> str:
    """The gauges of a running train step: `loss 0.812 · 412 tokens/s · MFU 51.0 % · 84.2 GiB`.

    The memory is the most that was reserved on a GPU.
    """
    gauges, parts = step.gauges, []
    if gauges is None:
        return ""
    if gauges.loss is not None:
        parts.append(f"loss {gauges.loss:.3f}")
    if gauges.tokens_per_second is not None:
        parts.append(f"{gauges.tokens_per_second:,.0f} tokens/s")
    if gauges.mfu is not None:
        parts.append(f"MFU {percent(gauges.mfu, 1)}")
    if gauges.peak_memory_reserved_bytes is not None:
        parts.append(f"{gauges.peak_memory_reserved_bytes / 2**30:.1f} GiB")
    return " · ".join(parts)


def result_of(step: StepStatus) -> StepResult | None:
    """A finished step's result; None when there is none, or it is a newer trainer's."""
    if step.result is None:
        return None
    try:
        return _RESULT.validate_python(step.result)
    except ValidationError:
        return None


def result_line(step: StepStatus) -> str:
    """What a finished step has brought, in a few words."""
    result = result_of(step)
    return "" if result is None else _RESULT_LINES[type(result)](result)


def _prepared(result: PrepareResult) -> str:
    samples = sum(source.samples for source in result.data)
    return f"{samples:,} samples, {result.tokens:,} tokens"


def _trained(result: TrainResult) -> str:
    mfu = "" if result.mfu is None else f", MFU {percent(result.mfu, 1)}"
    held = result.validation_loss
    held_out = "" if held is None else f", held out {held:.3f}"
    return (
        f"loss {result.first_loss:.3f} → {result.final_loss:.3f}{held_out}, "
        f"{result.steps:,} steps, {result.tokens_per_second:,.0f} tokens/s{mfu}"
    )


def _merged(result: MergeResult) -> str:
    return f"{size(result.bytes)}, top-1 agreement {percent(result.top1_agreement, 1)}"


def _evaluated(result: EvaluateResult) -> str:
    return ", ".join(f"{score.suite} {score.value:.2f}" for score in result.table[0].scores)


def _published(result: PublishResult) -> str:
    return f"{result.files} files, {size(result.bytes)}"


_RESULT_LINES: dict[type, Callable[[Any], str]] = {
    PrepareResult: _prepared,
    TrainResult: _trained,
    MergeResult: _merged,
    EvaluateResult: _evaluated,
    PublishResult: _published,
}


def size(count: float) -> str:
    """Bytes with a decimal unit: `272 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def place(url: str) -> str:
    """A published model's URL as something to open or pass on: a folder's path, or the URL."""
    parts = urlparse(url)
    return unquote(parts.path) if parts.scheme == "file" else url
