"""What is shown of a stack: one immutable value, taken from API objects."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from latticeforge_operator.api.status import Phase, TrainingStatus
from latticeforge_operator.cli.wording import when

_FINISHED = frozenset({Phase.SUCCEEDED, Phase.FAILED, Phase.PLANNED, Phase.SUSPENDED})


@dataclass(frozen=True)
class StackEvent:
    """One event of the stack."""

    at: datetime | None
    reason: str
    message: str
    warning: bool


@dataclass(frozen=True)
class StackView:
    """A stack at one moment."""

    name: str
    status: TrainingStatus
    current: bool
    """Whether the status speaks of the latest edit of the spec."""
    base: str = ""
    """The model that it starts from, as the spec names it."""
    methods: tuple[tuple[str, str], ...] = ()
    """Name and method of every stage."""
    limit: str | None = None
    """`spec.budget.limit`."""
    events: tuple[StackEvent, ...] = ()
    """The last ones, oldest first."""

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen until somebody edits the object."""
        return self.current and self.status.phase in _FINISHED


def stack_view(obj: dict[str, Any], events: list[dict[str, Any]]) -> StackView:
    """The view of a StackedTraining object.

    Args:
        obj: The object as the API server gives it.
        events: Its core/v1 Events in any order.
    """
    spec, meta = obj["spec"], obj["metadata"]
    status = TrainingStatus.model_validate(obj.get("status") or {})
    return StackView(
        name=meta["name"],
        status=status,
        current=status.observed_generation >= meta.get("generation", 1),
        base=spec["base"]["model"],
        methods=tuple((stage["name"], stage.get("method", "LoRA")) for stage in spec["stages"]),
        limit=(spec.get("budget") or {}).get("limit"),
        events=tuple(sorted(map(_event, events), key=_order)),
    )


def _event(event: dict[str, Any]) -> StackEvent:
    at = event.get("lastTimestamp") or event.get("eventTime") or event.get("firstTimestamp")
    return StackEvent(
        at=when(at),
        reason=event.get("reason", ""),
        message=event.get("message", ""),
        warning=event.get("type") == "Warning",
    )


def _order(event: StackEvent) -> str:
    return event.at.isoformat() if event.at else ""
