"""Batches of coming steps: in order, on time, and no thread left behind."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import closing

import numpy as np
import pytest
import torch

from latticeforge_trainer.training.batches import BatchPlan, equal_steps
from latticeforge_trainer.training.prefetch import AHEAD, StepMaker, prefetched


class Rows:
    """Sequence `i` holds `i` in every place; its loss is taken on `i` tokens."""

    lengths = np.arange(10, dtype=np.int32)

    def __init__(self, broken: int | None = None) -> None:
        self.broken, self.read = broken, threading.Semaphore(0)
        self.asked: list[int] = []

    def __len__(self) -> int:
        return 10

    def batch(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        self.asked += indices
        self.read.release()
        if self.broken in indices:
            raise OSError("the disk is gone")
        ids = torch.tensor(indices)[:, None].expand(-1, 12)
        positions = torch.arange(12).expand_as(ids)
        return {"input_ids": ids, "position_ids": positions, "loss_mask": positions.flip(1) < ids}


def maker(data: Rows) -> StepMaker:
    plan = BatchPlan(equal_steps(10, 3), micro_batch=2)
    return StepMaker(data, plan, torch.device("cpu"), lambda _data, indices: 100 * len(indices))


def test_steps_come_in_order_with_what_their_loss_is_divided_by() -> None:
    with closing(prefetched(maker(Rows()), range(1, 4))) as steps:
        made = list(steps)

    assert [batches.step for batches in made] == [1, 2, 3]
    assert [batches.denominator for batches in made] == [3 + 4 + 5, 6 + 7 + 8, 9]
    assert [batches.tokens for batches in made] == [3 + 4 + 5, 6 + 7 + 8, 9]
    firsts = [[b.input_ids[:, 0].tolist() for b in batches.micro_batches] for batches in made]
    assert firsts == [[[3, 4], [5]], [[6, 7], [8]], [[9]]]


def test_coming_steps_are_read_while_one_computes() -> None:
    data = Rows()
    with closing(prefetched(maker(data), range(4))) as steps:
        next(steps)
        while max(data.asked) < 3 * AHEAD:  # the last of the steps ahead, and nobody asked for it
            assert data.read.acquire(timeout=60)


def test_an_error_is_raised_when_its_step_is_due() -> None:
    with closing(prefetched(maker(Rows(broken=7)), range(4))) as steps:
        assert [next(steps).step, next(steps).step] == [0, 1]

        with pytest.raises(OSError, match="the disk is gone"):
            next(steps)


def test_the_thread_ends_with_the_loop() -> None:
    before = threading.active_count()
    steps = prefetched(maker(Rows()), range(4))
    next(steps)
    assert threading.active_count() == before + 1

    steps.close()

    assert threading.active_count() == before


def test_a_step_without_a_target_divides_by_one() -> None:
    with closing(prefetched(maker(Rows()), range(1))) as steps:
        assert next(steps).denominator == 3  # sequences 0, 1 and 2
    plan = BatchPlan([1], micro_batch=1)
    assert StepMaker(Rows(), plan, torch.device("cpu"), lambda *_: None)(0).denominator == 1
