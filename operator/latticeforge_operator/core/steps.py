"""spec → the straight line of steps, with their digests.

Every stage is prepared first, so that wrong data or a missing permission shows before a GPU is
held; then each stage is trained, merged where its successor or the publication needs merged
weights, and evaluated; then the model is published. Digests of later steps follow from the
artifacts that the prepare steps resolved, so they are empty until those are done.

Which weights a stage starts from follows from the `handoff`s alone: see `_Lineage`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from latticeforge_operator.api import StackedTrainingSpec, Stage
from latticeforge_operator.api.training import Handoff, LoRA
from latticeforge_operator.core.policies.gate import samples_of
from latticeforge_trainer.contract import (
    DataSource,
    EvaluatePayload,
    LoRASettings,
    MergePayload,
    ModelSource,
    Payload,
    PreparePayload,
    PrepareResult,
    PublishPayload,
    Recipe,
    StepKind,
    SuiteRequest,
    TrainPayload,
    step_digest,
)

PUBLISH = "publish"


@dataclass(frozen=True)
class Weights:
    """A model by the steps that made it: a base or a step with a model, then an adapter on top."""

    name: str
    model: str | None = None
    adapter: str | None = None

    @property
    def steps(self) -> list[str]:
        """The steps that it consists of."""
        return [step for step in (self.model, self.adapter) if step is not None]


BASE = Weights("base")


@dataclass(frozen=True)
class Step:
    """One step of the line."""

    name: str
    kind: StepKind
    stage: Stage | None
    payload: Payload
    inputs: tuple[str, ...] = ()
    """Names of the steps whose artifacts it uses."""
    digest: str = ""
    """Empty while an input's artifact is unknown."""
    weights: Weights = BASE
    """What it starts from (train, merge), or what it scores or publishes."""
    compare: tuple[Weights, ...] = ()
    """What an evaluate step compares with."""


def expand(spec: StackedTrainingSpec, prepared: dict[str, PrepareResult]) -> list[Step]:
    """The line of steps.

    Args:
        spec: What the user asks for.
        prepared: Results of the prepare steps that are done, by step name.
    """
    quantized = any(result.base.quantization for result in prepared.values())
    return _with_digests(line(spec, quantized=quantized), prepared)


def line(spec: StackedTrainingSpec, *, quantized: bool) -> list[Step]:
    """The line of steps without their digests.

    Args:
        spec: What the user asks for.
        quantized: Whether the base itself is stored in 4 bits.
    """
    return [*_prepare_steps(spec), *_work_steps(spec, publishes_adapter(spec, quantized))]


def publishes_adapter(spec: StackedTrainingSpec, quantized: bool) -> bool:
    """Whether an adapter is published rather than merged weights.

    Args:
        spec: What the user asks for.
        quantized: Whether the base itself is stored in 4 bits.
    """
    if spec.publish is None or not spec.stages[-1].method.is_adapter:
        return False
    return spec.publish.artifact == "Adapter" or (spec.publish.artifact == "Auto" and quantized)


def merges(spec: StackedTrainingSpec, index: int) -> bool:
    """Whether the adapter of stage `index` has to be merged whatever the base turns out to be."""
    if not spec.stages[index].method.is_adapter:
        return False
    if index + 1 < len(spec.stages):
        return spec.stages[index + 1].handoff is Handoff.MERGE
    return spec.publish is not None and spec.publish.artifact == "Merged"


def kind_of(name: str) -> StepKind:
    """The kind of the step of this name."""
    return StepKind(name.rpartition("/")[2])


def recipes(steps: list[Step]) -> list[Recipe]:
    """How the digests of the steps after preparation follow from their inputs."""
    return [
        Recipe(name=s.name, kind=s.kind, payload=s.payload.to_json(), inputs=list(s.inputs))
        for s in steps
        if s.kind is not StepKind.PREPARE
    ]


def _prepare_steps(spec: StackedTrainingSpec) -> Iterator[Step]:
    for stage in spec.stages:
        parameters = stage.hyperparameters
        payload = PreparePayload(
            base=ModelSource(model=spec.base.model, revision=spec.base.revision),
            data=[DataSource(**data.model_dump()) for data in stage.data],
            sequence_length=parameters.sequence_length,
            epochs=parameters.epochs,
            seed=parameters.seed,
        )
        yield Step(f"{stage.name}/prepare", StepKind.PREPARE, stage, payload)


