"""Reads and writes an adapter's fp32 master weights and Adam moments, whole, under any ZeRO stage.

An adapter is small. Its training state as whole tensors by name resumes on any number of
processes and under any ZeRO stage, which DeepSpeed's own sharded checkpoints do not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_get_local_fp32_param,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import nn
from torch.nn import functional

from latticeforge_trainer.training.engine import gathered, trainable_parameters

MASTER = "master"
MOMENTS = ("exp_avg", "exp_avg_sq")


def read_masters(engine: Any) -> dict[str, torch.Tensor]:
    """Master weights and moments on the CPU, named `<kind>/<parameter>`; a collective."""
    return {
        f"{kind}/{name}": _read(engine, parameter, kind).detach().cpu().clone()
        for name, parameter in trainable_parameters(engine)
        for kind in (MASTER, *MOMENTS)
    }


def write_masters(engine: Any, tensors: dict[str, torch.Tensor]) -> None:
    """Put back what `read_masters` returned, and the weights that follow from it; a collective."""
    _allocate_moments(engine)
    for name, parameter in trainable_parameters(engine):
        for kind in (MASTER, *MOMENTS):
            _write(engine, parameter, kind, tensors[f"{kind}/{name}"].to(engine.device))
        with gathered([parameter], write=True), torch.no_grad():
            parameter.copy_(tensors[f"{MASTER}/{name}"])


def _allocate_moments(engine: Any) -> None:
    """Make the moments that ZeRO 1 and 2 would make in their first step, which is yet to come."""
    optimizer = engine.basic_optimizer
    masters = [p for group in optimizer.param_groups for p in group["params"]]
    missing = {p: p.grad for p in masters if p not in optimizer.state}
    for master in missing:
        master.grad = torch.zeros_like(master)
    if missing:
        optimizer.step()  # at a learning rate of 0, on zero gradients
    for master, gradient in missing.items():
        master.grad = gradient  # a buffer of DeepSpeed's, when the optimizer is offloaded
    link: Any = getattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state", None)
    if link is not None:
        link()


def _read(engine: Any, parameter: nn.Parameter, kind: str) -> torch.Tensor:
    if not engine.zero_optimization():
        return _unsharded(engine, parameter, kind)
    if kind == MASTER:
        whole = safe_get_full_fp32_param(parameter)
    else:
        whole = safe_get_full_optimizer_state(parameter, kind)
    tensor: torch.Tensor = whole
    return tensor


def _write(engine: Any, parameter: nn.Parameter, kind: str, value: torch.Tensor) -> None:
    if not engine.zero_optimization():
        _unsharded(engine, parameter, kind).data.copy_(value)
    elif engine.zero_optimization_partition_weights():
        _write_partition(engine, parameter, kind, value)
    elif kind == MASTER:
        safe_set_full_fp32_param(parameter, value)
    else:
        safe_set_full_optimizer_state(parameter, value, kind)


def _write_partition(engine: Any, parameter: nn.Parameter, kind: str, value: torch.Tensor) -> None:
    # DeepSpeed's setter of whole tensors does not know the padding of uneven partitions.
    size = safe_get_local_fp32_param(parameter).numel()
    padded = functional.pad(value.flatten(), (0, size * engine.world_size - value.numel()))
    mine = padded.narrow(0, size * engine.global_rank, size)
    if kind == MASTER:
        safe_set_local_fp32_param(parameter, mine)
    else:
        safe_set_local_optimizer_state(parameter, mine, kind)


def _unsharded(engine: Any, parameter: nn.Parameter, kind: str) -> torch.Tensor:
    master = next(m for p, m in _pairs(engine) if p is parameter)
    if kind == MASTER:
        return master
    tensor: torch.Tensor = engine.basic_optimizer.state[master][kind]
    return tensor


def _pairs(engine: Any) -> Iterator[tuple[nn.Parameter, torch.Tensor]]:
    """Parameters beside their masters; in plain fp32 they are the same tensors."""
    optimizer = engine.optimizer
    if optimizer is engine.basic_optimizer:
        for group in optimizer.param_groups:
            yield from zip(group["params"], group["params"], strict=True)
    else:
        for working, masters in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
            yield from zip(working, masters, strict=True)
