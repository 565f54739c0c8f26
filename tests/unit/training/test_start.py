"""What a stage's model is refused for before anything is loaded."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from latticeforge_trainer.contract import LoRASettings, Method, Offload, Strategy, TrainPayload
from latticeforge_trainer.errors import UserError
from latticeforge_trainer.training.start import refuse_mismatch, refuse_without_fp8

GPU = torch.device("cuda", 0)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    name, capability = request.param
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)


@pytest.mark.parametrize("card", [("NVIDIA A100-SXM4-80GB", (8, 0))], indirect=True)
def test_a_gpu_without_fp8_is_named(card: None) -> None:
    with pytest.raises(UserError, match="this is an NVIDIA A100-SXM4-80GB: use H100, H200 or L40S"):
        refuse_without_fp8(GPU)
    refuse_without_fp8(torch.device("cpu"))


@pytest.mark.parametrize(
    "card", [("NVIDIA L40S", (8, 9)), ("NVIDIA H200", (9, 0)), ("B200", (10, 0))], indirect=True
)
def test_gpus_with_fp8_train_with_it(card: None) -> None:
    refuse_without_fp8(GPU)


def payload(method: Method, states: Any = "fp32", base_dtype: Any = None) -> TrainPayload:
    return TrainPayload(
        method=method,
        learning_rate=1,
        sequence_length=1,
        global_batch_tokens=1,
        optimizer_states=states,
        lora=LoRASettings(base_dtype=base_dtype) if method.is_adapter else None,
    )


SHARDED, OFFLOADED = Strategy(zero_stage=3), Strategy(zero_stage=2, offload=Offload.OPTIMIZER)


@pytest.mark.parametrize(
    ("asked", "quantization", "strategy", "why"),
    [
        (payload(Method.QLORA), None, SHARDED, "QLoRA runs under ZeRO 0 to 2"),
        (payload(Method.LORA, base_dtype="fp8"), None, SHARDED, "FP8 runs under ZeRO 0"),
        (payload(Method.FULL, "int8"), None, OFFLOADED, "INT8 stay on the GPU: leave offload out"),
        (payload(Method.FULL), "nf4", Strategy(), "the base holds NF4 weights, which method Full"),
        (payload(Method.QLORA), "awq", Strategy(), "the base holds awq weights, which serve infer"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    asked: TrainPayload, quantization: str | None, strategy: Strategy, why: str
) -> None:
    with pytest.raises(UserError, match=why):
        refuse_mismatch(asked, quantization, strategy)


@pytest.mark.parametrize(
    ("asked", "quantization", "strategy"),
    [
        (payload(Method.QLORA), "nf4", Strategy(zero_stage=2)),
        (payload(Method.LORA, base_dtype="fp8"), None, Strategy()),
        (payload(Method.FULL), None, SHARDED),
        (payload(Method.FULL, "int8"), None, SHARDED),
        (payload(Method.FULL), None, OFFLOADED),
    ],
)
def test_what_can_be_trained_is_not(
    asked: TrainPayload, quantization: str | None, strategy: Strategy
) -> None:
    refuse_mismatch(asked, quantization, strategy)
