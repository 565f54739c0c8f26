"""Slices of a split, as `datasets` reads them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticeforge_trainer.data.slices import RowSlice, parse_split
from latticeforge_trainer.errors import UserError


@pytest.mark.parametrize(
    ("text", "rows", "split", "bounds"),
    [
        ("train", 10, "train", (0, 10)),
        ("train[:20%]", 52_002, "train", (0, 10_400)),
        ("train[:1%]", 150, "train", (0, 2)),  # 1.5 is rounded to even, as there
        ("train[100:200]", 150, "train", (100, 150)),
        ("test[-10%:]", 30, "test", (27, 30)),
        ("train[10:-10]", 30, "train", (10, 20)),
        ("train[:]", 3, "train", (0, 3)),
        ("train[5:2]", 9, "train", (5, 5)),
        ("train_sft[50%:]", 9, "train_sft", (4, 9)),
    ],
)
def test_bounds_are_rows_or_per_cent(
    text: str, rows: int, split: str, bounds: tuple[int, int]
) -> None:
    name, wanted = parse_split(text, "me/data")
    assert (name, wanted.bounds(rows)) == (split, bounds)


@pytest.mark.parametrize("text", ["train[5]", "train[:x]", "train[:5%", "[:5%]", "train[:5%]+test"])
def test_what_is_no_slice_is_one_sentence(text: str) -> None:
    with pytest.raises(UserError, match=r"^me/data: split .* is no slice; write it like train\["):
        parse_split(text, "me/data")


@given(st.integers(1, 99), st.integers(0, 10_000))
def test_parts_that_meet_take_every_row_once(per_cent: int, rows: int) -> None:
    first = RowSlice(None, f"{per_cent}%").bounds(rows)
    rest = RowSlice(f"{per_cent}%", None).bounds(rows)
    assert (first[0], first[1], rest[1]) == (0, rest[0], rows)
