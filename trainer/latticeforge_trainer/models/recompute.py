"""What a decoder layer computes again in backward, and what its input waits in meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from latticeforge_trainer.contract import Recompute

Run = Callable[[torch.Tensor], torch.Tensor]


def run_layer(run: Run, x: torch.Tensor, mode: Recompute, *, random: bool) -> torch.Tensor:
    """Run a decoder layer and keep for backward what `mode` says.

    Args:
        run: The layer; what it closes over is kept in any case.
        x: Its input [rows, length, hidden].
        mode: Not AUTO.
        random: Whether the layer draws random numbers (dropout), which must be drawn again.
    """
    if mode in {Recompute.NOTHING, Recompute.ELEMENTWISE}:
        return run(x)
    if mode is Recompute.LAYERS:
        return _again(run, x, random)
    with kept_on_host():
        return _again(run, x, random)


def _again(run: Run, x: torch.Tensor, random: bool) -> torch.Tensor:
    y: torch.Tensor = checkpoint(run, x, use_reentrant=False, preserve_rng_state=random)
    return y


@dataclass
class _OnHost:
    """A tensor in pinned memory, and where it came from."""

    copy: torch.Tensor
    device: torch.device


@contextmanager
def kept_on_host() -> Iterator[None]:
    """In the block, tensors kept for backward go to pinned host memory, on a stream of its own."""
    with saved_tensors_hooks(_to_host, _to_device):
        yield


def _to_host(tensor: torch.Tensor) -> torch.Tensor | _OnHost:
    if not tensor.is_cuda or not tensor.is_floating_point():
        return tensor
    side = _side_stream(tensor.device)
    side.wait_stream(torch.cuda.current_stream(tensor.device))
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    with torch.cuda.stream(side):
        copy.copy_(tensor, non_blocking=True)
    tensor.record_stream(side)  # its memory is not given to others before it is copied
    return _OnHost(copy, tensor.device)


def _to_device(kept: torch.Tensor | _OnHost) -> torch.Tensor:
    if isinstance(kept, torch.Tensor):
        return kept
    torch.cuda.current_stream(kept.device).wait_stream(_side_stream(kept.device))
    return kept.copy.to(kept.device, non_blocking=True)


_streams: dict[torch.device, torch.cuda.Stream] = {}


def _side_stream(device: torch.device) -> torch.cuda.Stream:
    if device not in _streams:
        make: Any = torch.cuda.Stream  # untyped in torch
        _streams[device] = make(device)
    return _streams[device]
