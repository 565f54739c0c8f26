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
from latticeforge_operator.api.training import Handoff
from latticeforge_operator.core.payloads import prepare_payload, train_payload
from latticeforge_operator.core.policies.gate import samples_of
from latticeforge_trainer.contract import (
    EvaluatePayload,
    MergePayload,
    Payload,
    PrepareResult,
    PublishPayload,
    Recipe,
    StepKind,
    SuiteRequest,
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

    @property
    def model(self) -> Weights:
        """The model that there is once it is done."""
        if self.stage is None or self.kind not in {StepKind.TRAIN, StepKind.MERGE}:
            return self.weights
        if self.kind is StepKind.TRAIN and self.stage.method.is_adapter:
            return Weights(self.stage.name, self.weights.model, self.name)
        return Weights(self.stage.name, self.name)


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
        payload = prepare_payload(spec.base, stage)
        yield Step(f"{stage.name}/prepare", StepKind.PREPARE, stage, payload)


def _work_steps(spec: StackedTrainingSpec, adapter_published: bool) -> Iterator[Step]:
    weights = previous = BASE
    evaluations: list[str] = []
    for index, stage in enumerate(spec.stages):
        train = _train_step(stage, weights)
        yield train
        weights = train.model
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
            weights = merge.model
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
    inputs = (f"{stage.name}/prepare", *weights.steps)
    name = f"{stage.name}/train"
    return Step(name, StepKind.TRAIN, stage, train_payload(stage), inputs=inputs, weights=weights)


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
