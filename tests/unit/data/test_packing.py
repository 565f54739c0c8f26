"""Packed sequences: nothing lost, nothing shared, little padding."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latticeforge_trainer.data import packing
from latticeforge_trainer.data.mixing import mixed_epochs
from latticeforge_trainer.data.packed import PackedData
from latticeforge_trainer.data.packing import best_fit, pack_epoch, write_packed
from latticeforge_trainer.data.rendering import TokenizedSource, Tokens

PAD = 9


def source(lengths: list[int], first: int = 100) -> TokenizedSource:
    """Samples of distinct tokens: the k-th token of sample i is `first + 1000 i + k`."""
    made = TokenizedSource()
    for number, length in enumerate(lengths):
        ids = np.arange(length, dtype=np.int32) + first + 1000 * number
        targets = (np.arange(length) > 0).astype(np.uint8)
        made.add(Tokens(ids, targets), length)
    return made


@given(st.lists(st.integers(1, 16), max_size=60))
def test_best_fit_puts_each_item_in_one_bin_that_holds_it(lengths: list[int]) -> None:
    bins = best_fit(lengths, 16)
    assert sorted(item for items in bins for item in items) == list(range(len(lengths)))
    assert all(sum(lengths[item] for item in items) <= 16 for items in bins)
    assert all(items == sorted(items) for items in bins)
    # Any-fit: no two bins could have been one.
    loads = sorted(sum(lengths[item] for item in items) for items in bins)
    assert len(loads) < 2 or loads[0] + loads[1] > 16


def test_best_fit_is_tight() -> None:
    assert sorted(map(len, best_fit([5, 5, 3, 3, 2, 2], 10))) == [2, 4]


@settings(max_examples=25)  # each writes files
@given(st.lists(st.integers(2, 12), min_size=1, max_size=40), st.integers(1, 3))
def test_every_token_of_an_epoch_is_packed_exactly_once(lengths: list[int], epochs: int) -> None:
    samples = source(lengths)
    expected = sorted(t for n in range(len(lengths)) for t in samples.sample(n).ids.tolist())
    for epoch, order in enumerate(mixed_epochs([len(lengths)], [1.0], epochs, 0)):
        sequences = pack_epoch(order, samples.lengths[order[:, 1]], 12, epoch)
        with tempfile.TemporaryDirectory() as folder:
            counts = write_packed(Path(folder), sequences, [samples], 12, PAD)
            data = PackedData(Path(folder))
            batch = data.batch(range(len(data)))
        ids, positions = batch["input_ids"], batch["position_ids"]
        real = [row[:n] for row, n in zip(ids.tolist(), data.lengths.tolist(), strict=True)]
        assert sorted(token for row in real for token in row) == expected
        assert counts.tokens == len(expected)
        assert counts.target_tokens == int(batch["loss_mask"].sum()) == sum(lengths) - len(lengths)
        # A document is a sample, whole and alone: where positions restart, so does the sample.
        for row, places, mask, end in zip(
            ids.tolist(), positions.tolist(), batch["loss_mask"].tolist(), data.lengths, strict=True
        ):
            for token, place, wanted in list(zip(row, places, mask, strict=True))[:end]:
                assert (token - 100) % 1000 == place
                assert wanted == (place > 0)
            assert row[end:] == [PAD] * (12 - end)
            assert places[end:] == list(range(12 - end))
            assert not any(mask[end:])


def test_the_order_is_the_seeds_and_windows_bound_the_packing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(packing, "WINDOW", 10)
    samples = source([3] * 25)
    (order,) = mixed_epochs([25], [1.0], 1, 0)
    lengths = samples.lengths[order[:, 1]]
    packed = pack_epoch(order, lengths, 9, 7)
    assert [len(s) for s in packed] != sorted((len(s) for s in packed), reverse=True)
    assert sorted(len(s) for s in packed) == [1, 1, 2, 3, 3, 3, 3, 3, 3, 3]
    again = pack_epoch(order, lengths, 9, 7)
    assert all((a == b).all() for a, b in zip(packed, again, strict=True))


def test_sequences_are_not_sorted_by_the_packing() -> None:
    lengths = np.random.default_rng(0).integers(5, 60, 400)
    (order,) = mixed_epochs([400], [1.0], 1, 0)
    packed = pack_epoch(order, lengths[order[:, 1]], 64, 0)
    longest = np.array([lengths[sequence[:, 1]].max() for sequence in packed])
    assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 0.3


def test_padding_is_small_on_real_lengths() -> None:
    lengths = np.random.default_rng(0).lognormal(5.5, 0.8, 5000).clip(20, 2048).astype(np.int64)
    (order,) = mixed_epochs([5000], [1.0], 1, 0)
    sequences = pack_epoch(order, lengths[order[:, 1]], 2048, 0)
    assert int(lengths.sum()) / (len(sequences) * 2048) > 0.98


def test_batches_are_by_number(tmp_path: Path) -> None:
    samples = source([4, 4, 4])
    order = np.array([[0, 0], [0, 1], [0, 2]])
    write_packed(tmp_path, [order[:1], order[1:2], order[2:]], [samples], 4, PAD)
    data = PackedData(tmp_path)
    assert (len(data), data.sequence_length) == (3, 4)
    batch = data.batch([2, 0])
    assert batch["input_ids"].tolist() == [[2100, 2101, 2102, 2103], [100, 101, 102, 103]]
    assert str(batch["input_ids"].dtype) == str(batch["position_ids"].dtype) == "torch.int64"
    assert str(batch["loss_mask"].dtype) == "torch.bool"
