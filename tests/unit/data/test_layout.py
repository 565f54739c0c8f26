"""Steps of sequences and of samples: every sample once an epoch, every step as large as asked."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from latticeforge_trainer.contract import DataSource, ModelSource, PreparePayload
from latticeforge_trainer.data.layout import Layout, lay_out, lay_out_once
from latticeforge_trainer.data.packed import EPOCH_ENDS, STEP_ENDS

CAPACITY = 32
sizes = st.lists(st.integers(1, CAPACITY), min_size=1, max_size=40)
sources = st.lists(sizes, min_size=1, max_size=3)


def payload(count: int = 1, **fields: Any) -> PreparePayload:
    return PreparePayload(
        base=ModelSource(model="./base"),
        data=[DataSource(source=f"./{n}.jsonl") for n in range(count)],
        sequence_length=CAPACITY,
        **{"epochs": 1, **fields},
    )


def arrays(lengths: list[list[int]]) -> list[NDArray[np.int64]]:
    return [np.array(own, np.int64) for own in lengths]


def members(sequences: list[Any]) -> list[tuple[int, ...]]:
    return [tuple(row) for sequence in sequences for row in sequence.tolist()]


def steps(layout: Layout) -> list[list[tuple[int, ...]]]:
    """The samples of each step, where steps are of samples."""
    ends = layout.step_ends or []
    return [members(layout.sequences[start:end]) for start, end in pairwise([0, *ends])]


@given(sizes, st.integers(1, 9), st.integers(1, 3))
def test_a_step_of_samples_has_exactly_so_many(own: list[int], size: int, epochs: int) -> None:
    layout = lay_out(arrays([own]), payload(step_samples=size, epochs=epochs))
    made = steps(layout)
    whole, rest = divmod(len(own), size)
    assert [len(step) for step in made] == ([size] * whole + [rest] * bool(rest)) * epochs
    per_epoch = whole + bool(rest)
    for epoch in range(epochs):
        seen = [s for step in made[epoch * per_epoch :][:per_epoch] for s in step]
        assert sorted(seen) == [(0, number) for number in range(len(own))]
    for sequence in layout.sequences:
        assert sum(own[number] for _, number in sequence.tolist()) <= CAPACITY


@given(sources, st.integers(1, 5), st.integers(1, 30))
def test_there_are_as_many_steps_of_sequences_as_asked_for(
    lengths: list[list[int]], size: int, count: int
) -> None:
    made = payload(len(lengths), steps=count, step_sequences=size)
    layout = lay_out(arrays(lengths), made)
    assert len(layout.sequences) == count * size
    assert layout.epoch_ends[-1] == count * size
    assert layout.step_ends is None


@given(sources, st.integers(1, 5), st.integers(1, 30))
def test_there_are_as_many_steps_of_samples_as_asked_for(
    lengths: list[list[int]], size: int, count: int
) -> None:
    layout = lay_out(arrays(lengths), payload(len(lengths), steps=count, step_samples=size))
    assert layout.step_ends is not None
    assert len(layout.step_ends) == count
    assert layout.step_ends[-1] == layout.epoch_ends[-1] == len(layout.sequences)


@given(sources)
def test_fewer_steps_are_the_first_of_the_epoch(lengths: list[list[int]]) -> None:
    whole = lay_out(arrays(lengths), payload(len(lengths)))
    part = lay_out(arrays(lengths), payload(len(lengths), steps=1, step_sequences=1))
    assert members(part.sequences) == members(whole.sequences[:1])
    assert whole.epoch_ends == [len(whole.sequences)]


@given(sources)
def test_once_means_every_sample_once(lengths: list[list[int]]) -> None:
    expected = [(s, n) for s, own in enumerate(lengths) for n in range(len(own))]
    assert sorted(members(lay_out_once(arrays(lengths), CAPACITY))) == expected


def test_a_step_needs_a_size() -> None:
    with pytest.raises(ValueError, match="steps needs stepSequences or stepSamples"):
        payload(steps=3)


def test_ends_are_written_where_there_are_any(tmp_path: Path) -> None:
    Layout([], [3, 6]).save_ends(tmp_path)
    assert np.load(tmp_path / EPOCH_ENDS).tolist() == [3, 6]
    assert not (tmp_path / STEP_ENDS).exists()
    Layout([], [3], step_ends=[1, 3]).save_ends(tmp_path)
    assert np.load(tmp_path / STEP_ENDS).tolist() == [1, 3]
