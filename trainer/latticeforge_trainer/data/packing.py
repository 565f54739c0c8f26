"""Samples laid into sequences of one length, written as memory-mapped arrays.

    input_ids.npy     int32 [N, L]   token ids
    loss_mask.npy     uint8 [N, L]   1 where the loss of predicting this token counts
    position_ids.npy  int32 [N, L]   from 0 in each sample; attention never crosses a 0
    lengths.npy       int32 [N]      real tokens of each sequence, before the padding

A sample is never cut, and padding is a document of its own, so neither is seen by another sample.
Best-fit-decreasing over a window of shuffled samples keeps the padding under one per cent and the
order random; the sequences of a window are shuffled again, because the algorithm sorts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import DTypeLike, NDArray

from latticeforge_trainer.data.mixing import Order
from latticeforge_trainer.data.tokenized import TokenizedSource

WINDOW = 4096
"""Sequences whose samples are packed together. Padding falls with the square root of it: to 0.02 %
of log-normal lengths, and to 0.6 % of uniform ones up to a whole sequence, the hardest to pack."""


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
        The items' numbers per bin, ascending: items keep their order within a bin. A million items
        take a second or two.
    """
    bins: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(capacity + 1)]  # bins by the room left
    rooms = 0  # bit r is set where with_room[r] has a bin
    for item in np.argsort(-np.asarray(lengths, np.int64), kind="stable").tolist():
        length = lengths[item]
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1  # the lowest bit
            number = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
        else:
            room, number = capacity, len(bins)
            bins.append([])
        bins[number].append(item)
        left = room - length
        with_room[left].append(number)
        rooms |= 1 << left
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
    windows = max(1, round(int(lengths.sum()) / (capacity * WINDOW)))
    # Equal parts: a short last one would be packed badly.
    for number, samples in enumerate(np.array_split(np.arange(len(order)), windows)):
        bins = best_fit(lengths[samples].tolist(), capacity)
        shuffled = np.random.default_rng([seed % 2**64, number]).permutation(len(bins))
        sequences += [order[samples[bins[place]]] for place in shuffled]
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
    ids = _new_array(folder / "input_ids.npy", np.int32, shape)
    mask = _new_array(folder / "loss_mask.npy", np.uint8, shape)
    positions = _new_array(folder / "position_ids.npy", np.int32, shape)
    lengths = _new_array(folder / "lengths.npy", np.int32, shape[:1])
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


def _new_array(path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> np.memmap[Any, Any]:
    # Typed by some versions of numpy only.
    create: Any = open_memmap
    array: np.memmap[Any, Any] = create(path, "w+", dtype, shape)
    return array
