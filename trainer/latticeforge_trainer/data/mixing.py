"""The order of samples: sources in proportion to their weights, epoch after epoch.

One epoch is one pass over the source with the greatest weight (the first among equals). The others
contribute in proportion to their weights: a source that is too small repeats, a larger one gives a
different part each epoch. Every source is an endless deck of cards: shuffled, dealt out to the last
card, shuffled again. A fractional number of epochs cuts the last one, in the same proportions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import count

import numpy as np
from numpy.typing import NDArray

Order = NDArray[np.int64]
"""Samples as [n, 2]: number of the source, number of the sample in it."""


def mixed_epochs(
    sizes: Sequence[int], weights: Sequence[float], epochs: float, seed: int
) -> Iterator[Order]:
    """The samples of each epoch in the order they are trained on.

    Args:
        sizes: Samples per source, each at least 1.
        weights: One positive weight per source; proportions are of samples.
        epochs: How many; the last may be a part of one, and there may be no last.
        seed: Of all shuffles; the same seed gives the same order.

    Yields:
        One order per epoch begun. The whole has at least one sample.
    """
    main = int(np.argmax(weights))
    per_epoch = [sizes[main] * weight / weights[main] for weight in weights]
    decks = [_Deck(size, (seed, source)) for source, size in enumerate(sizes)]
    for epoch in count() if math.isinf(epochs) else range(math.ceil(epochs)):
        end = min(epoch + 1.0, epochs)
        parts = []
        for source, share in enumerate(per_epoch):
            # Rounded as a running total: a share below one still has its turn now and then.
            number = round(share * end) - round(share * epoch)
            if source == main:
                number = max(1, number)
            dealt = decks[source].deal(number)
            parts.append(np.stack([np.full(number, source, dtype=np.int64), dealt], axis=1))
        order = np.concatenate(parts)
        yield _generator(seed, len(sizes), epoch).permutation(order)


class _Deck:
    """The samples of one source, dealt in a new random order on each pass."""

    def __init__(self, size: int, seed: tuple[int, int]) -> None:
        self._size, self._seed, self._passes = size, seed, 0
        self._left = np.empty(0, dtype=np.int64)

    def deal(self, count: int) -> NDArray[np.int64]:
        dealt = [self._left[:count]]
        missing = count - len(dealt[0])
        self._left = self._left[count:]
        while missing > 0:
            cards = _generator(*self._seed, self._passes).permutation(self._size)
            self._passes += 1
            dealt.append(cards[:missing])
            self._left = cards[missing:]
            missing -= len(dealt[-1])
        return np.concatenate(dealt)


def _generator(*seed: int) -> np.random.Generator:
    return np.random.default_rng([number % 2**64 for number in seed])
