"""Host memory of a pod, term by term."""

from __future__ import annotations

from collections.abc import Sequence

from latticeforge_trainer.contract import Offload, Recompute
from latticeforge_trainer.estimate.base_model import BaseModel
from latticeforge_trainer.estimate.terms import GIB, Term, present
from latticeforge_trainer.estimate.training import Run

PROCESS = 4 * GIB
"""Of a training process: torch, CUDA's and NCCL's libraries, the data that it reads ahead."""

STREAMED = 2 * GIB
"""Weights between disk and GPU, and the page-locked buffers that they pass."""


def host_memory(run: Run, modes: Sequence[Recompute] = ()) -> tuple[Term, ...]:
    """What the pod of a train step needs, all its processes together.

    Args:
        run: What is trained, and how.
        modes: What each layer computes again, as `gpu_memory` says: inputs of layers that are
            offloaded lie in host memory.
    """
    processes, shape = run.strategy.processes, run.model.shape
    own = run.trained // run.world
    offloads = run.strategy.offload is not Offload.NONE and run.strategy.zero_stage > 0
    weights = run.strategy.offload is Offload.ALL and run.strategy.zero_stage == 3
    partition = run.model.parameters.total // run.world
    inputs = run.tokens * shape.hidden * run.width * list(modes).count(Recompute.OFFLOAD)
    return present(
        Term("processes", processes * PROCESS, f"{processes} x 4 GiB"),
        Term("weights being read", processes * STREAMED, f"{processes} x 2 GiB"),
        Term(
            "optimizer states",
            processes * 16 * own if offloads else 0,
            f"{processes} x {own:,} x 16 B: weights, moments and gradients in 32 bits",
        ),
        Term(
            "16-bit weights",
            processes * run.width * partition if weights else 0,
            f"{processes} x {partition:,} x {run.width} B, page-locked",
        ),
        Term("layers' inputs", processes * inputs, f"{processes} x {inputs:,} B, page-locked"),
        Term("checkpoint", _snapshot(run), "a copy of the training state, page-locked"),
    )


def merge_host_memory(model: BaseModel) -> tuple[Term, ...]:
    """What the pod of a merge step needs."""
    return (
        Term("process", PROCESS, "torch and what it loads"),
        Term("model", 2 * model.parameters.total, "one in 16 bits while the two are compared"),
    )


def _snapshot(run: Run) -> int:
    if run.strategy.zero_stage and run.is_full:
        return 0  # DeepSpeed writes its own files
    return 12 * run.trained
