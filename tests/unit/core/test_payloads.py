"""What users write → what decides results; what they leave out must not change a digest."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.core.builders import spec, stack, stage

from latticeforge_operator.api.training import Base
from latticeforge_operator.core.payloads import prepare_payload, train_payload


def parsed(base: dict[str, Any] | None = None, **fields: Any) -> Any:
    """A stack of one stage."""
    return stack(spec(stage("math", **fields), base={"model": "owner/model", **(base or {})})).spec


def prepared(base: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    made = parsed(base, **fields)
    return prepare_payload(made.base, made.stages[0]).to_json()


def trained(**fields: Any) -> dict[str, Any]:
    return train_payload(parsed(**fields).stages[0]).to_json()


def test_what_is_left_out_is_not_in_the_payload() -> None:
    assert prepared(data=[{"source": "./a.jsonl"}]) == {
        "kind": "prepare",
        "base": {"model": "owner/model", "revision": "main"},
        "data": [{"source": "./a.jsonl", "revision": "main", "split": "train", "weight": 1.0}],
        "sequenceLength": 4096,
        "epochs": 1.0,
        "seed": 0,
    }
    assert trained(method="LoRA") == {
        "kind": "train",
        "method": "LoRA",
        "learningRate": 2e-5,
        "schedule": "cosine",
        "warmupRatio": 0.03,
        "weightDecay": 0.0,
        "adamBeta1": 0.9,
        "adamBeta2": 0.999,
        "maxGradNorm": 1.0,
        "optimizerStates": "fp32",
        "sequenceLength": 4096,
        "globalBatchTokens": 131_072,
        "lora": {"rank": 16, "alpha": 32.0, "dropout": 0.0, "rankStabilized": False},
        "continueAdapter": False,
        "seed": 0,
    }


DATA: list[dict[str, Any]] = [
    {"format": "Chat", "fields": {"messages": "turns", "role": "from"}},
    {"format": "Alpaca", "promptTemplate": {"withInput": "{input}", "withoutInput": "x"}},
    {"roles": {"assistant": ["bot"]}, "trainOn": ["user", "assistant"], "trainOnEnd": "All"},
    {"files": ["a/*.jsonl"], "excessLength": "Drop"},
    {"split": "train[:20%]"},
]


@pytest.mark.parametrize("fields", DATA, ids=lambda fields: next(iter(fields)))
def test_what_is_said_of_a_source_reaches_prepare(fields: dict[str, Any]) -> None:
    (source,) = prepared(data=[{"source": "./a.jsonl", **fields}])["data"]
    assert source.items() >= fields.items()


@pytest.mark.parametrize(
    ("parameters", "payload"),
    [
        ({"maxSteps": 10}, {"steps": 10, "stepSequences": 32}),
        ({"maxSteps": 10, "globalBatchTokens": 100}, {"steps": 10, "stepSequences": 1}),
        ({"maxSteps": 10, "globalBatchSamples": 8}, {"steps": 10, "stepSamples": 8}),
        ({"globalBatchSamples": 8}, {"stepSamples": 8}),
        ({"validationShare": "0.05"}, {"validationShare": 0.05}),
    ],
)
def test_the_size_of_steps_reaches_prepare(
    parameters: dict[str, Any], payload: dict[str, Any]
) -> None:
    plain, made = prepared(), prepared(hyperparameters=parameters)
    assert {key: value for key, value in made.items() if key not in plain} == payload


@pytest.mark.parametrize(
    ("template", "payload"),
    [
        ({"preset": "ChatML"}, {"preset": "ChatML"}),
        ({"jinja": "{{ messages }}"}, {"jinja": "{{ messages }}"}),
        (
            {"model": "owner/chat", "revision": "v1"},
            {"model": {"model": "owner/chat", "revision": "v1"}},
        ),
    ],
)
def test_a_changed_tokenizer_reaches_prepare(
    template: dict[str, Any], payload: dict[str, Any]
) -> None:
    base = {"chatTemplate": template, "specialTokens": {"eos": "<|im_end|>"}}
    assert prepared(base)["tokenizer"] == {
        "chatTemplate": payload,
        "specialTokens": {"eos": "<|im_end|>"},
    }
    assert "tokenizer" not in prepare_payload(Base(model="a/b"), parsed().stages[0]).to_json()


def test_hyperparameters_reach_training() -> None:
    given: dict[str, Any] = {
        "warmupSteps": 7,
        "minLearningRateRatio": "0.1",
        "adamBeta1": "0.8",
        "adamBeta2": "0.95",
        "adamEpsilon": "1e-6",
        "neftuneNoiseAlpha": "5",
    }
    assert trained(hyperparameters=given).items() >= {k: float(v) for k, v in given.items()}.items()
    zero = {"minLearningRateRatio": "0", "neftuneNoiseAlpha": "0"}
    assert trained(hyperparameters=zero) == trained()


@pytest.mark.parametrize(
    ("lora", "payload"),
    [
        ({"targetPattern": ".*mlp.*"}, {"targetModules": ".*mlp.*"}),
        ({"layers": [0, 5]}, {"layers": [0, 5]}),
        (
            {"modulesToSave": ["lm_head", "embed_tokens"]},
            {"modulesToSave": ["embed_tokens", "lm_head"]},
        ),
    ],
)
def test_the_adapters_place_reaches_training(lora: dict[str, Any], payload: dict[str, Any]) -> None:
    assert trained(method="LoRA", lora=lora)["lora"].items() >= payload.items()


def test_a_step_of_samples_is_planned_for_what_they_take_at_most() -> None:
    made = train_payload(
        parsed(hyperparameters={"globalBatchSamples": 8, "sequenceLength": 512}).stages[0]
    )
    assert (made.global_batch_tokens, made.sequences_per_step) == (8 * 512, 8)
