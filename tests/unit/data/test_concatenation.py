"""Concatenated data sets: every sample once per epoch, whatever the sizes."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from latticeforge_trainer.contract import DataSource, ModelSource, PreparePayload
from latticeforge_trainer.data.layout import lay_out


def payload(sources: int, epochs: int) -> PreparePayload:
    return PreparePayload(
        base=ModelSource(model="./base"),
        data=[DataSource(source=f"./{number}.jsonl") for number in range(sources)],
        mixing="concatenate",
        sequence_length=8,
        epochs=epochs,
    )


@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.integers(1, 3))
def test_every_sample_is_seen_once_per_epoch(sizes: list[int], epochs: int) -> None:
    lengths = [np.full(size, 3) for size in sizes]
    layout = lay_out(lengths, payload(len(sizes), epochs))
    samples = [tuple(sample) for sequence in layout.sequences for sample in sequence.tolist()]
    wanted = {(source, number) for source, size in enumerate(sizes) for number in range(size)}
    assert Counter(samples) == dict.fromkeys(wanted, epochs)


def test_weights_are_equal_shares_otherwise() -> None:
    weighted = payload(2, 1).model_copy(update={"mixing": None})
    layout = lay_out([np.full(20, 3), np.full(5, 3)], weighted)
    found = Counter(int(s) for sequence in layout.sequences for s in sequence[:, 0])
    assert found == {0: 20, 1: 20}
