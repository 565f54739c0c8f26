"""Which sequences each process trains on at each step, as pure functions of the step's number.

Nothing here is drawn or remembered: a resumed run, a run with half the micro-batch and a run on
twice the processes read the same sequences in the same steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from latticeforge_trainer.models.documents import Boundaries


class PackedSequences(Protocol):
    """Packed sequences of one length, as `prepare` leaves them."""

    lengths: NDArray[np.int32]
    """Real tokens of each sequence, without padding."""

    def __len__(self) -> int:
        """Sequences over all epochs."""
        ...

    def batch(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """Rows of `input_ids`, `position_ids` (int64) and `loss_mask` (bool), each [rows, length].

        `position_ids` restart at 0 with each packed sample; `loss_mask` marks the tokens that are
        learned, and never the first of a sample.
        """
        ...


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass of one process.

    Its rows keep their padding, as a document of its own: at most a hundredth of a well packed row,
    while a shape that changed with each batch would fragment the GPU's memory and have its kernels
    chosen, and compiled, again.
    """

    input_ids: torch.Tensor  # [rows, length]
    position_ids: torch.Tensor  # [rows, length]
    boundaries: Boundaries
    """Of the documents in the flattened rows."""
    sources: torch.Tensor  # [targets] flat positions whose next token is learned
    targets: torch.Tensor  # [targets] those tokens

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> MicroBatch:
        """The same with each tensor changed, for instance pinned."""
        return MicroBatch(
            input_ids=change(self.input_ids),
            position_ids=change(self.position_ids),
            boundaries=self.boundaries.map(change),
            sources=change(self.sources),
            targets=change(self.targets),
        )

    def to(self, device: torch.device) -> MicroBatch:
        """The same on a device."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))


def equal_steps(sequences: int, size: int) -> list[int]:
    """Where steps of `size` sequences end; the last may be short."""
    return [min(start + size, sequences) for start in range(0, sequences, size)]


@dataclass(frozen=True)
class BatchPlan:
    """How steps are cut into micro-batches."""

    ends: Sequence[int]
    """Sequences up to the end of each step."""
    micro_batch: int
    """Sequences per process and forward pass."""
    rank: int = 0
    world: int = 1

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return len(self.ends)

    @cached_property
    def accumulation(self) -> int:
        """Micro-batches per process in the largest step."""
        return max(self._micro_steps(end - start) for start, end in pairwise((0, *self.ends)))

    def step_indices(self, step: int) -> list[int]:
        """The sequences of one step, over all processes."""
        return list(range(self.ends[step - 1] if step else 0, self.ends[step]))

    def micro_batches(self, step: int) -> Iterator[list[int]]:
        """This process's sequences of one step, one list per forward pass.

        Every process gets the same number of lists, or collectives would wait for ever; those of
        a process with too few sequences are empty.
        """
        indices = self.step_indices(step)
        mine = indices[self.rank :: self.world]
        for micro_step in range(self._micro_steps(len(indices))):
            yield mine[micro_step * self.micro_batch : (micro_step + 1) * self.micro_batch]

    def _micro_steps(self, sequences: int) -> int:
        return math.ceil(math.ceil(sequences / self.world) / self.micro_batch)


def make_micro_batch(data: PackedSequences, indices: list[int]) -> MicroBatch:
    """The tensors of one forward pass.

    An empty list stands for a process that has nothing to do: it computes on the first sequence,
    learning nothing, so that its collectives match those of the others.
    """
    rows = data.batch(indices or [0])
    input_ids = rows["input_ids"]
    learned = rows["loss_mask"]
    if not indices:
        learned = torch.zeros_like(learned)
    # A token is predicted at the position before it.
    positions = learned.flatten().nonzero().squeeze(1)
    return MicroBatch(
        input_ids=input_ids,
        position_ids=rows["position_ids"],
        boundaries=Boundaries.of(rows["position_ids"]),
        sources=positions - 1,
        targets=input_ids.flatten()[positions],
    )


def count_targets(data: PackedSequences, indices: list[int]) -> int:
    """Learned tokens in some sequences: the denominator of a step's mean loss."""
    return int(data.batch(indices)["loss_mask"].sum())
