"""Samples laid into sequences of one length, written as memory-mapped arrays.

    input_ids.npy     int32 [N, L]   token ids
    loss_mask.npy     uint8 [N, L]   1 where the loss of predicting this token counts
    position_ids.npy  int32 [N, L]   from 0 in each sample; attention never crosses a 0
    lengths.npy       int32 [N]      real tokens of each sequence, before the padding

A sample is never cut, and padding is a document of its own, so neither is seen by another sample.
Best-fit-decreasing over a window of shuffled samples keeps the padding small (a few per cent) and
the order random; the sequences of a window are shuffled again, because the algorithm sorts.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from latticeforge_trainer.data.mixing import Order
from latticeforge_trainer.data.rendering import TokenizedSource

WINDOW = 2048
"""Samples that are packed together."""


@dataclass(frozen=True)
class PackedCounts:
    """What a packed data set holds, over all epochs.

    Attributes:
        sequences: Sequences of the full length.
        tokens: Real tokens, without padding.
        target_tokens: Tokens that the loss is taken on.
    """

    sequences: int
    tokens: int
    target_tokens: int


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Bins for items, each put where it leaves the least room, longest first.

    Args:
        lengths: Of the items, each between 1 and `capacity`.
        capacity: Of a bin.

    Returns:
        The items' numbers per bin, ascending: items keep their order within a bin.
    """
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # ascending (room left, number of the bin)
    for item in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[item]
        at = bisect.bisect_left(room, (length, -1))
        if at == len(room):
            bins.append([item])
            left = (capacity - length, len(bins) - 1)
        else:
            space, number = room.pop(at)
            bins[number].append(item)
            left = (space - length, number)
        if left[0] > 0:
            bisect.insort(room, left)
    return [sorted(items) for items in bins]


def pack_epoch(order: Order, lengths: NDArray[np.int64], capacity: int, seed: int) -> list[Order]:
    """The sequences of one epoch, each as the samples it holds.

    Args:
        order: The epoch's samples, shuffled.
        lengths: Tokens of each sample of `order`.
        capacity: Tokens of a sequence.
        seed: Of the order of sequences within a window.

    Returns:
        One [n, 2] part of `order` per sequence.
    """
    sequences: list[Order] = []
    for start in range(0, len(order), WINDOW):
        window = order[start : start + WINDOW]
        bins = best_fit(lengths[start : start + WINDOW].tolist(), capacity)
        shuffled = np.random.default_rng([seed % 2**64, start]).permutation(len(bins))
        sequences += [window[bins[number]] for number in shuffled]
    return sequences


def write_packed(
    folder: Path,
    sequences: Sequence[Order],
    sources: Sequence[TokenizedSource],
    length: int,
    pad_token: int,
) -> PackedCounts:
    """Write sequences as the arrays described above.

    Args:
        folder: Where to; exists.
        sequences: Samples per sequence, as from `pack_epoch`.
        sources: What the samples' numbers refer to.
        length: Tokens of a sequence.
        pad_token: The id that fills up a sequence.
    """
    shape = (len(sequences), length)
    ids = open_memmap(folder / "input_ids.npy", "w+", np.int32, shape)
    mask = open_memmap(folder / "loss_mask.npy", "w+", np.uint8, shape)
    positions = open_memmap(folder / "position_ids.npy", "w+", np.int32, shape)
    lengths = open_memmap(folder / "lengths.npy", "w+", np.int32, shape[:1])
    counting = np.arange(length, dtype=np.int32)
    targets = 0
    for row, samples in enumerate(sequences):
        end = 0
        for source, number in samples.tolist():
            tokens, wanted = sources[source].sample(number)
            start, end = end, end + len(tokens)
            ids[row, start:end] = tokens
            mask[row, start:end] = wanted
            positions[row, start:end] = counting[: len(tokens)]
        ids[row, end:] = pad_token
        positions[row, end:] = counting[: length - end]
        lengths[row] = end
        targets += int(mask[row].sum())
    for array in (ids, mask, positions, lengths):
        array.flush()
    return PackedCounts(len(sequences), int(lengths.sum(dtype=np.int64)), targets)
