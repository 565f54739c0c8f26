"""A step and its placement → the Job to create and the config that its trainer reads."""

from __future__ import annotations

import hashlib

from latticeforge_operator.api import StackedTraining
from latticeforge_operator.core.planning import Placement
from latticeforge_operator.core.steps import Step, Weights, merges, recipes
from latticeforge_operator.core.values import Launch
from latticeforge_trainer.contract import (
    EvaluateConfig,
    EvaluateRuntime,
    MergeConfig,
    MergeRuntime,
    ModelFacts,
    ModelRef,
    ModelSource,
    PrepareConfig,
    PrepareResult,
    PrepareRuntime,
    PublishConfig,
    PublishPayload,
    PublishRuntime,
    StageRecord,
    StepConfig,
    StepKind,
    TrainConfig,
    TrainRuntime,
)

MAX_NAME = 52
"""Job names leave room for the `-INDEX-xxxxx` that pods append within a label's 63 characters."""


def object_name(training: StackedTraining, step: Step, attempt: int) -> str:
    """A deterministic name for the objects of an attempt, unique per stack, step and digest."""
    key = f"{training.uid}/{step.name}/{step.digest}"
    tail = f"-{step.kind}-{hashlib.sha256(key.encode()).hexdigest()[:8]}-{attempt}"
    return _label(training.name)[: MAX_NAME - len(tail)].rstrip("-") + tail


def shared_name(training: StackedTraining) -> str:
    """A deterministic name for the objects that the steps of a stack share."""
    tail = f"-{hashlib.sha256(training.uid.encode()).hexdigest()[:8]}"
    return _label(training.name)[: MAX_NAME - len(tail)].rstrip("-") + tail


def _label(name: str) -> str:
    """A name as pods' host names and Services demand it: no dots, and no digit first."""
    label = name.replace(".", "-")
    return f"st-{label}" if label[0].isdigit() else label


class Launcher:
    """Builds launches of one stack.

    Args:
        training: The stack.
        steps: Its line of steps.
        prepared: Results of the prepare steps that are done, by name.
        spent: The money spent so far, for the model card.
    """

    def __init__(
        self,
        training: StackedTraining,
        steps: list[Step],
        prepared: dict[str, PrepareResult],
        spent: str,
    ) -> None:
        self.training, self.steps = training, steps
        self.prepared, self.spent = prepared, spent
        self._by_name = {step.name: step for step in steps}

    def launch(
        self, step: Step, attempt: int, placement: Placement, deadline_seconds: int | None
    ) -> Launch:
        """The Job of one attempt."""
        secret = self.training.spec.publish and self.training.spec.publish.token_secret
        return Launch(
            job=object_name(self.training, step, attempt),
            stack=shared_name(self.training),
            step=step.name,
            digest=step.digest,
            attempt=attempt,
            config=self._config(step, placement),
            placement=placement,
            deadline_seconds=deadline_seconds,
            needs_token=bool(secret) and step.kind in {StepKind.PREPARE, StepKind.PUBLISH},
        )

    def _config(self, step: Step, placement: Placement) -> StepConfig:
        common = {
            "training": f"{self.training.namespace}/{self.training.name}",
            "stage": step.stage.name if step.stage else "",
            "digest": step.digest,
            "payload": step.payload,
        }
        match step.kind:
            case StepKind.PREPARE:
                return PrepareConfig(**common, runtime=self._prepare_runtime(step))
            case StepKind.TRAIN:
                return TrainConfig(**common, runtime=self._train_runtime(step, placement))
            case StepKind.MERGE:
                return MergeConfig(**common, runtime=self._merge_runtime(step))
            case StepKind.EVALUATE:
                return EvaluateConfig(**common, runtime=self._evaluate_runtime(step))
            case StepKind.PUBLISH:
                return PublishConfig(**common, runtime=self._publish_runtime(step))

    @property
    def _facts(self) -> ModelFacts:
        return next(iter(self.prepared.values())).base

    def _artifact(self, name: str | None) -> str | None:
        return None if name is None else self._by_name[name].digest

    def _reference(self, weights: Weights) -> ModelRef:
        return ModelRef(
            name=weights.name,
            base_path=self._facts.path,
            base_revision=self._facts.revision,
            artifact=self._artifact(weights.model),
            adapter=self._artifact(weights.adapter),
            tokenizer=self._facts.tokenizer,
        )

    def _prepare_runtime(self, step: Step) -> PrepareRuntime:
        spec = self.training.spec
        index = next(i for i, stage in enumerate(spec.stages) if stage == step.stage)
        publish = self._by_name.get("publish")
        payload = publish.payload if publish is not None else None
        return PrepareRuntime(
            method=spec.stages[index].method,
            merges=merges(spec, index),
            destination=payload if isinstance(payload, PublishPayload) else None,
            step_name=step.name,
            known={name: result.artifact for name, result in self.prepared.items()},
            lookup=recipes(self.steps),
        )

    def _train_runtime(self, step: Step, placement: Placement) -> TrainRuntime:
        return TrainRuntime(
            base_path=self._facts.path,
            data=self.prepared[step.inputs[0]].artifact,
            upstream_model=self._artifact(step.weights.model),
            upstream_adapter=self._artifact(step.weights.adapter),
            strategy=placement.strategy,
        )

    def _merge_runtime(self, step: Step) -> MergeRuntime:
        return MergeRuntime(
            base_path=self._facts.path,
            upstream_model=self._artifact(step.weights.model),
            adapter=self._by_name[step.inputs[-1]].digest,
        )

    def _evaluate_runtime(self, step: Step) -> EvaluateRuntime:
        return EvaluateRuntime(
            model=self._reference(step.weights),
            compare=[self._reference(weights) for weights in step.compare],
        )

    def _publish_runtime(self, step: Step) -> PublishRuntime:
        spec = self.training.spec
        return PublishRuntime(
            title=self.training.name,
            base=ModelSource(model=spec.base.model, revision=spec.base.revision),
            base_path=self._facts.path,
            model=self._reference(step.weights),
            stages=[self._stage_record(stage.name) for stage in spec.stages],
            cost=self.spent,
        )

    def _stage_record(self, name: str) -> StageRecord:
        stage = next(stage for stage in self.training.spec.stages if stage.name == name)
        prepare = self._by_name[f"{name}/prepare"].payload
        return StageRecord(
            name=name,
            method=stage.method,
            data=prepare.data,  # type: ignore[union-attr]  # a prepare step's payload has data
            hyperparameters=stage.hyperparameters.to_json()
            | ({"lora": stage.lora.to_json()} if stage.lora else {}),
            prepare=self.prepared[f"{name}/prepare"].artifact,
            train=self._by_name[f"{name}/train"].digest,
            evaluate=self._artifact(name=f"{name}/evaluate")
            if f"{name}/evaluate" in self._by_name
            else None,
        )


def store_claim(training: StackedTraining) -> str:
    """The claim of the stack's volume: the one that is named, or the stack's own."""
    if training.spec.storage.claim_name is not None:
        return training.spec.storage.claim_name
    longest = MAX_NAME - len("-store")
    if len(training.name) <= longest:
        return f"{training.name}-store"
    # Names that differ only in what is cut off must not share a volume.
    mark = f"-{hashlib.sha256(training.name.encode()).hexdigest()[:8]}"
    return f"{training.name[: longest - len(mark)].rstrip('-.')}{mark}-store"
