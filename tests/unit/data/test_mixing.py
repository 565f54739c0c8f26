"""The order of samples: proportions, coverage, determinism."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from latticeforge_trainer.data.mixing import Order, mixed_epochs

sources = st.lists(
    st.tuples(st.integers(1, 30), st.floats(0.05, 8, allow_subnormal=False)),
    min_size=1,
    max_size=4,
)
epoch_counts = st.floats(0.1, 4)


def orders(mixture: list[tuple[int, float]], epochs: float, seed: int = 0) -> list[Order]:
    sizes, weights = zip(*mixture, strict=True)
    return list(mixed_epochs(sizes, weights, epochs, seed))


def main_of(mixture: list[tuple[int, float]]) -> int:
    return int(np.argmax([weight for _, weight in mixture]))


@given(sources, epoch_counts)
def test_an_epoch_is_one_pass_over_the_heaviest_source(
    mixture: list[tuple[int, float]], epochs: float
) -> None:
    main = main_of(mixture)
    result = orders(mixture, epochs)
    assert len(result) == math.ceil(epochs)
    for number, order in enumerate(result):
        own = order[order[:, 0] == main, 1].tolist()
        assert len(set(own)) == len(own)
        if number + 1 <= epochs:
            assert sorted(own) == list(range(mixture[main][0]))


@given(sources, epoch_counts)
def test_the_others_keep_their_proportion(mixture: list[tuple[int, float]], epochs: float) -> None:
    main = main_of(mixture)
    whole = np.concatenate(orders(mixture, epochs))
    for number, (_, weight) in enumerate(mixture):
        expected = mixture[main][0] * weight / mixture[main][1] * epochs
        assert abs(int((whole[:, 0] == number).sum()) - expected) <= 1


@given(sources, epoch_counts)
def test_no_sample_is_repeated_before_all_others_were_used(
    mixture: list[tuple[int, float]], epochs: float
) -> None:
    whole = np.concatenate(orders(mixture, epochs))
    for number, (size, _) in enumerate(mixture):
        uses = Counter(whole[whole[:, 0] == number, 1].tolist())
        counts = [uses[sample] for sample in range(size)]
        assert max(counts) - min(counts) <= 1


@given(sources, epoch_counts, st.integers(-(2**63), 2**63))
def test_the_seed_decides_everything(
    mixture: list[tuple[int, float]], epochs: float, seed: int
) -> None:
    first, second = orders(mixture, epochs, seed), orders(mixture, epochs, seed)
    assert all((a == b).all() for a, b in zip(first, second, strict=True))


def test_another_seed_and_another_epoch_are_other_orders() -> None:
    first, second = orders([(100, 1.0)], 2, seed=1)
    assert (first != second).any()
    assert (first != orders([(100, 1.0)], 1, seed=2)[0]).any()


def test_sources_are_mixed_within_every_epoch() -> None:
    for order in orders([(200, 1.0), (200, 1.0)], 2):
        halves = order[:200, 0].mean(), order[200:, 0].mean()
        assert all(0.3 < half < 0.7 for half in halves)


def test_more_epochs_begin_like_fewer() -> None:
    mixture = [(50, 4.0), (7, 1.0), (400, 2.0)]
    assert (orders(mixture, 3)[1] == orders(mixture, 2)[1]).all()


def test_equal_weights_go_by_the_first() -> None:
    (order,) = orders([(10, 1.0), (3, 1.0)], 1)
    assert Counter(order[:, 0].tolist()) == {0: 10, 1: 10}


def test_a_tiny_part_of_an_epoch_is_one_sample() -> None:
    assert [order.shape for order in orders([(10, 1.0)], 0.01)] == [(1, 2)]
