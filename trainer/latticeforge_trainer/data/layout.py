"""How a stage's samples are laid out in packed sequences, epoch after epoch, step after step.

A step is usually of so many packed sequences. Where it is of so many samples instead, each step's
samples are packed by themselves, and steps have different numbers of sequences.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from latticeforge_trainer.contract import PreparePayload
from latticeforge_trainer.data.mixing import Order, mixed_epochs
from latticeforge_trainer.data.packed import EPOCH_ENDS, STEP_ENDS
from latticeforge_trainer.data.packing import best_fit, pack_epoch


@dataclass
class Layout:
    """Samples per sequence, and where epochs and steps end among the sequences.

    Attributes:
        sequences: Each as the samples that it holds, [n, 2].
        epoch_ends: Sequences up to the end of each epoch.
        step_ends: Sequences up to the end of each step; None: steps are of equal size.
    """

    sequences: list[Order] = field(default_factory=list)
    epoch_ends: list[int] = field(default_factory=list)
    step_ends: list[int] | None = None

    def steps(self, size: int) -> int:
        """Whole steps, which are of `size` sequences where they are of equal size."""
        if self.step_ends is not None:
            return len(self.step_ends)
        return len(self.sequences) // size

    def cut(self, steps: int, size: int) -> None:
        """Leave out what follows the first steps."""
        end = steps * size
        if self.step_ends is not None:
            del self.step_ends[steps:]
            end = self.step_ends[-1]
        del self.sequences[end:]
        self.epoch_ends = [min(end, epoch) for epoch in self.epoch_ends]

    def save_ends(self, folder: Path) -> None:
        """Write where epochs and steps end."""
        np.save(folder / EPOCH_ENDS, np.array(self.epoch_ends, np.int64))
        if self.step_ends is not None:
            np.save(folder / STEP_ENDS, np.array(self.step_ends, np.int64))


def lay_out(lengths: Sequence[NDArray[np.int64]], payload: PreparePayload) -> Layout:
    """Lay out what a stage trains on.

    Args:
        lengths: Tokens of each sample, per source.
        payload: How many epochs or steps, of what size, in which proportions.
    """
    layout = Layout(step_ends=None if payload.step_samples is None else [])
    size = payload.step_sequences or 1
    for number, (order, own) in enumerate(_epochs(lengths, payload)):
        if layout.step_ends is None:
            seed = payload.seed + number
            layout.sequences += pack_epoch(order, own, payload.sequence_length, seed)
        else:
            for step in _steps(order, own, payload):
                layout.sequences += step
                layout.step_ends.append(len(layout.sequences))
        layout.epoch_ends.append(len(layout.sequences))
        if payload.steps and layout.steps(size) >= payload.steps:
            layout.cut(payload.steps, size)
            break
    return layout


def lay_out_once(lengths: Sequence[NDArray[np.int64]], capacity: int) -> list[Order]:
    """Every sample once, in as few sequences as possible."""
    order = np.concatenate(
        [
            np.stack([np.full(len(own), source), np.arange(len(own))], axis=1)
            for source, own in enumerate(lengths)
        ]
    ).astype(np.int64)
    return pack_epoch(order, np.concatenate(lengths), capacity, seed=0)


def _epochs(
    lengths: Sequence[NDArray[np.int64]], payload: PreparePayload
) -> Iterator[tuple[Order, NDArray[np.int64]]]:
    """Each epoch's samples, and their lengths."""
    sizes = [len(own) for own in lengths]
    weights = sizes if payload.mixing == "concatenate" else [data.weight for data in payload.data]
    epochs = math.inf if payload.steps else payload.epochs
    for order in mixed_epochs(sizes, weights, epochs, payload.seed):
        yield order, np.array([lengths[source][sample] for source, sample in order.tolist()])


def _steps(
    order: Order, lengths: NDArray[np.int64], payload: PreparePayload
) -> Iterator[list[Order]]:
    """The sequences of each step of an epoch, whose last may have fewer samples."""
    size = payload.step_samples or 1
    for start in range(0, len(order), size):
        samples = order[start : start + size]
        bins = best_fit(lengths[start : start + size].tolist(), payload.sequence_length)
        yield [samples[numbers] for numbers in bins]
