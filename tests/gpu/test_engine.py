"""What only a GPU shows of the engine: no step waits for it, and 8-bit states resume exactly."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from latticeforge_trainer.contract import Method, TrainPayload
from latticeforge_trainer.training import snapshots
from latticeforge_trainer.training.plain import PlainEngine
from latticeforge_trainer.training.readback import Readback
from latticeforge_trainer.training.snapshots import (
    HostBuffers,
    in_shards,
    read_shards,
    write_shards,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

DEVICE = torch.device("cuda")


class Squares(nn.Module):
    """The squared output of two layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(96, 64), nn.Linear(64, 50))
        self.model.to(DEVICE, torch.bfloat16)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.model(batch)
        return output.float().square().sum()


def engine(optimizer_states: str, accumulation: int = 1) -> PlainEngine:
    payload = TrainPayload.model_validate(
        {
            "method": Method.FULL,
            "learning_rate": 1,
            "optimizer_states": optimizer_states,
            "sequence_length": 1,
            "global_batch_tokens": 1,
        }
    )
    loss: Any = Squares()
    return PlainEngine(loss, payload, accumulation=accumulation, processes=1)


def batches(steps: int) -> list[Any]:
    generator = torch.Generator().manual_seed(1)
    made = [torch.randn(8, 96, generator=generator) for _ in range(steps)]
    return [batch.to(DEVICE, torch.bfloat16) for batch in made]


def take_step(made: PlainEngine, batch: Any) -> Readback:
    share = made.forward(batch, 1)
    made.backward(share, last=True)
    norm = made.update(1e-3)
    return Readback(torch.stack([share.detach(), norm]))


@pytest.mark.parametrize("optimizer_states", ["fp32", "int8"])
def test_a_step_does_not_wait_for_the_gpu(optimizer_states: str) -> None:
    made, inputs = engine(optimizer_states), batches(4)
    take_step(made, inputs[0]).read()  # compiles and allocates
    torch.cuda.set_sync_debug_mode("error")
    try:
        sent = [take_step(made, batch) for batch in inputs[1:]]
    finally:
        torch.cuda.set_sync_debug_mode("default")

    losses = [readback.read()[0] for readback in sent]

    assert losses[-1] < losses[0]


@pytest.mark.parametrize("optimizer_states", ["fp32", "int8"])
def test_what_was_saved_goes_on_exactly(
    optimizer_states: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "SNAPSHOT_PIECE", 4096)
    inputs = batches(6)
    made, resumed = engine(optimizer_states), engine(optimizer_states)
    for batch in inputs[:3]:
        take_step(made, batch)
    buffers, shards = HostBuffers(made.device), in_shards(made.read_state())
    buffers.hold(buffers.needed(shards), threading.Event())
    held = list(buffers._pieces)
    assert len(held) > 1
    assert all(piece.is_pinned() for piece in held)
    buffers.after_current_work()
    write_shards(shards, tmp_path, buffers, lambda: None)
    assert len(buffers._pieces) == len(held)

    resumed.write_state(read_shards(tmp_path), 3)

    for batch in inputs[3:]:
        undisturbed, again = take_step(made, batch).read(), take_step(resumed, batch).read()
        assert undisturbed[0] == again[0]
    state = resumed.read_state()
    for key, tensor in made.read_state().items():  # some are bits that only look like numbers
        assert torch.equal(tensor.view(torch.uint8), state[key].view(torch.uint8)), key


@pytest.mark.parametrize("optimizer_states", ["fp32", "int8"])
def test_16_bit_weights_hold_what_small_steps_add_up_to(optimizer_states: str) -> None:
    made = engine(optimizer_states, accumulation=2)
    weight = next(made.loss.model.parameters())
    before = weight.detach().float().clone()
    for _ in range(200):
        for parameter in made.loss.model.parameters():
            parameter.grad = torch.ones_like(parameter, dtype=torch.float32)
        made.update(1e-5)

    moved = (before - weight.float()).mean().item()

    assert moved == pytest.approx(200e-5, rel=0.1)
