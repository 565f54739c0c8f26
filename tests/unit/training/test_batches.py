"""How steps are cut: every sequence once, every process in step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from latticeforge_trainer.training.batches import (
    BatchPlan,
    count_targets,
    equal_steps,
    make_micro_batch,
)


@given(
    ends=st.one_of(
        st.builds(equal_steps, st.integers(1, 60), st.integers(1, 12)),
        st.sets(st.integers(1, 60), min_size=1, max_size=12).map(sorted),
    ),
    micro_batch=st.integers(1, 5),
    world=st.integers(1, 5),
)
def test_every_sequence_is_trained_once_in_its_step_whatever_the_cut(
    ends: list[int], micro_batch: int, world: int
) -> None:
    plans = [BatchPlan(ends, micro_batch, rank, world) for rank in range(world)]
    seen: list[int] = []
    for step in range(plans[0].steps):
        shares = [list(plan.micro_batches(step)) for plan in plans]
        assert len({len(share) for share in shares}) == 1
        assert 1 <= len(shares[0]) <= plans[0].accumulation
        trained = sorted(i for share in shares for micro in share for i in micro)
        assert trained == plans[0].step_indices(step)
        assert all(len(micro) <= micro_batch for share in shares for micro in share)
        seen += trained
    assert seen == list(range(ends[-1]))


class TwoRows:
    """Two packed sequences of two samples each; prompts of one token."""

    lengths = np.array([5, 5], np.int32)

    def __len__(self) -> int:
        return 2

    def batch(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        rows = list(indices)
        return {
            "input_ids": torch.tensor([[10, 11, 12, 20, 21], [30, 31, 40, 41, 42]])[rows],
            "loss_mask": torch.tensor([[0, 1, 1, 0, 1], [0, 1, 0, 1, 0]]).bool()[rows],
            "position_ids": torch.tensor([[0, 1, 2, 0, 1], [0, 1, 0, 1, 2]])[rows],
        }


def test_a_token_is_predicted_at_the_position_before_it() -> None:
    batch = make_micro_batch(TwoRows(), [0, 1])

    assert batch.targets.tolist() == [11, 12, 21, 31, 41]
    assert batch.sources.tolist() == [0, 1, 3, 5, 7]
    flat = batch.input_ids.flatten()
    assert flat[batch.sources].tolist() == [10, 11, 20, 30, 40]
    assert count_targets(TwoRows(), [0, 1]) == 5


def test_attention_is_told_where_samples_begin() -> None:
    batch = make_micro_batch(TwoRows(), [0, 1])

    assert batch.boundaries.cumulative.tolist() == [0, 3, 5, 7, 10]
    assert batch.boundaries.lengths == (3, 2, 2, 3)
    moved = batch.to(torch.device("meta"))
    tensors = (moved.input_ids, moved.position_ids, moved.sources, moved.targets)
    assert all(tensor.is_meta for tensor in (*tensors, moved.boundaries.cumulative))
    assert moved.boundaries.lengths == batch.boundaries.lengths


def test_a_process_with_nothing_to_do_computes_without_learning() -> None:
    batch = make_micro_batch(TwoRows(), [])

    assert batch.input_ids.shape == (1, 5)
    assert batch.targets.numel() == batch.sources.numel() == 0
