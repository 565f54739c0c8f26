"""ZeRO 1 to 3: DeepSpeed's engine behind `engine.Engine`."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import deepspeed
import torch
from torch import nn

from latticeforge_trainer.contract import TrainPayload
from latticeforge_trainer.models.fused import decoder_layers
from latticeforge_trainer.training import masters, partitions
from latticeforge_trainer.training.batches import MicroBatch
from latticeforge_trainer.training.loss import TargetLoss
from latticeforge_trainer.training.optimizers import (
    make_adamw,
    parameter_groups,
    set_learning_rate,
)


class ShardedEngine:
    """DeepSpeed's engine; see `engine.Engine`.

    Args:
        loss: The loss module.
        payload: The step's hyperparameters.
        config: DeepSpeed's configuration.
        device: Where it computes.

    Raises:
        UserError: The optimizer does not run here.
    """

    def __init__(
        self, loss: TargetLoss, payload: TrainPayload, config: dict[str, Any], device: torch.device
    ) -> None:
        self.loss, self.device = loss, device
        trainable = [p for p in loss.parameters() if p.requires_grad]
        # DeepSpeed allocates the states with a first step on zero gradients: at a rate of 0 it
        # leaves the weights alone, and `set_step_count` makes it uncounted.
        optimizer = make_adamw(parameter_groups(trainable, payload.weight_decay), payload, device)
        layers = {type(layer) for layer in decoder_layers(loss.model)}
        if config["zero_optimization"]["stage"] == 3:
            # Blocks read the weights of a whole layer without calling its modules.
            deepspeed.utils.set_z3_leaf_modules(loss, list(layers))
            # DeepSpeed takes a layer's gradients when its input's gradient is there. Behind a
            # frozen embedding nobody asks for one, and the first layer's would be taken too early.
            loss.causal.enable_input_require_grads()
        self._engine, *_ = deepspeed.initialize(model=loss, optimizer=optimizer, config=config)
        masters.set_step_count(self._engine, 0)
        self.sharded = self.reads_in_place = not payload.method.is_adapter

    def forward(self, batch: MicroBatch, denominator: int) -> torch.Tensor:
        """A micro-batch's share of the step's mean loss."""
        share: torch.Tensor = self._engine(batch) / denominator
        return share

    def backward(self, share: torch.Tensor, *, last: bool) -> None:
        """Add a micro-batch's gradients to those of the step."""
        self._engine.set_gradient_accumulation_boundary(last)
        # DeepSpeed averages gradients over processes; the denominator already covers them all.
        self._engine.backward(share * self._engine.world_size, scale_wrt_gas=False)

    def update(self, rate: float) -> torch.Tensor:
        """Take the optimizer step; DeepSpeed waits for the device in it."""
        set_learning_rate(self._engine.optimizer, rate)
        self._engine.step()
        norm = self._engine.get_global_grad_norm()
        if norm is None or not self._engine.was_step_applied():
            norm = float("nan")
        return torch.as_tensor(norm, device=self.device)

    def gathered(self, parameters: list[nn.Parameter]) -> AbstractContextManager[None]:
        """Have whole parameters in the block, also under ZeRO-3."""
        return masters.gathered(parameters)

    def read_state(self) -> dict[str, torch.Tensor]:
        """An adapter's whole state, on the first process's CPU; this process's share otherwise."""
        if self.sharded:
            return partitions.read_partitions(self._engine)
        return masters.read_masters(self._engine)

    def write_state(self, tensors: dict[str, torch.Tensor], step: int) -> None:
        """Put back what `read_state` returned after a step."""
        if self.sharded:
            partitions.write_partitions(self._engine, tensors, step)
            return
        masters.write_masters(self._engine, tensors)
        masters.set_step_count(self._engine, step)
