"""Learning rates by step."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticeforge_trainer.training.schedule import learning_rate, warmup_steps


def rates(total: int, **options: Any) -> list[float]:
    ratio, steps = options.pop("warmup_ratio", 0.0), options.pop("warmup_steps", None)
    warmup = warmup_steps(total, ratio, steps)
    fields = {"peak": 1.0, "shape": "cosine", "warmup": warmup, **options}
    return [learning_rate(step, total, **fields) for step in range(total)]


def test_warm_up_rises_to_the_peak() -> None:
    assert rates(8, shape="constant", warmup_ratio=0.5) == [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]


def test_linear_falls_evenly() -> None:
    assert rates(4, shape="linear") == [1, 0.75, 0.5, 0.25]


def test_cosine_is_half_way_in_the_middle() -> None:
    assert rates(4)[2] == pytest.approx(0.5)


@given(
    total=st.integers(1, 500),
    warmup_ratio=st.floats(0, 0.99),
    shape=st.sampled_from(["cosine", "linear", "constant"]),
)
def test_no_step_is_lost_and_none_exceeds_the_peak(
    total: int, warmup_ratio: float, shape: str
) -> None:
    made = rates(total, shape=shape, warmup_ratio=warmup_ratio)

    assert all(0 < rate <= 1 for rate in made)
    assert max(made) == 1


def test_steps_of_warm_up_go_before_their_share() -> None:
    assert rates(4, shape="constant", warmup_ratio=0.9, warmup_steps=2) == [0.5, 1, 1, 1]
    assert rates(4, shape="constant", warmup_ratio=0.9, warmup_steps=0) == [1, 1, 1, 1]
    assert rates(2, shape="constant", warmup_steps=4) == [0.25, 0.5]


def test_a_floor_is_where_the_shape_ends() -> None:
    assert rates(4, shape="linear", floor=0.2) == pytest.approx([1, 0.8, 0.6, 0.4])
    assert rates(4, floor=0.2)[2] == pytest.approx(0.6)
    assert rates(4, shape="cosine", floor=1.0) == [1, 1, 1, 1]
    assert rates(4, shape="linear", warmup_steps=2, floor=0.5) == [0.5, 1, 1, 0.75]
