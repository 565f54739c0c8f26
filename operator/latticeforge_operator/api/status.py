"""`StackedTraining.status`: what it is doing, how far, what it cost, is it good, where is it.

The operator's memory too: steps and attempts are recorded here, so that nothing is counted twice or
forgotten when pods are gone or the operator starts again.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationError

from latticeforge_operator.api.base import APIModel
from latticeforge_trainer.contract import Strategy, TrainMeters


class Phase(StrEnum):
    """Where the stack stands."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUSPENDED = "Suspended"
    AWAITING_APPROVAL = "AwaitingApproval"
    PLANNED = "Planned"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


class StepPhase(StrEnum):
    """Where a step stands."""

    PENDING = "Pending"
    RUNNING = "Running"
    DONE = "Done"
    REUSED = "Reused"
    FAILED = "Failed"


class StatusModel(APIModel):
    """Read leniently: an older operator must be able to read a newer one's status."""

    model_config = ConfigDict(extra="ignore")


class Condition(StatusModel):
    """A `metav1.Condition`."""

    type: str
    """Accepted (the spec is valid), Planned (there is a plan that fits), Progressing (something
    runs), Succeeded (the model is finished)."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""
    reason: str
    """One word, for programs."""
    message: str
    """One sentence, for people."""
    observed_generation: int
    """The generation of the spec that this speaks of."""
    last_transition_time: str
    """When `status` last changed."""


class Attempt(StatusModel):
    """One Job of a step: the ledger's unit."""

    number: int
    """0 for the first."""
    job: str
    """Name of the Job."""
    outcome: str | None = None
    """How it ended: Done, Interrupted, Preempted, UserError, OutOfMemory, Numerical, Network,
    Stalled, Deadline, Vanished, Unreported or Failed; empty while it runs."""
    reason: str | None = None
    """Why it ended, in one sentence."""
    remedy: str | None = None
    """What followed."""
    counted: bool = False
    """Whether it counts against `failure.maxRestarts`."""
    nodes: list[str] = Field(default_factory=list)
    """Nodes on which it stood still; others are preferred from then on."""
    pods: dict[str, float] = Field(default_factory=dict)
    """Seconds that each of its pods held its GPUs, from scheduled to gone."""
    gpus_per_pod: int = 0
    """GPUs that each of its pods holds."""
    cost: str = "0"
    """Money that it spent."""
    idle: dict[str, float] = Field(default_factory=dict)
    """How many of these seconds passed before all its pods ran: images, volumes, its peers."""
    idle_cost: str = "0"
    """The part of `cost` that was spent on them."""
    queued_seconds: float | None = None
    """From the creation of its Job to its first scheduled pod: queue, quota, scheduler."""
    log: str | None = None
    """The last lines of the log of its failed pod."""
    ended_at: str | None = None
    """When it ended."""


class StepStatus(StatusModel):
    """One step of the stack."""

    name: str
    """`STAGE/KIND`, or `publish`."""
    digest: str
    """SHA-256 of everything that the result depends on; its artifact lies under that name in the
    store."""
    phase: StepPhase = StepPhase.PENDING
    """Where the step stands."""
    message: str = ""
    """What it is doing, or why it ended."""
    fraction: float = 0
    """Share that is done, from 0 to 1."""
    started_at: str | None = None
    """When its first Job was created."""
    finished_at: str | None = None
    """When it was done."""
    attempts: list[Attempt] = Field(default_factory=list)
    """Its Jobs so far."""
    meters: dict[str, Any] | None = Field(
        default=None, json_schema_extra={"x-kubernetes-preserve-unknown-fields": True}
    )
    """Gauges of a running train step: step, totalSteps, loss, tokensPerSecond, mfu, phases, …"""
    result: dict[str, Any] | None = Field(
        default=None, json_schema_extra={"x-kubernetes-preserve-unknown-fields": True}
    )
    """What the step reported when it was done."""

    @property
    def gauges(self) -> TrainMeters | None:
        """`meters`, if there are any and they are not those of another trainer."""
        try:
            return TrainMeters.model_validate(self.meters) if self.meters else None
        except ValidationError:
            return None


class ScoreStatus(StatusModel):
    """One suite's figure of a stage."""

    suite: str
    """Name of the suite."""
    value: str
    """Score from 0 to 1."""
    low: str
    """Lower bound of the 95 % interval."""
    high: str
    """Upper bound of the 95 % interval."""
    samples: int
    """Held-out problems."""
    base: str | None = None
    """The base model's score on the same problems."""
    previous: str | None = None
    """The previous stage's score on the same problems."""
    passed: bool
    """Whether the stage's gates on this suite passed."""
    message: str = ""
    """Why not, with the numbers."""


class StageStatus(StatusModel):
    """One stage of the stack."""

    name: str
    """Name of the stage."""
    phase: StepPhase
    """Where the stage stands."""
    scores: list[ScoreStatus] = Field(default_factory=list)
    """Its scores beside the base's and the previous stage's."""
    model: list[str] = Field(default_factory=list)
    """Artifacts that form the stage's model: the base or a merged model, then the adapter."""


