"""When held-out loss is measured, and on what."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.fixtures.training import write_sequences

from latticeforge_trainer.data.packed import VALIDATION
from latticeforge_trainer.training.batches import BatchPlan, equal_steps
from latticeforge_trainer.training.validation import Validation


def held_out(folder: Path) -> Path:
    (folder / VALIDATION).mkdir()
    write_sequences(folder / VALIDATION, 5, seed=0, alphabet=8)
    return folder


@pytest.mark.parametrize(
    ("ends", "epoch_ends", "after"),
    [
        (equal_steps(24, 4), [12, 24], {3, 6}),
        (equal_steps(24, 4), [11, 13, 24], {3, 4, 6}),
        (equal_steps(3, 4), [1, 2, 3], {1}),
        ([1, 9, 10], [9, 10], {2, 3}),
        (equal_steps(24, 4), [], {6}),
    ],
)
def test_it_is_measured_when_an_epochs_last_sequence_was_trained_on(
    ends: list[int], epoch_ends: list[int], after: set[int], tmp_path: Path
) -> None:
    validation = Validation.of(held_out(tmp_path), epoch_ends, BatchPlan(ends, micro_batch=2))
    assert validation is not None
    assert validation.after == after


def test_processes_share_all_of_it(tmp_path: Path) -> None:
    folder = held_out(tmp_path)
    seen = []
    for rank in range(2):
        plan = BatchPlan([4], micro_batch=2, rank=rank, world=2)
        validation = Validation.of(folder, [4], plan)
        assert validation is not None
        shares = list(validation.plan.micro_batches(0))
        assert len(shares) == 2
        seen += [number for share in shares for number in share]
    assert sorted(seen) == [0, 1, 2, 3, 4]


def test_nothing_held_out_is_nothing_to_measure(tmp_path: Path) -> None:
    assert Validation.of(tmp_path, [4], BatchPlan([4], micro_batch=1)) is None
