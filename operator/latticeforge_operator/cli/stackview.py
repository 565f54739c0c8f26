"""What is shown of a stack: one immutable value, taken from API objects.

The spec is read as it stands, not validated: a stack that is refused for its spec is shown too.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from latticeforge_operator.api.status import Phase, StepStatus, TrainingStatus
from latticeforge_operator.cli.wording import when

_FINISHED = frozenset({Phase.SUCCEEDED, Phase.FAILED, Phase.PLANNED, Phase.SUSPENDED})


@dataclass(frozen=True)
class StackEvent:
    """One event of the stack."""

    at: datetime | None
    reason: str
    message: str
    warning: bool
    count: int = 1
    """How often it happened."""


@dataclass(frozen=True)
class Stage:
    """A stage as the spec has it."""

    name: str
    method: str
    gates: tuple[tuple[str, str], ...] = ()
    """Suites, each with what its score must show in words."""


@dataclass(frozen=True)
class StackView:
    """A stack at one moment."""

    name: str
    status: TrainingStatus
    current: bool
    """Whether the status speaks of the latest edit of the spec."""
    namespace: str = "default"
    created: datetime | None = None
    base: str = ""
    """The model that it starts from, as the spec names it."""
    stages: tuple[Stage, ...] = ()
    destination: str = ""
    """`spec.publish.repository`; empty: the model stays in the store."""
    limit: str | None = None
    """`spec.budget.limit`."""
    events: tuple[StackEvent, ...] = ()
    """Oldest first."""
    unread: str = ""
    """Why there are no events; empty: they were read."""

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen until somebody edits the object."""
        return self.current and self.status.phase in _FINISHED

    def steps_of(self, stage: str) -> list[StepStatus]:
        """A stage's steps in order."""
        return [step for step in self.status.steps if step.name.rpartition("/")[0] == stage]


def stack_view(obj: dict[str, Any], events: list[dict[str, Any]], *, unread: str = "") -> StackView:
    """The view of a StackedTraining object.

    Args:
        obj: The object as the API server gives it.
        events: Its core/v1 Events in any order.
        unread: Why its events could not be read.
    """
    spec, meta = obj["spec"], obj["metadata"]
    status = TrainingStatus.model_validate(obj.get("status") or {})
    return StackView(
        name=meta["name"],
        namespace=meta["namespace"],
        created=when(meta.get("creationTimestamp")),
        status=status,
        current=status.observed_generation >= meta.get("generation", 1),
        base=spec["base"]["model"],
        stages=tuple(map(_stage, spec["stages"])),
        destination=(spec.get("publish") or {}).get("repository", ""),
        limit=(spec.get("budget") or {}).get("limit"),
        events=tuple(sorted(map(_event, events), key=_time)),
        unread=unread,
    )


def _stage(stage: dict[str, Any]) -> Stage:
    gates = tuple((gate["suite"], _gate(gate)) for gate in stage.get("evaluate") or ())
    return Stage(stage["name"], stage.get("method", "LoRA"), gates)


def _gate(gate: dict[str, Any]) -> str:
    """Such as `≥ 0.95` or `drop ≤ 0.02 from Base`."""
    minimum, drop = gate.get("minimum"), gate.get("maximumDrop")
    parts = [f"≥ {minimum}"] if minimum is not None else []
    if drop is not None:
        parts.append(f"drop ≤ {drop} from {gate.get('against', 'Previous')}")
    return ", ".join(parts)


def _event(event: dict[str, Any]) -> StackEvent:
    at = event.get("lastTimestamp") or event.get("eventTime") or event.get("firstTimestamp")
    return StackEvent(
        at=when(at),
        reason=event.get("reason") or "",
        message=event.get("message") or "",
        warning=event.get("type") == "Warning",
        count=event.get("count") or 1,
    )


def _time(event: StackEvent) -> datetime:
    return event.at or datetime.min.replace(tzinfo=UTC)
