"""Which strategies the trainer can run for a stage, on so many processes: the space of the search.

A process is a GPU. The global batch is kept exactly: micro-batches are divisors of the sequences
that one process has in a step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

from latticeforge_trainer.contract import Method, Offload, Recompute, TrainPayload

Sharding = tuple[Literal[0, 1, 2, 3], Offload]
"""ZeRO stage, and what is held in host memory."""

_PLAIN: Sharding = (0, Offload.NONE)

SHARDINGS: dict[Method, tuple[Sharding, ...]] = {
    Method.FULL: (
        _PLAIN,
        (1, Offload.NONE),
        (2, Offload.NONE),
        (3, Offload.NONE),
        (2, Offload.OPTIMIZER),
        (3, Offload.OPTIMIZER),
        (3, Offload.ALL),
    ),
    # What an adapter trains is too small to be worth sharding or moving: only its base is large.
    Method.LORA: (_PLAIN, (3, Offload.NONE), (3, Offload.ALL)),
    # 4-bit weights cannot be partitioned; an adapter of high rank can.
    Method.QLORA: (_PLAIN, (2, Offload.NONE)),
}
"""By method, from the least machinery to the most."""

NAMED = (Recompute.NOTHING, Recompute.ELEMENTWISE, Recompute.LAYERS, Recompute.OFFLOAD)
"""Modes that every layer takes, from the most memory to the least."""


def shardings(payload: TrainPayload, processes: int) -> Iterator[Sharding]:
    """Those that the trainer runs, from the least machinery to the most.

    Args:
        payload: What is trained.
        processes: Over all nodes.
    """
    for stage, offload in SHARDINGS[payload.method]:
        if payload.lora and payload.lora.base_dtype and stage:
            continue  # DeepSpeed would cast an FP8 base
        if payload.optimizer_states == "int8" and offload is not Offload.NONE:
            continue  # its kernels are CUDA's
        if processes == 1 and stage and offload is Offload.NONE:
            continue  # there is nobody to share with
        yield stage, offload


def micro_batches(payload: TrainPayload, processes: int) -> list[int]:
    """Sequences of one forward pass, ascending; times accumulation they are exactly the batch."""
    mine = math.ceil(payload.sequences_per_step / processes)
    small = [m for m in range(1, math.isqrt(mine) + 1) if mine % m == 0]
    return sorted({*small, *(mine // m for m in small)})
