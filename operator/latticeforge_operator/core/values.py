"""What is observed and what is decided, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from latticeforge_operator.api import GPUPool, TrainingStatus
from latticeforge_operator.core.planning import History, Placement
from latticeforge_trainer.contract import Progress, StepConfig


@dataclass(frozen=True)
class PodView:
    """What matters of a pod."""

    name: str
    job: str
    phase: str
    scheduled_at: datetime | None = None
    started_at: datetime | None = None
    """When the trainer's container began to run."""
    finished_at: datetime | None = None
    """When its last container ended."""
    exit_code: int | None = None
    """The trainer's exit code."""
    disrupted: bool = False
    """Preempted, evicted, or its node lost."""
    deleting: bool = False
    waiting: str = ""
    """Why it does not run yet, in the scheduler's or the kubelet's words."""
    ended_because: str = ""
    """What the kubelet says of the trainer's end beyond its exit code: OOMKilled, StartError, …"""
    node: str = ""
    log_tail: str = ""
    """The last lines of a failed trainer's log, without secrets."""

    @property
    def active(self) -> bool:
        """Whether it holds its resources."""
        return self.phase not in {"Succeeded", "Failed"}


@dataclass(frozen=True)
class JobView:
    """What matters of a Job: one attempt of one step."""

    name: str
    step: str
    digest: str
    attempt: int
    created_at: datetime
    finished_at: datetime | None = None
    suspended: bool = False
    queue: str = ""
    """Kueue LocalQueue that admits it."""
    deadline_seconds: int | None = None
    """After this long in one go it is ended, whoever lives."""
    succeeded: bool = False
    failed: bool = False
    reason: str = ""
    """Why it failed, in one word of the Job controller."""
    message: str = ""
    deleting: bool = False
    complaint: str = ""
    """Why the Job controller cannot create its pods: a quota, or who admits pods."""

    @property
    def finished(self) -> bool:
        """Whether it has ended."""
        return self.succeeded or self.failed


@dataclass(frozen=True)
class PublicBase:
    """What the Hub tells anybody of a stack's base, before `prepare` reads it with its token."""

    config: Mapping[str, Any] | None = None
    """The part of its `config.json` that sizes follow from; None: it is not to be had."""
    awaited: bool = False
    """Whether the Hub has been asked and has not answered yet."""


@dataclass(frozen=True)
class Observed:
    """The cluster as far as one stack is concerned."""

    pools: tuple[GPUPool, ...] = ()
    jobs: tuple[JobView, ...] = ()
    pods: tuple[PodView, ...] = ()
    progress: dict[tuple[str, str], Progress] = field(default_factory=dict)
    """The last report of each step, by its name and digest."""
    history: History = field(default_factory=History)
    """What finished train steps have measured, of this stack and of others."""
    public_base: PublicBase = field(default_factory=PublicBase)

    @property
    def unfinished(self) -> tuple[JobView, ...]:
        """Jobs that have not ended."""
        return tuple(job for job in self.jobs if not job.finished)


@dataclass(frozen=True)
class Launch:
    """One Job to create."""

    job: str
    """Name of the Job and of its config ConfigMap."""
    stack: str
    """Name of what the stack's steps share: progress ConfigMap, ServiceAccount, Role."""
    step: str
    digest: str
    attempt: int
    config: StepConfig
    placement: Placement
    deadline_seconds: int | None
    """After this long the Job is ended even if the operator is dead."""
    needs_token: bool
    """Whether the step's pod gets the Hub token."""
    avoided_nodes: tuple[str, ...] = ()
    """Nodes that other nodes are preferred to."""


@dataclass(frozen=True)
class Event:
    """Something that a person would want to know."""

    reason: str
    message: str
    warning: bool = False


@dataclass(frozen=True)
class Decision:
    """What to do now, and the status to show."""

    status: TrainingStatus
    launch: Launch | None = None
    suspend: tuple[str, ...] = ()
    """Jobs to suspend."""
    resume: tuple[str, ...] = ()
    """Jobs to continue."""
    deadlines: dict[str, int] = field(default_factory=dict)
    """Suspended Jobs whose deadline, which begins anew when they go on, no longer fits the budget,
    and the seconds that do."""
    delete: tuple[str, ...] = ()
    """Jobs whose step is no longer part of the stack, which stand still, or that a stack which
    ended left behind."""
    delete_volume: bool = False
    """Whether the stack's own volume goes."""
    events: tuple[Event, ...] = ()
    wake_at: datetime | None = None
    """When to look again even if nothing happens."""