def _work_steps(spec: StackedTrainingSpec, adapter_published: bool) -> Iterator[Step]:
    weights = previous = BASE
    evaluations: list[str] = []
    for index, stage in enumerate(spec.stages):
        train = _train_step(stage, weights)
        yield train
        if stage.method.is_adapter:
            weights = Weights(stage.name, weights.model, train.name)
        else:
            weights = Weights(stage.name, train.name)
        last = index + 1 == len(spec.stages)
        wanted = spec.publish is not None and not adapter_published if last else False
        if weights.adapter is not None and (wanted or merges(spec, index)):
            merge = Step(
                f"{stage.name}/merge",
                StepKind.MERGE,
                stage,
                MergePayload(),
                inputs=tuple(weights.steps),
                weights=weights,
            )
            yield merge
            weights = Weights(stage.name, merge.name)
        if stage.evaluate:
            evaluate = _evaluate_step(stage, weights, previous)
            evaluations.append(evaluate.name)
            yield evaluate
        previous = weights
    if spec.publish is not None:
        yield Step(
            PUBLISH,
            StepKind.PUBLISH,
            None,
            PublishPayload(
                repository=spec.publish.repository,
                artifact="Adapter" if adapter_published else "Merged",
                private=spec.publish.private,
            ),
            inputs=(*weights.steps, *evaluations),
            weights=weights,
        )


def _train_step(stage: Stage, weights: Weights) -> Step:
    parameters = stage.hyperparameters
    shape = stage.lora or LoRA()
    lora = LoRASettings(
        rank=shape.rank,
        alpha=shape.alpha,
        dropout=float(shape.dropout),
        target_modules=shape.target_modules,
        rank_stabilized=shape.rank_stabilized,
        base_dtype="fp8" if shape.base_dtype == "FP8" else None,
    )
    payload = TrainPayload(
        method=stage.method,
        learning_rate=float(parameters.learning_rate),
        schedule=parameters.schedule,
        warmup_ratio=float(parameters.warmup_ratio),
        weight_decay=float(parameters.weight_decay),
        max_grad_norm=float(parameters.max_grad_norm),
        optimizer_states="int8" if parameters.optimizer_states == "INT8" else "fp32",
        sequence_length=parameters.sequence_length,
        global_batch_tokens=parameters.global_batch_tokens,
        lora=lora if stage.method.is_adapter else None,
        continue_adapter=stage.handoff is Handoff.CONTINUE_ADAPTER,
        seed=parameters.seed,
    )
    inputs = (f"{stage.name}/prepare", *weights.steps)
    name = f"{stage.name}/train"
    return Step(name, StepKind.TRAIN, stage, payload, inputs=inputs, weights=weights)


def _evaluate_step(stage: Stage, weights: Weights, previous: Weights) -> Step:
    requests: dict[str, SuiteRequest] = {}
    for gate in stage.evaluate:  # a suite is asked once: as much as its most demanding gate needs
        request = SuiteRequest(suite=gate.suite, samples=samples_of(gate), seed=gate.seed)
        known = requests.setdefault(gate.suite, request)
        if known.samples < request.samples:
            requests[gate.suite] = known.model_copy(update={"samples": request.samples})
    compare = (BASE,) if previous == BASE else (BASE, previous)
    compared = tuple(name for other in compare for name in other.steps)
    return Step(
        f"{stage.name}/evaluate",
        StepKind.EVALUATE,
        stage,
        EvaluatePayload(suites=list(requests.values())),
        inputs=(*weights.steps, *compared),
        weights=weights,
        compare=compare,
    )


def _with_digests(steps: list[Step], prepared: dict[str, PrepareResult]) -> list[Step]:
    artifacts: dict[str, str] = {}
    result = []
    for step in steps:
        inputs = [artifacts.get(name, "") for name in step.inputs]
        digest = step_digest(step.kind, step.payload.to_json(), inputs) if all(inputs) else ""
        result.append(replace(step, digest=digest))
        if step.kind is not StepKind.PREPARE:
            artifacts[step.name] = digest
        elif step.name in prepared:
            artifacts[step.name] = prepared[step.name].artifact
    return result
