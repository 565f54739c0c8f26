"""Reads and writes one process's part of a full fine-tune's state under ZeRO 1 to 3, as it lies.

ZeRO keeps master weights and the optimizer's states as flat partitions: one of each for every group
of parameters, under ZeRO-3 for every sub-group. They fit as many processes, under the same stage
and precision, as they were cut for, and no others.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from latticeforge_trainer.training.engine import MASTER
from latticeforge_trainer.training.optimizers import STEP
from latticeforge_trainer.training.snapshots import SHARD_BYTES

Pieces = list[torch.Tensor]


def read_partitions(engine: Any) -> dict[str, torch.Tensor]:
    """Master weights and optimizer states, sharing their memory.

    Args:
        engine: DeepSpeed's, after a step.

    Returns:
        Pieces of at most `SHARD_BYTES`, as `<kind>/<group>/<piece>`.
    """
    tensors = {}
    with _masters(engine) as masters:
        states = engine.basic_optimizer.state_dict()["state"]
    for group, master in enumerate(masters):
        for kind, flat in {MASTER: master.detach(), **states[group]}.items():
            if kind == STEP:  # the loop's to know
                continue
            for number, piece in enumerate(torch.split(flat, SHARD_BYTES // flat.itemsize)):
                tensors[f"{kind}/{group}/{number:05d}"] = piece
    return tensors


@torch.no_grad()
def write_partitions(engine: Any, tensors: dict[str, torch.Tensor], step: int) -> None:
    """Put back what `read_partitions` returned after a step, and the weights; a collective."""
    groups = _by_group(tensors)
    states: dict[int, dict[str, torch.Tensor]] = {}
    with _masters(engine) as masters:
        for group, master in enumerate(masters):
            _fill(master, groups[group].pop(MASTER))
            joined = {kind: _join(pieces, master.device) for kind, pieces in groups[group].items()}
            states[group] = {STEP: torch.tensor(step), **joined}
        document = engine.basic_optimizer.state_dict()
        engine.basic_optimizer.load_state_dict({**document, "state": states})
    _follow_masters(engine)


@contextmanager
def _masters(engine: Any) -> Iterator[list[torch.Tensor]]:
    """This process's master weights, in the order in which the optimizer numbers them."""
    zero = engine.optimizer
    partitions_weights = engine.zero_optimization_partition_weights()
    if partitions_weights:
        # ZeRO-3 hands the optimizer one sub-group at a time, and none between steps.
        zero._set_fp32_optimizer_param_groups()  # noqa: SLF001  (as its own `state_dict` does)
    try:
        yield [p for group in engine.basic_optimizer.param_groups for p in group["params"]]
    finally:
        if partitions_weights:
            zero._clear_fp32_optimizer_param_groups()  # noqa: SLF001  (likewise)


def _follow_masters(engine: Any) -> None:
    """Make the weights that are computed with those of the masters; a collective."""
    zero = engine.optimizer
    if not engine.zero_optimization_partition_weights():
        zero.update_lp_params()
        return
    zero.checkpoint_event_prologue()
    for group in range(len(zero.fp32_partitioned_groups_flat)):
        zero._reassign_or_swap_out_partitioned_parameters(group)  # noqa: SLF001  (as its own `step` does)
    zero.checkpoint_event_epilogue()


def _by_group(tensors: dict[str, torch.Tensor]) -> dict[int, dict[str, Pieces]]:
    groups: dict[int, dict[str, Pieces]] = defaultdict(lambda: defaultdict(list))
    for key in sorted(tensors):  # pieces in their order
        kind, group, _ = key.split("/")
        groups[int(group)][kind].append(tensors[key])
    return groups


def _join(pieces: Pieces, device: torch.device) -> torch.Tensor:
    shape = (sum(map(len, pieces)), *pieces[0].shape[1:])
    whole = pieces[0].new_empty(shape, device=device)
    _fill(whole, pieces)
    return whole


def _fill(whole: torch.Tensor, pieces: Pieces) -> None:
    for part, piece in zip(torch.split(whole, [len(p) for p in pieces]), pieces, strict=True):
        part.copy_(piece)
