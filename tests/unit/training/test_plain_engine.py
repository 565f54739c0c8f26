"""One step without DeepSpeed: what is accumulated, in which precision, and what is returned."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from latticeforge_trainer.contract import LoRASettings, Method, TrainPayload
from latticeforge_trainer.training.plain import PlainEngine


class Slope(nn.Module):
    """A loss whose gradient is the batch, beside a frozen weight."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = nn.ParameterDict(
            {
                "learned": nn.Parameter(torch.ones(3, 5, dtype=dtype)),
                "frozen": nn.Parameter(torch.ones(4, dtype=dtype), requires_grad=False),
            }
        )

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        learned = self.model["learned"]
        total: torch.Tensor = (learned.to(batch.dtype) * batch).float().sum()
        return total


def engine(
    *, dtype: torch.dtype = torch.bfloat16, accumulation: int = 1, adapter: bool = False
) -> tuple[PlainEngine, Any]:
    payload = TrainPayload(
        method=Method.LORA if adapter else Method.FULL,
        lora=LoRASettings() if adapter else None,
        learning_rate=1,
        sequence_length=1,
        global_batch_tokens=1,
    )
    loss: Any = Slope(dtype)
    return PlainEngine(loss, payload, accumulation=accumulation, processes=1), loss


def accumulate(made: PlainEngine, values: list[float], denominator: int = 1) -> torch.Tensor:
    shares = []
    for number, value in enumerate(values, 1):
        batch: Any = torch.full((3, 5), value, dtype=torch.bfloat16)
        share = made.forward(batch, denominator)
        made.backward(share, last=number == len(values))
        shares.append(share.detach())
    return torch.stack(shares).sum()


def test_small_gradients_are_not_lost_beside_large_ones() -> None:
    # In bf16, 1 + 1/512 is 1.
    made, loss = engine(accumulation=65)

    accumulate(made, [1.0] + [1 / 512] * 64)

    gradient = loss.model["learned"].grad
    assert gradient.dtype == torch.float32
    assert gradient[0, 0].item() == 1.125


def test_a_single_gradient_keeps_16_bits() -> None:
    made, loss = engine()

    accumulate(made, [1.0])

    assert loss.model["learned"].grad.dtype == torch.bfloat16


@pytest.mark.parametrize("values", [[1.0], [1.0, 1 / 512]])
def test_loss_and_norm_are_the_steps_in_fp32(values: list[float]) -> None:
    made, _ = engine(accumulation=len(values))

    share = accumulate(made, values, denominator=2)
    norm = made.update(0.1)

    assert share.item() == pytest.approx(15 * sum(values) / 2)
    assert norm.dtype == torch.float32
    assert norm.item() == pytest.approx(15**0.5 * sum(values) / 2, rel=1e-6)


def test_a_table_beside_an_adapter_keeps_16_bits_and_has_a_master() -> None:
    payload = TrainPayload(
        method=Method.LORA,
        lora=LoRASettings(modules_to_save=["lm_head"]),
        learning_rate=1,
        sequence_length=1,
        global_batch_tokens=1,
    )
    loss: Any = Slope(torch.bfloat16)
    table = nn.Parameter(torch.ones(3, 5, dtype=torch.bfloat16))
    loss.model.register_module("head", nn.Module())
    loss.model.head.modules_to_save = nn.ParameterDict({"default": table})
    made = PlainEngine(loss, payload, accumulation=2, processes=1)

    accumulate(made, [1.0, 1.0])
    table.grad = torch.ones(3, 5)
    made.update(1e-4)

    assert table.dtype == torch.bfloat16
    assert loss.model["learned"].dtype == torch.float32
    master = made.read_state()["master/head.modules_to_save.default"]
    assert master[0, 0].item() == pytest.approx(1 - 1e-4, abs=1e-7)
    assert table[0, 0].item() == 1  # in 16 bits


def test_an_adapter_is_held_in_fp32_and_what_is_frozen_is_not() -> None:
    made, loss = engine(adapter=True)

    accumulate(made, [1.0])
    made.update(1e-4)

    assert loss.model["learned"].dtype == torch.float32
    assert loss.model["learned"][0, 0].item() == pytest.approx(1 - 1e-4, abs=1e-7)
    assert loss.model["frozen"].dtype == torch.bfloat16
    assert made.read_state().keys() == {
        "master/learned",
        "exp_avg/learned",
        "exp_avg_sq/learned",
    }
