"""The loss on samples held out from training, after each epoch and at the end."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import distributed, nn

from latticeforge_trainer.data.packed import VALIDATION, PackedData
from latticeforge_trainer.training.batches import (
    BatchPlan,
    PackedSequences,
    count_targets,
    make_micro_batch,
)
from latticeforge_trainer.training.engine import Engine


@dataclass(frozen=True)
class Validation:
    """What is held out, and when its loss is measured.

    Attributes:
        data: The held-out samples, packed.
        plan: How processes share them: one step of all sequences.
        after: Steps done, from 1, after which the loss is measured.
        targets: Learned tokens among them.
    """

    data: PackedSequences
    plan: BatchPlan
    after: frozenset[int]
    targets: int

    @classmethod
    def of(cls, folder: Path, epoch_ends: Sequence[int], plan: BatchPlan) -> Validation | None:
        """What a prepare artifact holds out; None if that is nothing.

        Args:
            folder: The artifact's.
            epoch_ends: Sequences up to the end of each epoch.
            plan: Of training.
        """
        if not (folder / VALIDATION).is_dir():
            return None
        data = PackedData(folder / VALIDATION)
        steps = {min(bisect_left(plan.ends, end) + 1, plan.steps) for end in epoch_ends}
        shared = BatchPlan([len(data)], plan.micro_batch, plan.rank, plan.world)
        targets = count_targets(data, list(range(len(data))))
        return cls(data, shared, frozenset({*steps, plan.steps}), targets)

    @torch.no_grad()
    def measure(self, engine: Engine) -> torch.Tensor:
        """The mean loss over the held-out targets, a vector of one on the device; a collective."""
        total = torch.zeros(1, dtype=torch.double, device=engine.device)
        with _without_dropout(engine.loss):
            for indices in self.plan.micro_batches(0):
                total += engine.loss(make_micro_batch(self.data, indices).to(engine.device))
        if self.plan.world > 1:
            distributed.all_reduce(total)
        return total / self.targets


@contextmanager
def _without_dropout(module: nn.Module) -> Iterator[None]:
    # Not the whole in evaluation mode: bitsandbytes would repack 4-bit weights for a CPU kernel
    # without backward.
    parts = [part for part in module.modules() if isinstance(part, nn.Dropout) and part.training]
    for part in parts:
        part.eval()
    yield
    for part in parts:
        part.train()
