"""How long every step of a stack takes, with what is not known as a spread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from latticeforge_operator.core.planning.placement import is_on_pool
from latticeforge_operator.core.planning.plan import Spread, StageData, StagePlan, Work
from latticeforge_operator.core.steps import Step
from latticeforge_trainer.contract import EvaluatePayload, LoRASettings, PublishPayload, StepKind
from latticeforge_trainer.estimate.base_model import BaseModel
from latticeforge_trainer.estimate.duration import (
    checkpoint_interval,
    checkpoint_seconds,
    download_seconds,
    evaluation_seconds,
    loading_seconds,
    merge_seconds,
    result_seconds,
    upload_seconds,
    writing_seconds,
)
from latticeforge_trainer.estimate.linears import adapter_parameters, table_parameters

MILLION = 1_000_000

SPEED_ERROR = 0.2
"""How far predicted tokens/s may be off, as a share."""

MEASURED_ERROR = 0.1
"""The same where runs of this kind have been measured."""

TOKENS_ERROR = 0.3
"""How far tokens may be off that were estimated from bytes, as a share."""

ASIDE_ERROR = 0.5
"""How far everything but training may be off, as a share: disks, networks and answers differ."""

CHECKPOINT_SECONDS = 600
"""Between two checkpoints, at least: `TrainRuntime.checkpoint_every_seconds`."""

SPOT_HOURS = 4
"""Hours after which spot nodes are taken back, for the high figure."""

ANSWER_TOKENS = 176
"""Tokens of an answer, at most: `MAX_NEW_TOKENS` of the suites."""

PREPARE_SECONDS = 60
"""Of checks and packing: seconds for thousands of samples, and what a pod takes to start."""

CIC = frozenset({"json", "cic", "phase", "confidence"})
"""Suites that share their answers."""


@dataclass(frozen=True)
class Context:
    """What the steps of one stack have in common."""

    model: BaseModel
    stages: dict[str, StagePlan]
    spot: bool
    local: bool
    """Whether the base lies in a folder, so that nothing is brought."""


def works_of(steps: Sequence[Step], context: Context) -> tuple[Work, ...]:
    """The time of every step, in order."""
    done: set[StepKind] = set()
    works = []
    for step in steps:
        first = step.kind not in done
        done.add(step.kind)
        works.append(_WORK[step.kind](step, context, first))
    return tuple(works)


def training_only(stages: Sequence[StagePlan]) -> tuple[Work, ...]:
    """What a million tokens of each stage take."""
    return tuple(
        Work(
            f"{stage.stage}/train",
            stage.run.world,
            _training_seconds(stage, StageData(tokens=MILLION, exact=True)),
            f"a million tokens at {stage.tokens_per_second:,.0f} tokens/s",
        )
        for stage in stages
    )


def _prepare(step: Step, context: Context, first: bool) -> Work:
    if context.local or not first:  # the first stage brings the base for all
        return Work(step.name, 0, _aside(PREPARE_SECONDS), "the base is there")
    size = f"{context.model.stored_bytes / 1e9:,.0f} GB to bring"
    return Work(step.name, 0, _aside(PREPARE_SECONDS + download_seconds(context.model)), size)


def _train(step: Step, context: Context, _first: bool) -> Work:
    stage = context.stages[step.stage.name if step.stage else ""]
    training, loading = _training_seconds(stage, stage.data), loading_seconds(stage.run)
    aside, stall = loading + result_seconds(stage.run), stall_of(stage)
    interval = interval_of(stage)

    def whole(trains: int, sure: float) -> int:
        return round(trains + sure * (aside + stall * checkpoints_in(trains, interval)))

    seconds = Spread(
        whole(training.low, 1 - ASIDE_ERROR),
        whole(training.expected, 1),
        whole(training.high, 1 + ASIDE_ERROR),
    )
    if context.spot:
        seconds = _taken_back(seconds, loading + may_be_lost(stage))
    parts = [f"{stage.data.tokens:,} tokens at {stage.tokens_per_second:,.0f} tokens/s"]
    parts.append(f"{aside:,.0f} s of loading and saving")
    if count := checkpoints_in(training.expected, interval) if stall else 0:
        parts.append(f"{count} checkpoints that it waits {stall:,.0f} s for")
    return Work(step.name, stage.run.world, seconds, ", ".join(parts))


def _training_seconds(stage: StagePlan, data: StageData) -> Spread[int]:
    """Seconds of the steps alone."""
    seconds = (data.tokens or 0) / stage.tokens_per_second
    error = MEASURED_ERROR if stage.factor.runs else SPEED_ERROR
    tokens = 0.0 if data.exact else TOKENS_ERROR
    return Spread(
        round(seconds * (1 - tokens) / (1 + error)),
        round(seconds),
        round(seconds * (1 + tokens) / (1 - error)),
    )


def stall_of(stage: StagePlan) -> float:
    """Seconds that training stands still for one checkpoint."""
    return checkpoint_seconds(stage.run, stage.host_left)


def interval_of(stage: StagePlan) -> float:
    """Seconds from one checkpoint to the next: at least what writing one takes."""
    interval = checkpoint_interval(CHECKPOINT_SECONDS, stall_of(stage))
    return max(interval, writing_seconds(stage.run))


def may_be_lost(stage: StagePlan) -> float:
    """Seconds of a stage that are lost with its node at worst: just before one is complete."""
    return interval_of(stage) + writing_seconds(stage.run)


def checkpoints_in(seconds: float, interval: float) -> int:
    """Checkpoints of so many seconds of training; how long one takes shows with the first."""
    if seconds < CHECKPOINT_SECONDS:
        return 0
    return 1 + int((seconds - CHECKPOINT_SECONDS) // interval)


def _taken_back(seconds: Spread[int], loss: float) -> Spread[int]:
    """On spot nodes, at worst: work since the last checkpoint again, after loading again."""
    losses = seconds.high // (SPOT_HOURS * 3600) + 1
    high = seconds.high + round(losses * loss)
    return Spread(seconds.low, seconds.expected, high)


def _merge(step: Step, context: Context, _first: bool) -> Work:
    return Work(
        step.name, 0, _aside(merge_seconds(context.model)), "an adapter folded into weights"
    )


def _evaluate(step: Step, context: Context, _first: bool) -> Work:
    payload = step.payload
    if not isinstance(payload, EvaluatePayload):
        raise TypeError(f"{step.name} has no suites")
    problems = problems_of(payload)
    models = 1 + len(step.compare)
    seconds = evaluation_seconds(
        context.model, problems=problems, tokens=ANSWER_TOKENS, models=models
    )
    why = f"{models} x {problems} problems, answers of up to {ANSWER_TOKENS} tokens"
    return Work(step.name, int(is_on_pool(step.kind)), _aside(seconds), why)


def problems_of(payload: EvaluatePayload) -> int:
    """Problems that a model answers; suites of one domain with one seed share their answers."""
    asked: dict[tuple[str, int], int] = {}
    for suite in payload.suites:
        group = "cic" if suite.suite in CIC else suite.suite
        key = (group, suite.seed)
        asked[key] = max(asked.get(key, 0), suite.samples)
    return sum(asked.values())


def _publish(step: Step, context: Context, _first: bool) -> Work:
    adapter = isinstance(step.payload, PublishPayload) and step.payload.artifact == "Adapter"
    last = list(context.stages.values())[-1].run
    size = published_bytes(context.model, last.payload.lora if adapter else None)
    return Work(step.name, 0, _aside(upload_seconds(size)), f"{size / 1e9:,.1f} GB to upload")


def published_bytes(model: BaseModel, lora: LoRASettings | None) -> int:
    """Bytes of what is published: the adapter, or the weights in 16 bits."""
    if lora is not None:
        return 4 * (adapter_parameters(model, lora) + table_parameters(model, lora))
    return 2 * model.parameters.total


def _aside(seconds: float) -> Spread[int]:
    return Spread(
        round(seconds * (1 - ASIDE_ERROR)), round(seconds), round(seconds * (1 + ASIDE_ERROR))
    )


_WORK: dict[StepKind, Callable[[Step, Context, bool], Work]] = {
    StepKind.PREPARE: _prepare,
    StepKind.TRAIN: _train,
    StepKind.MERGE: _merge,
    StepKind.EVALUATE: _evaluate,
    StepKind.PUBLISH: _publish,
}
