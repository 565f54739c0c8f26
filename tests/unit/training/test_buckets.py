"""How things are cut into parts of bounded size."""

from __future__ import annotations

import pytest

from latticeforge_trainer.training.buckets import in_buckets


@pytest.mark.parametrize(
    ("sizes", "buckets"),
    [
        ([], []),
        ([4, 6, 1], [[4, 6], [1]]),
        ([4, 7, 3], [[4], [7, 3]]),
        ([11, 1, 12], [[11], [1], [12]]),
        ([0, 10, 0], [[0, 10, 0]]),
    ],
)
def test_parts_are_as_full_as_their_order_allows(
    sizes: list[int], buckets: list[list[int]]
) -> None:
    assert in_buckets(sizes, int, 10) == buckets
