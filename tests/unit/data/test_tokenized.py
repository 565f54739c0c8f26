"""What becomes of samples that are too long, and which are held out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticeforge_trainer.contract import ExcessLength
from latticeforge_trainer.data.tokenized import TokenizedSource, Tokens
from latticeforge_trainer.errors import UserError


def sample(size: int, prompt: int = 1) -> Tokens:
    """Tokens 0, 1, 2, …, of which those from `prompt` on are learned."""
    ids = np.arange(size, dtype=np.int32)
    return Tokens(ids, (ids >= prompt).astype(np.uint8))


def kept(source: TokenizedSource) -> list[list[int]]:
    return [source.sample(number).ids.tolist() for number in range(len(source))]


@pytest.mark.parametrize(
    ("excess", "size", "prompt", "parts", "counts"),
    [
        (ExcessLength.TRUNCATE, 4, 1, [[0, 1, 2, 3]], (0, 0, 0)),
        (ExcessLength.TRUNCATE, 5, 1, [[0, 1, 2, 3]], (1, 0, 0)),
        (ExcessLength.TRUNCATE, 5, 4, [], (0, 0, 1)),
        (ExcessLength.DROP, 4, 1, [[0, 1, 2, 3]], (0, 0, 0)),
        (ExcessLength.DROP, 5, 1, [], (0, 1, 0)),
        (ExcessLength.SPLIT, 4, 1, [[0, 1, 2, 3]], (0, 0, 0)),
        (ExcessLength.SPLIT, 10, 1, [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]], (1, 0, 0)),
        (ExcessLength.SPLIT, 5, 1, [[0, 1, 2, 3]], (1, 0, 0)),  # one token has nothing to learn
        (ExcessLength.FAIL, 4, 1, [[0, 1, 2, 3]], (0, 0, 0)),
    ],
)
def test_a_sample_is_made_to_fit(
    excess: ExcessLength,
    size: int,
    prompt: int,
    parts: list[list[int]],
    counts: tuple[int, int, int],
) -> None:
    source = TokenizedSource()
    source.add(sample(size, prompt), 4, excess)
    assert kept(source) == parts
    assert (source.truncated, source.dropped, source.skipped) == counts


def test_a_part_of_a_text_does_not_learn_its_first_token() -> None:
    source = TokenizedSource()
    source.add(sample(6), 4, ExcessLength.SPLIT)
    assert [source.sample(n).targets.tolist() for n in range(2)] == [[0, 1, 1, 1], [0, 1]]


def test_a_sample_that_must_fit_is_named() -> None:
    sentence = "a.jsonl, line 3: 5 tokens, more than sequenceLength 4: raise it, or set"
    with pytest.raises(UserError, match=sentence):
        TokenizedSource().add(sample(5), 4, ExcessLength.FAIL, "a.jsonl, line 3")


@given(st.integers(1, 60), st.floats(0.001, 0.999), st.integers(-(2**31), 2**31))
def test_what_is_held_out_is_not_trained_on(size: int, share: float, seed: int) -> None:
    source = TokenizedSource(truncated=1, dropped=2, skipped=3)
    for length in range(2, size + 2):
        source.add(sample(length), 100)
    stay, away = source.hold_out(share, seed)
    assert sorted([*stay.lengths, *away.lengths]) == list(range(2, size + 2))
    assert stay.lengths.tolist() == sorted(stay.lengths)
    assert abs(len(away) - share * size) <= 1
    assert (len(away) > 0) == (size > 1)
    assert len(stay) > 0
    assert (stay.truncated, stay.dropped, stay.skipped) == (1, 2, 3)
    assert kept(source.hold_out(share, seed)[1]) == kept(away)


def test_the_seed_chooses_what_is_held_out() -> None:
    source = TokenizedSource()
    for length in range(2, 102):
        source.add(sample(length), 200)
    first, second = (source.hold_out(0.1, seed)[1].lengths.tolist() for seed in (0, 1))
    assert first != second
