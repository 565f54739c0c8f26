"""The DeepSpeed engine around a loss module: its optimizer, its weights, its gradient norm."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import deepspeed
import torch
from torch import nn

from latticeforge_trainer.contract import TrainPayload


def build_engine(loss: nn.Module, payload: TrainPayload, config: dict[str, Any]) -> Any:
    """Wrap a loss module into a DeepSpeed engine with AdamW.

    Args:
        loss: Module whose forward returns the loss; what is frozen stays as it is.
        payload: Learning-rate-free hyperparameters of AdamW are taken from it.
        config: DeepSpeed's configuration.
    """
    groups = parameter_groups(loss, payload.weight_decay)
    # DeepSpeed allocates the states with a first step on zero gradients: at a rate of 0 it leaves
    # the weights alone, and `reset_step_count` makes it uncounted.
    optimizer = torch.optim.AdamW(
        groups, lr=0.0, betas=(payload.adam_beta1, payload.adam_beta2), fused=True
    )
    engine, *_ = deepspeed.initialize(model=loss, optimizer=optimizer, config=config)
    set_step_count(engine, 0)
    return engine


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters with and without weight decay: norms and biases are not decayed."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    matrices = [p for p in trainable if len(full_shape(p)) > 1]
    vectors = [p for p in trainable if len(full_shape(p)) < 2]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def full_shape(parameter: nn.Parameter) -> torch.Size:
    """A parameter's shape, also while ZeRO-3 holds it in partitions."""
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape


def set_step_count(engine: Any, step: int) -> None:
    """Set AdamW's own count of steps, which its bias correction depends on."""
    for state in engine.basic_optimizer.state.values():
        if "step" in state:
            state["step"].fill_(step)


def set_learning_rate(engine: Any, rate: float) -> None:
    """Set the learning rate of the next step."""
    for group in engine.optimizer.param_groups:
        group["lr"] = rate


def update(engine: Any) -> float:
    """Take the optimizer step, clipping the gradients.

    Returns:
        The gradients' norm before clipping; infinite or NaN if DeepSpeed refused the step.
    """
    norm: torch.Tensor | float | None = None
    if not (engine.bfloat16_enabled() or engine.zero_optimization()):
        # In plain fp32 DeepSpeed clips, but keeps the norm to itself.
        gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
    engine.step()
    if norm is None:
        norm = engine.get_global_grad_norm()
    if not engine.was_step_applied() or norm is None:
        return float("nan")
    return float(norm)


def trainable_parameters(engine: Any) -> Iterator[tuple[str, nn.Parameter]]:
    """Trainable parameters under their names in the model inside the loss module."""
    for name, parameter in engine.module.model.named_parameters():
        if parameter.requires_grad:
            yield name, parameter


@contextmanager
def gathered(parameters: list[nn.Parameter], *, write: bool = False) -> Iterator[None]:
    """Have whole parameters in the block, also under ZeRO-3.

    Args:
        parameters: Those to gather; does nothing for parameters that are whole.
        write: Whether what rank 0 makes of them reaches every process.
    """
    partitioned = [p for p in parameters if hasattr(p, "ds_id")]
    with deepspeed.zero.GatheredParameters(
        partitioned, modifier_rank=0 if write else None, enabled=bool(partitioned)
    ):
        yield
