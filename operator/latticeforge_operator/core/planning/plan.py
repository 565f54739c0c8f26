"""What was planned, as plain values: stages, options, and the plan that chose among them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import Generic, TypeVar

from latticeforge_operator.api import GPUPool, StackedTrainingSpec
from latticeforge_operator.core.planning.history import Factor
from latticeforge_operator.core.planning.placement import Placement, PlanError, place
from latticeforge_operator.core.steps import Step
from latticeforge_trainer.contract import PrepareResult, StepKind, Strategy
from latticeforge_trainer.estimate.host import merge_host_memory
from latticeforge_trainer.estimate.memory import Memory
from latticeforge_trainer.estimate.speed import Speed
from latticeforge_trainer.estimate.terms import Term
from latticeforge_trainer.estimate.training import Run

T = TypeVar("T")

CENT = Decimal("0.01")
_SECONDS_PER_HOUR = 3600


@dataclass(frozen=True)
class Spread(Generic[T]):
    """A predicted figure: the prediction, and how far it may be off either way."""

    low: T
    expected: T
    high: T


@dataclass(frozen=True)
class StageData:
    """What is known of a stage's data, over all epochs."""

    tokens: int | None = None
    """Real tokens; None: nobody knows."""
    exact: bool = False
    """Whether they were counted, rather than estimated."""
    sequences: int | None = None
    """Packed sequences, which decide how many steps are made."""
    document_length: float | None = None
    """Mean tokens of one document; None: as long as a sequence."""


def data_of(prepared: PrepareResult) -> StageData:
    """What `prepare` has counted."""
    samples = sum(source.samples - source.skipped for source in prepared.data)
    counted = sum(source.tokens for source in prepared.data)
    return StageData(
        tokens=prepared.tokens,
        exact=True,
        sequences=prepared.sequences,
        document_length=counted / samples if samples else None,
    )


@dataclass(frozen=True)
class Work:
    """The time of one step."""

    step: str
    units: int
    """What is billed while it runs: GPUs; 0 for steps on CPU."""
    seconds: Spread[int]
    why: str
    """What the time is spent on, with numbers."""


@dataclass(frozen=True)
class StagePlan:
    """How one stage trains."""

    stage: str
    run: Run
    """The model, what is trained, the strategy and the chip."""
    memory: Memory
    """Of each GPU."""
    host: tuple[Term, ...]
    """Of each pod."""
    host_left: int | None
    """Bytes of each pod's host memory beside that; None: the pool does not say."""
    speed: Speed
    """Of all GPUs together, by the model alone."""
    factor: Factor
    """What measured runs change in it."""
    data: StageData

    @property
    def strategy(self) -> Strategy:
        """How the trainer uses the hardware."""
        return self.run.strategy

    @property
    def tokens_per_second(self) -> float:
        """Of all GPUs together, by the model and what was measured."""
        return self.speed.tokens_per_second * self.factor.value


@dataclass(frozen=True)
class Misfit:
    """The least that one sharding needs, which is too much."""

    stage: str
    strategy: Strategy
    memory: Memory
    capacity: int
    """What of a GPU's memory may be used."""
    host: tuple[Term, ...]

    @property
    def fits_gpu(self) -> bool:
        """Whether it is host memory alone that is missing."""
        return self.memory.reserved <= self.capacity


@dataclass(frozen=True)
class Option:
    """One way to run the stack: a pool and a number of GPUs."""

    pool: GPUPool
    gpus: int
    """Of the train steps; 0 on a pool without GPUs, of which nothing is predicted."""
    stages: tuple[StagePlan, ...] = ()
    """Those that fit, up to the first that does not."""
    works: tuple[Work, ...] = ()
    """The steps in order."""
    per_million: bool = False
    """Tokens are not known: `works` holds a million of each stage, and nothing but training."""
    refusal: str | None = None
    """Why it cannot be taken, in one sentence with numbers."""
    reason: str = ""
    """The same for a table that says of what it speaks."""
    misfit: Misfit | None = None
    """What came closest, of the stage that does not fit."""
    disk: tuple[Term, ...] = ()
    """What the storage volume has to hold."""

    @property
    def predicted(self) -> bool:
        """Whether time and money are known."""
        return bool(self.works) and not self.per_million

    @property
    def merge_host(self) -> tuple[Term, ...]:
        """Host memory of a merge step's pod, wherever that runs; empty where nothing is merged."""
        merges = any(step.step.endswith(f"/{StepKind.MERGE}") for step in self.works)
        return merge_host_memory(self.stages[0].run.model) if merges else ()

    @property
    def seconds(self) -> Spread[int]:
        """From the first step to the end of the last."""
        return _sum(self.works, [1] * len(self.works))

    @property
    def gpu_seconds(self) -> Spread[int]:
        """Seconds × GPUs that are paid for."""
        return _sum(self.works, [work.units for work in self.works])

    @property
    def cost(self) -> Spread[Decimal]:
        """Money, to the cent, in the pool's currency."""
        held, price = self.gpu_seconds, Decimal(self.pool.spec.price_per_gpu_hour)
        return Spread(*(_money(s, price) for s in (held.low, held.expected, held.high)))


@dataclass(frozen=True)
class Alternative:
    """An edit, and what would come out: it makes an infeasible stack fit, or a feasible faster."""

    change: str
    """What to edit."""
    option: Option
    """What would come out."""
    lossy: bool = False
    """Whether the result would be another than that of exact arithmetic."""


@dataclass(frozen=True)
class Plan:
    """What was looked at, and what was chosen."""

    spec: StackedTrainingSpec
    options: tuple[Option, ...]
    chosen: Option | None
    refusal: str | None = None
    """Why nothing could be chosen, in one sentence with numbers."""
    alternatives: tuple[Alternative, ...] = ()
    """Edits that would make it fit, or faster."""
    tradeoff: str = ""
    """What the choice gives up for what, in one sentence; empty where nothing is."""
    assumptions: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    """What its author should know before it runs."""

    @property
    def option(self) -> Option:
        """The chosen option.

        Raises:
            PlanError: There is none.
        """
        if self.chosen is None:
            raise PlanError(self.refusal or "nothing fits")
        return self.chosen

    def placement(self, step: Step) -> Placement:
        """The pods of a step of the stack.

        Raises:
            PlanError: Nothing was chosen.
        """
        option = self.option
        planned = next(
            (s for s in option.stages if step.stage and s.stage == step.stage.name), None
        )
        if step.kind is not StepKind.TRAIN or planned is None:
            return place(self.spec, step.stage, step.kind, option.pool)
        return Placement(
            option.pool,
            pods=planned.strategy.nodes,
            gpus_per_pod=planned.strategy.processes,
            on_pool=True,
            strategy=planned.strategy,
            queue=self.spec.compute.queue,
        )


def _sum(works: Iterable[Work], weights: Iterable[int]) -> Spread[int]:
    low = expected = high = 0
    for work, weight in zip(works, weights, strict=True):
        low += work.seconds.low * weight
        expected += work.seconds.expected * weight
        high += work.seconds.high * weight
    return Spread(low, expected, high)


def _money(gpu_seconds: int, price: Decimal) -> Decimal:
    return (price * gpu_seconds / _SECONDS_PER_HOUR).quantize(CENT, ROUND_HALF_UP)
