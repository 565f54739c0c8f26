"""Reads and writes an adapter's fp32 master weights and Adam moments, whole, under ZeRO 1 to 3.

The training state of an adapter, and of what is trained in full beside it, as whole tensors by name
resumes on any number of processes and under any ZeRO stage, 0 included, which the partitions of a
full fine-tune (`partitions.py`) do not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import deepspeed
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

from latticeforge_trainer.training.engine import MASTER, trainable_parameters

MOMENTS = ("exp_avg", "exp_avg_sq")


def read_masters(engine: Any) -> dict[str, torch.Tensor]:
    """Master weights and moments on the first process's CPU, as `<kind>/<parameter>`; a collective.

    The others, which write nothing, get nothing: an embedding's would be gigabytes for each.
    """
    tensors = {}
    for name, parameter in trainable_parameters(engine.module):
        for kind in (MASTER, *MOMENTS):
            whole = _read(parameter, kind)
            if engine.global_rank == 0:
                tensors[f"{kind}/{name}"] = whole.detach().cpu().clone()
    return tensors


def write_masters(engine: Any, tensors: dict[str, torch.Tensor]) -> None:
    """Put back what `read_masters` returned, and the weights that follow from it; a collective."""
    _allocate_moments(engine)
    for name, parameter in trainable_parameters(engine.module):
        for kind in (MASTER, *MOMENTS):
            _write(engine, parameter, kind, tensors[f"{kind}/{name}"].to(engine.device))
        with gathered([parameter], write=True), torch.no_grad():
            parameter.copy_(tensors[f"{MASTER}/{name}"])


def set_step_count(engine: Any, step: int) -> None:
    """Set AdamW's own count of steps, which its bias correction depends on."""
    for state in engine.basic_optimizer.state.values():
        if "step" in state:
            state["step"].fill_(step)


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


def _allocate_moments(engine: Any) -> None:
    """Make the moments that DeepSpeed would make in its first step, which is yet to come."""
    optimizer = engine.basic_optimizer
    groups = [p for group in optimizer.param_groups for p in group["params"]]
    # ZeRO-3 hands the optimizer one sub-group at a time, and none between steps.
    for master in getattr(engine.optimizer, "fp32_partitioned_groups_flat", groups):
        if master not in optimizer.state:
            step = torch.zeros((), device=master.device)
            moments = {kind: torch.zeros_like(master) for kind in MOMENTS}
            optimizer.state[master] = {"step": step, **moments}
    link: Any = getattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state", None)
    if link is not None:
        link()


def _read(parameter: nn.Parameter, kind: str) -> torch.Tensor:
    if kind == MASTER:
        whole = safe_get_full_fp32_param(parameter)
    else:
        whole = safe_get_full_optimizer_state(parameter, kind)
    tensor: torch.Tensor = whole
    return tensor


def _write(engine: Any, parameter: nn.Parameter, kind: str, value: torch.Tensor) -> None:
    if engine.zero_optimization_partition_weights():
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
