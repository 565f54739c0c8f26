"""Stacks, pools and reports for the tests of decisions."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from latticeforge_operator.api import GPUPool, StackedTraining, TrainingStatus
from latticeforge_operator.core.steps import kind_of
from latticeforge_trainer.contract import (
    DataFacts,
    EvaluatePayload,
    EvaluateResult,
    ExitCode,
    MergeResult,
    ModelFacts,
    ModelScores,
    PairedDrop,
    PrepareResult,
    Progress,
    PublishResult,
    Score,
    StepConfig,
    StepKind,
    StepResult,
    StepState,
    TrainResult,
    digest_of,
)

START = datetime(2026, 1, 1, tzinfo=UTC)


def stage(name: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "data": [{"source": f"owner/{name}"}], **fields}


def spec(*stages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A spec as users write it; two stages and a publication unless told otherwise."""
    return {
        "base": {"model": "owner/base"},
        "stages": list(stages) or [stage("math"), stage("cic")],
        "storage": {"claimName": "store"},
        "publish": {"repository": "owner/result"},
        **fields,
    }


def stack(
    fields: dict[str, Any] | None = None,
    *,
    name: str = "elle",
    generation: int = 1,
    annotations: dict[str, str] | None = None,
    uid: str = "uid-1",
) -> StackedTraining:
    return StackedTraining.from_object(
        {
            "metadata": {
                "name": name,
                "namespace": "default",
                "uid": uid,
                "generation": generation,
                "annotations": annotations or {},
            },
            "spec": fields or spec(),
        }
    )


def pool(name: str = "h200", **fields: Any) -> GPUPool:
    defaults = {"accelerator": "H200", "gpusPerNode": 8, "pricePerGPUHour": "3.60"}
    return GPUPool.from_object({"metadata": {"name": name}, "spec": defaults | fields})


CONFIG: dict[str, Any] = {
    "model_type": "qwen2",
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
"""A model that fits on every GPU and every volume."""


def model_facts(
    config: dict[str, Any] | None = CONFIG, *, quantization: str | None = None
) -> ModelFacts:
    """What prepare learns of a base; without its config as an earlier version left it."""
    return ModelFacts(
        path="models/base",
        revision="c0ffee",
        architecture="Qwen2ForCausalLM",
        parameters=1000,
        hidden_size=8,
        layers=2,
        vocabulary=256,
        quantization=quantization,
        config=config,
    )


def prepare_result(digest: str, base: ModelFacts | None = None) -> PrepareResult:
    return PrepareResult(
        artifact=digest_of("resolved", digest),
        base=base or model_facts(),
        data=[DataFacts(source="owner/data", revision="f00d", samples=40_000, tokens=20_000_000)],
        sequences=5_000,
        tokens=20_000_000,
        target_tokens=10_000_000,
    )


def scores(config_suites: EvaluatePayload, *, good: bool = True, rows: int = 2) -> EvaluateResult:
    """A score table whose own row passes every gate, or none."""
    value = 1.0 if good else 0.0
    drop = -0.5 if good else 0.9
    table = [
        ModelScores(
            model=name,
            scores=[
                Score(suite=s.suite, value=value, low=value, high=value, n=s.samples)
                for s in config_suites.suites
            ],
        )
        for name in ("own", "base", "previous")[:rows]
    ]
    drops = [
        PairedDrop(suite=s.suite, against=against, drop=drop, low=drop, high=drop)
        for s in config_suites.suites
        for against in ("base", "previous")[: rows - 1]
    ]
    return EvaluateResult(table=table, drops=drops)


def result_of(
    config: StepConfig, *, good: bool = True, base: ModelFacts | None = None
) -> StepResult:
    """What a trainer would report for a config."""
    match config.step:
        case "prepare":
            return prepare_result(config.digest, base)
        case "train":
            return TrainResult(
                steps=10,
                tokens=100,
                first_loss=2,
                final_loss=1,
                seconds=5,
                tokens_per_second=20,
            )
        case "merge":
            return MergeResult(bytes=100, max_logit_difference=0.01, top1_agreement=1)
        case "evaluate":
            rows = 1 + len(config.runtime.compare)
            return scores(config.payload, good=good, rows=rows)
        case "publish":
            return PublishResult(url="https://hub/owner/result", commit="abc", bytes=1, files=2)


def report(
    step: str,
    digest: str,
    state: StepState = StepState.RUNNING,
    *,
    at: datetime = START,
    message: str = "works",
    result: StepResult | None = None,
    exit_code: ExitCode | int | None = None,
    fraction: float = 0.0,
    reused: bool = False,
    base: ModelFacts | None = None,
) -> Progress:
    return Progress(
        step=StepKind(kind_of(step)),
        digest=digest,
        state=state,
        message=message,
        fraction=fraction,
        updated_at=at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        reused=reused,
        base=base,
        result=result,
        exit_code=exit_code,
    )


def reread(status: TrainingStatus) -> TrainingStatus:
    """A status as it comes back from the API server."""
    return TrainingStatus.model_validate(status.to_json())
