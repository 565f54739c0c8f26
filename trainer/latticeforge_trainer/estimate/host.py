"""Host memory of a pod, term by term.

Files that are read lie in the page cache, which the kernel takes back when it must: where a term is
that, its `why` says so.
"""

from __future__ import annotations

from latticeforge_trainer.contract import Offload
from latticeforge_trainer.estimate.base_model import BaseModel
from latticeforge_trainer.estimate.buckets import SNAPSHOT_PIECE, SUB_GROUP
from latticeforge_trainer.estimate.disk import state_bytes
from latticeforge_trainer.estimate.memory import Memory, gpu_memory, offloaded_layers
from latticeforge_trainer.estimate.terms import GIB, Term, present
from latticeforge_trainer.estimate.training import Run

PROCESS = 4 * GIB
"""Of a process: torch, CUDA's and NCCL's libraries, the data that it reads ahead. Assumed."""

READING = 256 * 2**20
"""Page-locked buffers between disk and GPU: 8 threads (`models.streaming`) with 32 MiB each."""

SHARD = 4 * GIB
"""What is collected before it is written: of a model, and of training state."""


def host_memory(run: Run, memory: Memory | None = None) -> tuple[Term, ...]:
    """What the pod of a train step needs, all its processes together.

    Args:
        run: What is trained, and how.
        memory: The run's, if it is known already: it says which inputs are offloaded.
    """
    processes = run.strategy.processes
    inputs = offloaded_layers(memory or gpu_memory(run)) * _page_locked(
        run.tokens * run.model.shape.hidden * run.width
    )
    return present(
        Term("processes", processes * PROCESS, f"{processes} x 4 GiB"),
        Term("reading weights", processes * READING, f"{processes} x 256 MiB, page-locked"),
        *_offloaded(run),
        Term("layers' inputs", processes * inputs, f"{processes} x {inputs:,} B, page-locked"),
        Term("checkpoint", _snapshot(run), "a piece of it; with more, training waits for less"),
        Term("result", SHARD if run.is_full else 0, "a file of it, before it is written"),
    )


def merge_host_memory(model: BaseModel) -> tuple[Term, ...]:
    """What the pod of a merge step needs."""
    size = 2 * model.parameters.total
    largest = _largest(model)
    return present(
        Term("process", PROCESS, "torch and what it loads"),
        Term("shard", min(SHARD, size), "a file of the result, before it is written"),
        Term("weight", 10 * largest, f"{largest:,} x 10 B: in 32 bits, twice, and in 16"),
        Term("model", size, "compared with the base, from the page cache: slow with less"),
    )


def _offloaded(run: Run) -> tuple[Term, ...]:
    """What ZeRO keeps here instead of on the GPUs; DeepSpeed page-locks all but the moments."""
    strategy, processes = run.strategy, run.strategy.processes
    if not run.offloads:
        return ()
    own = -(-run.trained // run.world)
    zero3 = strategy.zero_stage == 3
    masters = _page_locked_in(4 * SUB_GROUP, 4 * own) if zero3 else _page_locked(4 * own)
    weights = strategy.offload is Offload.ALL and zero3
    stored = run.width * -(-run.model.parameters.total // run.world)
    others = _page_locked(4 * own if zero3 else run.width * own)
    return present(
        Term("32-bit weights", processes * masters, f"{processes} x {own:,} x 4 B, page-locked"),
        Term("moments", processes * 8 * own, f"{processes} x {own:,} x 8 B"),
        Term("gradients", processes * (masters + others), "in 32 bits, and on their way"),
        Term(
            "16-bit weights",
            processes * _page_locked(stored) if weights else 0,
            f"{processes} x {stored:,} B, page-locked",
        ),
    )


def _page_locked(size: int) -> int:
    """What torch takes for page-locked memory: the next power of two."""
    return 1 << max(0, size - 1).bit_length() if size else 0


def _page_locked_in(piece: int, size: int) -> int:
    """What torch takes for page-locked memory in pieces, of which the last may be smaller."""
    whole, rest = divmod(size, piece)
    return whole * _page_locked(piece) + _page_locked(rest)


def _snapshot(run: Run) -> int:
    """Training state is copied here by files of at most `SHARD`, or of one whole tensor."""
    if run.strategy.zero_stage and run.is_full:  # every process copies its own part, in pieces
        own = -(-state_bytes(run.payload, run.trained) // run.world)
        return run.strategy.processes * _page_locked_in(SNAPSHOT_PIECE, min(SHARD, own))
    each = 12 if run.payload.optimizer_states == "fp32" else 6
    largest = 4 * _largest(run.model) if run.is_full else 0
    if run.trained_tables:
        largest = max(largest, 4 * run.model.shape.vocabulary * run.model.shape.hidden)
    gathered = each * run.trained if run.strategy.zero_stage else 0  # as DeepSpeed gives it
    return _page_locked_in(SNAPSHOT_PIECE, max(largest, min(SHARD, each * run.trained))) + gathered


def _largest(model: BaseModel) -> int:
    """Numbers of the largest tensor."""
    shape = model.shape
    experts = 2 * shape.experts * shape.expert_width
    return shape.hidden * max(shape.vocabulary, shape.intermediate, experts)