class ProgressStatus(StatusModel):
    """How far the stack is."""

    percent: int = 0
    """Share of the work that is done, in per cent. A train step weighs as much as ten of prepare,
    merge or publish, an evaluate step as five."""
    eta: str | None = None
    """When it is expected to be finished."""
    loss: str | None = None
    """The running train step's loss."""


class CostStatus(StatusModel):
    """What the stack cost so far."""

    spent: str = "0.00"
    """Money spent, all attempts of all steps."""
    currency: str = "USD"
    """ISO 4217 code."""
    forecast: str | None = None
    """Money that the whole is expected to have cost in the end: by the plan, and once enough has
    run, if the rest goes as before; empty while neither is known, and when nothing runs."""
    useful: str = "0.00"
    """The part of `spent` that went into results; with `lost` and `waiting` it is the whole."""
    lost: str = "0.00"
    """The part of `spent` that went into attempts which had to be started again."""
    waiting: str = "0.00"
    """The part of `spent` for pods that held GPUs before all pods of their attempt ran."""
    retired: str = "0"
    """The part of `lost` that was spent on steps which are no longer part of the stack."""
    gpu_seconds: float = 0
    """GPU-seconds held."""


class SpreadStatus(StatusModel):
    """A predicted figure and how far it may be off."""

    low: str
    """If the model's error goes the good way."""
    expected: str
    """The prediction."""
    high: str
    """If the model's error goes the bad way, and spot nodes are taken back."""


class StagePlanStatus(StatusModel):
    """How one stage trains, and what it is predicted to need."""

    name: str
    """Name of the stage."""
    strategy: dict[str, Any] = Field(
        default_factory=dict, json_schema_extra={"x-kubernetes-preserve-unknown-fields": True}
    )
    """The trainer's strategy: processes, nodes, microBatch, zeroStage, offload, recompute, …"""
    words: str = ""
    """The strategy in words."""
    accumulation: int | None = None
    """Forward passes of each process in one optimizer step."""
    memory: str | None = None
    """Predicted peak of GPU memory, in GiB for each GPU."""
    capacity: str | None = None
    """What of a GPU's memory may be used, in GiB."""
    tokens: int | None = None
    """Real tokens of the stage over all epochs; empty while nobody knows."""
    tokens_exact: bool = False
    """Whether they were counted by `prepare`, rather than estimated."""
    tokens_per_second: float | None = None
    """Predicted throughput of all GPUs together."""
    speed_factor: float = 1
    """What runs that were measured have changed in it."""
    hours: str | None = None
    """Predicted hours of the train step."""

    @property
    def planned(self) -> Strategy | None:
        """`strategy`, unless it is that of another trainer."""
        try:
            return Strategy.model_validate(self.strategy) if self.strategy else None
        except ValidationError:
            return None


class PlanStatus(StatusModel):
    """Where and how the stack runs, and what that is predicted to take."""

    pool: str
    """Name of the GPUPool."""
    gpus: int
    """GPUs of the train steps; 0 on CPU."""
    steps: list[str]
    """The steps, in order."""
    stages: list[StagePlanStatus] = Field(default_factory=list)
    """The stages; empty where nothing is predicted: on CPU, and before the base is known."""
    hours: SpreadStatus | None = None
    """Hours of what had not started when it was planned; empty while tokens are unknown."""
    cost: SpreadStatus | None = None
    """Money for what had not started when it was planned; empty while tokens are unknown."""
    currency: str | None = None
    """ISO 4217 code of `cost`."""
    tradeoff: str = ""
    """What was given for what, in one sentence; empty where nothing was."""
    assumptions: list[str] = Field(default_factory=list)
    """What the figures rest on."""
    seconds: dict[str, int] = Field(default_factory=dict)
    """Predicted seconds of each step; empty while tokens are unknown."""
    made_from: str = ""
    """Fingerprint of what it follows from: when that changes, what has not started is planned
    anew."""


class PublishedStatus(StatusModel):
    """Where the finished model is."""

    url: str
    """Where to look at it."""
    commit: str
    """The Hub commit, or the content digest of a folder."""


class TrainingStatus(StatusModel):
    """What a person asks, in the order they ask it."""

    observed_generation: int = 0
    """The generation of the spec that this status speaks of."""
    phase: Phase = Phase.PENDING
    """Where the stack stands."""
    message: str = ""
    """One sentence: what is happening, and what to do next if something must be done."""
    stage: str = ""
    """The step being worked on, `STAGE/KIND`."""
    progress: ProgressStatus = Field(default_factory=ProgressStatus)
    """How far it is."""
    cost: CostStatus = Field(default_factory=CostStatus)
    """What it cost."""
    plan: PlanStatus | None = None
    """Where and how it runs."""
    stages: list[StageStatus] = Field(default_factory=list)
    """Is it good: the stages with their scores."""
    published: PublishedStatus | None = None
    """Where the finished model is."""
    steps: list[StepStatus] = Field(default_factory=list)
    """Every step with its attempts."""
    conditions: list[Condition] = Field(
        default_factory=list,
        json_schema_extra={
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["type"],
        },
    )
    """Accepted, Planned, Progressing, Succeeded."""
    started_at: str | None = None
    """When the first step was started."""
    finished_at: str | None = None
    """When the stack ended."""
    volume_removed_at: str | None = None
    """When `ttlAfterFinished` had the stack's own volume removed."""
