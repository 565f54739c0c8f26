"""A stack of two stages as the steps before `publish` leave it in the store, without any torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from latticeforge_trainer.artifacts import Store
from latticeforge_trainer.contract import (
    DataFacts,
    DataSource,
    EvaluateResult,
    Method,
    ModelFacts,
    ModelRef,
    ModelScores,
    ModelSource,
    PrepareResult,
    PublishConfig,
    PublishPayload,
    PublishRuntime,
    Score,
    StageRecord,
    StepKind,
    StepResult,
    TrainResult,
    digest_of,
)

BASE_REVISION = "b" * 40
MERGED_FILES = {
    "config.json": b'{"architectures": ["Qwen2ForCausalLM"]}',
    "generation_config.json": b"{}",
    "model-00001-of-00002.safetensors": b"first " * 300_000,
    "model-00002-of-00002.safetensors": b"second " * 200_000,
    "model.safetensors.index.json": b"{}",
    "tokenizer.json": b"{}",
    "tokenizer_config.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
    "LICENSE": b"Apache-2.0",
}
ADAPTER_FILES = {
    "README.md": b"PEFT's own",
    "adapter_config.json": b'{"base_model_name_or_path": "/storage/models/x", "r": 8}',
    "adapter_model.safetensors": b"adapter " * 100,
    "tokenizer.json": b"{}",
    "tokenizer_config.json": b"{}",
}


def seal(
    store: Store, name: str, kind: StepKind, files: Mapping[str, bytes], result: StepResult | None
) -> str:
    """An artifact with these files; returns its digest, which follows from the name."""
    digest = digest_of(name)
    with store.create(digest) as staging:
        for path, content in files.items():
            target = staging.folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        staging.seal(kind, result)
    return digest


def score(suite: str, value: float, n: int = 32) -> Score:
    return Score(suite=suite, value=value, low=max(0, value - 0.1), high=min(1, value + 0.1), n=n)


def make_stage(store: Store, name: str, improved: float) -> StageRecord:
    """A trained and evaluated LoRA stage."""
    base = ModelFacts(
        path="./base",
        revision=BASE_REVISION,
        architecture="Qwen2ForCausalLM",
        parameters=72_700_000_000,
        hidden_size=8192,
        layers=80,
        vocabulary=152_064,
        licence="apache-2.0",
    )
    data = [
        DataSource(source="me/briefings", revision="main", weight=4),
        DataSource(source="./data/math.jsonl"),
    ]
    facts = [
        DataFacts(source="me/briefings", revision="0123456789" * 4, samples=500, tokens=91_000),
        DataFacts(source="./data/math.jsonl", revision="d" * 64, samples=100, tokens=8_000),
    ]
    prepared = PrepareResult(
        artifact=digest_of("data", name),
        base=base,
        data=facts,
        sequences=9,
        tokens=99_000,
        target_tokens=50_000,
    )
    trained = TrainResult(
        steps=60,
        tokens=99_000,
        first_loss=2.5,
        final_loss=0.75,
        seconds=6123,
        tokens_per_second=1626.3,
    )
    scores = EvaluateResult(
        table=[
            ModelScores(model=name, scores=[score("json", improved), score("math", 0.45, 64)]),
            ModelScores(model="base", scores=[score("json", 0.4), score("math", 0.47, 64)]),
        ]
    )
    lines = [{"step": i, "loss": 2 * math.exp(-i / 20) + 0.5} for i in range(1, 61)]
    losses = "".join(json.dumps(line) + "\n" for line in lines).encode()
    return StageRecord(
        name=name,
        method=Method.LORA,
        data=data,
        hyperparameters={"learningRate": 2e-6, "epochs": 1, "lora": {"rank": 8, "alpha": 16}},
        prepare=seal(store, f"prepare {name}", StepKind.PREPARE, {}, prepared),
        train=seal(store, f"train {name}", StepKind.TRAIN, {"losses.jsonl": losses}, trained),
        evaluate=seal(store, f"evaluate {name}", StepKind.EVALUATE, {}, scores),
    )


def make_config(
    store: Store,
    repository: str,
    *,
    artifact: Literal["Merged", "Adapter"] = "Merged",
    files: Mapping[str, bytes] | None = None,
    private: bool = True,
    **runtime: Any,
) -> PublishConfig:
    """A publish step of the stack math → cic, with the artifacts it needs sealed."""
    merged = artifact == "Merged"
    content = files if files is not None else (MERGED_FILES if merged else ADAPTER_FILES)
    folder = "model" if merged else "adapter"
    kind = StepKind.MERGE if merged else StepKind.TRAIN
    inside = {f"{folder}/{name}": data for name, data in content.items()}
    name = digest_of(sorted(inside), [len(data) for data in inside.values()])
    weights = seal(store, name, kind, inside, None)
    model = ModelRef(
        name="cic",
        base_path="./base",
        base_revision=BASE_REVISION,
        artifact=weights if merged else None,
        adapter=None if merged else weights,
    )
    payload = PublishPayload(repository=repository, artifact=artifact, private=private)
    fields: dict[str, Any] = {
        "title": "elle-72b-math",
        "base": ModelSource(model="me/base"),
        "base_path": "./base",
        "model": model,
        "stages": [make_stage(store, "math", 0.6), make_stage(store, "cic", 0.97)],
        "cost": "41.20 USD",
    }
    return PublishConfig(
        training="default/elle",
        digest=digest_of(payload.to_json(), weights),
        payload=payload,
        runtime=PublishRuntime(**(fields | runtime)),
    )


def base_folder(store: Store, files: Mapping[str, bytes]) -> Path:
    """The base model's folder that the configs name."""
    folder = store.root / "base"
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder
