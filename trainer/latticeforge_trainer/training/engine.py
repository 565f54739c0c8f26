"""What the loop, checkpoints and export know of an engine: one step, and the state it leaves.

    ZeRO 0       plain.PlainEngine      every process holds everything; no DeepSpeed
    ZeRO 1 to 3  sharded.ShardedEngine  DeepSpeed's engine; waits for the device in its update

Losses and norms stay on the device, and the loop reads them late.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import nn

from latticeforge_trainer.training.batches import MicroBatch
from latticeforge_trainer.training.loss import TargetLoss

MASTER = "master"
"""The kind of state that holds weights in fp32; every other kind is the optimizer's."""


class Engine(Protocol):
    """A model in training.

    Attributes:
        loss: The module that computes the loss.
        device: Where it computes.
        sharded: Whether every process saves a share of the state, which only as many processes can
            go on from; otherwise the first saves the whole, for any number.
        reads_in_place: Whether `read_state` shares the state's memory, and so costs next to
            nothing; otherwise it gathers a copy on the first process's CPU.
    """

    loss: TargetLoss
    device: torch.device
    sharded: bool
    reads_in_place: bool

    def forward(self, batch: MicroBatch, denominator: int) -> torch.Tensor:
        """A micro-batch's share of the step's mean loss, to be given to `backward` next.

        Args:
            batch: The micro-batch, on the device.
            denominator: Learned tokens of the whole step, over all processes.
        """
        ...

    def backward(self, share: torch.Tensor, *, last: bool) -> None:
        """Add a micro-batch's gradients to those of the step; `last`: its update follows."""
        ...

    def update(self, rate: float) -> torch.Tensor:
        """Take the optimizer step with clipped gradients; a collective.

        Returns:
            The gradients' norm before clipping, on the device; not finite if nothing was changed
            because a gradient is not.
        """
        ...

    def gathered(self, parameters: list[nn.Parameter]) -> AbstractContextManager[None]:
        """Have whole parameters in the block; a collective."""
        ...

    def read_state(self) -> dict[str, torch.Tensor]:
        """What this process saves, good until the next update; a collective.

        The whole state as `<kind>/<parameter>`, which only the first process is sure to get, or
        its share under names of the engine's own.
        """
        ...

    def write_state(self, tensors: dict[str, torch.Tensor], step: int) -> None:
        """Put back what `read_state` returned after a step; a collective."""
        ...


def trainable_parameters(loss: TargetLoss) -> Iterator[tuple[str, nn.Parameter]]:
    """Trainable parameters under their names in the model inside the loss module."""
    for name, parameter in loss.model.named_parameters():
        if parameter.requires_grad:
            yield name, parameter
