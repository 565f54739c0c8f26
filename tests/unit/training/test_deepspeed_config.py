"""Strategies as DeepSpeed's configuration."""

from __future__ import annotations

from typing import Any

import pytest

from latticeforge_trainer.contract import Offload, Strategy
from latticeforge_trainer.training.deepspeed_config import deepspeed_config


def make(*, cuda: bool = True, **strategy: Any) -> dict[str, Any]:
    return deepspeed_config(Strategy(**strategy), accumulation=4, max_grad_norm=0.5, cuda=cuda)


def test_batch_clipping_and_precision_are_the_strategys() -> None:
    config = make(micro_batch=3)

    assert config["train_micro_batch_size_per_gpu"] == 3
    assert config["gradient_accumulation_steps"] == 4
    assert config["gradient_clipping"] == 0.5
    assert config["bf16"]["enabled"]
    assert not make(precision="fp32")["bf16"]["enabled"]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_gradients_add_up_in_fp32(stage: int) -> None:
    config = make(zero_stage=stage)

    assert config["zero_optimization"]["stage"] == stage
    assert config["data_types"] == {"grad_accum_dtype": "fp32"}


@pytest.mark.parametrize(("stage", "overlaps"), [(1, False), (2, False), (3, True)])
def test_only_zero_3_talks_beside_backward(stage: int, overlaps: bool) -> None:
    assert make(zero_stage=stage)["zero_optimization"]["overlap_comm"] is overlaps
    assert make(zero_stage=stage, cuda=False)["zero_optimization"]["overlap_comm"] is False


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_deepspeed_knows_every_key(stage: int) -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig  # noqa: PLC0415  (heavy)

    zero = make(zero_stage=stage)["zero_optimization"]

    known = DeepSpeedZeroConfig(**zero).model_dump(by_alias=True)
    assert {key: known[key] for key in zero} == zero


@pytest.mark.parametrize(
    ("stage", "offload", "cuda", "offloaded"),
    [
        (2, Offload.NONE, True, set()),
        (2, Offload.OPTIMIZER, True, {"offload_optimizer"}),
        (2, Offload.ALL, True, {"offload_optimizer"}),
        (3, Offload.OPTIMIZER, True, {"offload_optimizer"}),
        (3, Offload.ALL, True, {"offload_optimizer", "offload_param"}),
        (3, Offload.ALL, False, set()),
    ],
)
def test_offload_is_what_zero_can_do(
    stage: int, offload: Offload, cuda: bool, offloaded: set[str]
) -> None:
    zero = make(zero_stage=stage, offload=offload, cuda=cuda)["zero_optimization"]

    assert {key for key in zero if key.startswith("offload")} == offloaded
