"""What operator and trainer agree on: nothing is misread, and digests name results."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from latticeforge_trainer import errors
from latticeforge_trainer.contract import (
    DataFacts,
    ExitCode,
    LoRASettings,
    Method,
    ModelFacts,
    ModelRef,
    PrepareResult,
    Progress,
    StepConfig,
    StepKind,
    StepState,
    TrainPayload,
    TrainResult,
    digest_of,
    step_digest,
)

CONFIGS: TypeAdapter[Any] = TypeAdapter(StepConfig)
PREPARE: dict[str, Any] = {
    "step": "prepare",
    "training": "default/t",
    "stage": "math",
    "digest": "a" * 64,
    "payload": {
        "base": {"model": "me/base"},
        "data": [{"source": "./data", "weight": 4}],
        "sequenceLength": 2048,
        "epochs": 1.5,
    },
    "runtime": {"method": "LoRA"},
}
TRAIN: dict[str, Any] = {
    "method": "LoRA",
    "learningRate": 1e-4,
    "sequenceLength": 512,
    "globalBatchTokens": 4096,
    "lora": {},
}


def test_importing_it_costs_no_torch() -> None:
    code = (
        "import sys, latticeforge_trainer.contract\n"
        "print({'torch', 'transformers', 'numpy', 'kubernetes'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"


def test_documents_are_camel_case_and_come_back() -> None:
    config = CONFIGS.validate_python(PREPARE)
    document = config.to_json()
    assert document["payload"]["sequenceLength"] == 2048
    assert "subset" not in document["payload"]["data"][0]
    assert CONFIGS.validate_json(json.dumps(document)) == config


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"step": "deploy"}, ()),
        ({"digest": "a" * 63}, ("prepare", "digest")),
        ({"extra": 1}, ("prepare", "extra")),
        ({"schemaVersion": 2}, ("prepare", "schemaVersion")),
        ({"runtime": {}}, ("prepare", "runtime", "method")),
        ({"payload": {**PREPARE["payload"], "data": []}}, ("prepare", "payload", "data")),
        ({"payload": {**PREPARE["payload"], "epochs": 0}}, ("prepare", "payload", "epochs")),
        (
            {"payload": {**PREPARE["payload"], "epochs": float("inf")}},
            ("prepare", "payload", "epochs"),
        ),
        (
            {"payload": {**PREPARE["payload"], "data": [{"source": "x", "weight": -1}]}},
            ("prepare", "payload", "data", 0, "weight"),
        ),
    ],
)
def test_a_wrong_config_is_refused_where_it_is_wrong(
    change: dict[str, Any], where: tuple[str | int, ...]
) -> None:
    with pytest.raises(ValidationError) as error:
        CONFIGS.validate_python({**PREPARE, **change})
    assert error.value.errors()[0]["loc"] == where


def test_documents_cannot_be_changed() -> None:
    config = CONFIGS.validate_python(PREPARE)
    with pytest.raises(ValidationError):
        config.digest = "b" * 64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lora": None}, "method LoRA needs lora"),
        ({"method": "Full"}, "method Full takes no lora"),
        ({"method": "Full", "lora": None, "continueAdapter": True}, "continueAdapter needs"),
        ({"method": "QLoRA", "lora": {"baseDtype": "fp8"}}, "lora.baseDtype needs method LoRA"),
    ],
)
def test_adapter_settings_match_the_method(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrainPayload.model_validate({**TRAIN, **change})


def test_a_batch_is_whole_sequences_at_least_one() -> None:
    payload = TrainPayload.model_validate(TRAIN)
    assert payload.sequences_per_step == 8
    for tokens, sequences in ((511, 1), (1023, 1), (1024, 2)):
        assert payload.model_copy(update={"global_batch_tokens": tokens}).sequences_per_step == (
            sequences
        )
    assert payload.lora == LoRASettings(rank=16, alpha=32)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), values, max_size=4))
def test_a_digest_does_not_depend_on_the_order_of_keys(payload: dict[str, Any]) -> None:
    turned = dict(reversed(payload.items()))
    digest = step_digest(StepKind.TRAIN, payload, ["a"])
    assert digest == step_digest(StepKind.TRAIN, turned, ["a"])
    assert len(digest) == 64


def test_everything_of_a_step_is_in_its_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    digests = {
        step_digest(StepKind.TRAIN, {"a": 1}, ["x", "y"]),
        step_digest(StepKind.MERGE, {"a": 1}, ["x", "y"]),
        step_digest(StepKind.TRAIN, {"a": 2}, ["x", "y"]),
        step_digest(StepKind.TRAIN, {"a": 1}, ["y", "x"]),
        step_digest(StepKind.TRAIN, {"a": 1}, ["x"]),
        step_digest(StepKind.TRAIN, {"a": "1"}, ["x", "y"]),
    }
    monkeypatch.setattr("latticeforge_trainer.contract.TRAINER_VERSION", "other")
    assert len({*digests, step_digest(StepKind.TRAIN, {"a": 1}, ["x", "y"])}) == 7


def test_digests_are_the_same_everywhere() -> None:
    # Stores outlive versions: a change here makes every finished artifact unknown.
    assert digest_of("a", {"ü": [1, 2.5, None, True]}) == (
        "3869b3b88d9e5b234aa927dbace537f7c8e08e1cc481d6fb3baa06a668a93392"
    )


def test_an_identity_names_the_weights_and_not_their_place() -> None:
    model = ModelRef(name="math", base_path="./a", base_revision="r", artifact="b" * 64)
    assert model.identity == model.model_copy(update={"name": "x", "base_path": "/y"}).identity
    for change in ({"base_revision": "s"}, {"artifact": None}, {"adapter": "c" * 64}):
        assert model.identity != model.model_copy(update=change).identity


def test_results_are_told_apart_inside_progress() -> None:
    train = TrainResult(
        steps=1, tokens=2, first_loss=3, final_loss=2, seconds=1, tokens_per_second=2
    )
    base = ModelFacts(
        path="./b",
        revision="r",
        architecture="A",
        parameters=1,
        hidden_size=1,
        layers=1,
        vocabulary=1,
    )
    result = PrepareResult(
        artifact="a" * 64,
        base=base,
        data=[DataFacts(source="s", revision="r", samples=1, tokens=1)],
        sequences=1,
        tokens=1,
        target_tokens=1,
        found={"b" * 64: train},
    )
    progress = Progress(
        step=StepKind.PREPARE,
        digest="a" * 64,
        state=StepState.DONE,
        message="done",
        updated_at="2026-01-01T00:00:00Z",
        result=result,
    )
    again = Progress.model_validate_json(json.dumps(progress.to_json()))
    assert again == progress
    assert isinstance(again.result, PrepareResult)
    assert again.result.found["b" * 64] == train


def test_exit_codes_are_distinct_and_errors_carry_them() -> None:
    codes = {cls.exit_code for cls in errors.StepError.__subclasses__()}
    assert codes == set(ExitCode) - {ExitCode.DONE}
    assert all(code < 128 for code in ExitCode)  # from 128 on a shell means a signal


def test_only_full_training_has_no_adapter() -> None:
    assert [method for method in Method if not method.is_adapter] == [Method.FULL]
