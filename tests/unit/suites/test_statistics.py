"""Intervals: published values, their laws, and how often they cover the truth."""

from math import comb
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticeforge_trainer.suites.statistics import macro_f1, paired_drop, wilson


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),  # R. G. Newcombe, Statistics in Medicine 17 (1998), table I
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (20, 20, 0.8389, 1.0),
    ],
)
def test_wilson_as_published(successes: int, n: int, low: float, high: float) -> None:
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.floats(0, n), st.just(n))))
def test_wilson_contains_the_share_and_stays_in_bounds(case: tuple[float, int]) -> None:
    successes, n = case
    low, high = wilson(successes, n)
    assert 0 <= low <= successes / n <= high <= 1
    assert low < high


@given(st.integers(1, 300), st.data())
def test_wilson_is_symmetric(n: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, n))
    low, high = wilson(successes, n)
    assert wilson(n - successes, n) == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_wilson_covers_the_truth_about_as_often_as_it_says(share: float) -> None:
    n = 64
    covered = 0.0
    for successes in range(n + 1):
        low, high = wilson(successes, n)
        if low <= share <= high:
            covered += comb(n, successes) * share**successes * (1 - share) ** (n - successes)
    assert 0.93 < covered < 0.98


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_refuses(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="expected"):
        wilson(successes, n)


def test_paired_drop_by_hand() -> None:
    """Of 100, 20 right before only and 10 after only: 10/102 ± 1.96·√(31 - 10²/102)/102."""
    base = [True] * 20 + [False] * 10 + [True] * 50 + [False] * 20
    new = [False] * 20 + [True] * 10 + [True] * 50 + [False] * 20
    assert paired_drop(base, new) == pytest.approx((0.10, -0.00724, 0.20332), abs=1e-5)


def test_no_change_has_an_interval_all_the_same() -> None:
    drop, low, high = paired_drop([True] * 32, [True] * 32)
    assert drop == 0
    assert low == -high
    assert 0.01 < high < 0.1


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=200))
def test_paired_drop_laws(pairs: list[tuple[bool, bool]]) -> None:
    base, new = [before for before, _ in pairs], [after for _, after in pairs]
    drop, low, high = paired_drop(base, new)
    assert drop == pytest.approx((sum(base) - sum(new)) / len(pairs))
    assert -1 <= low < high <= 1
    gain, worst, best = paired_drop(new, base)
    assert (gain, worst, best) == pytest.approx((-drop, -high, -low))


def test_paired_drop_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = Random(0)  # noqa: S311  (a simulation)
    covered = 0
    for _ in range(2000):
        pairs = [rng.choices([(1, 0), (0, 1), (1, 1)], [0.15, 0.05, 0.8])[0] for _ in range(64)]
        _, low, high = paired_drop([before for before, _ in pairs], [after for _, after in pairs])
        covered += low <= 0.10 <= high
    assert 0.93 < covered / 2000 < 0.98


def test_paired_is_narrower_than_two_separate_shares() -> None:
    base, new = [True] * 60 + [False] * 4, [True] * 58 + [False] * 6
    _, low, high = paired_drop(base, new)
    separate = [wilson(sum(answers), 64) for answers in (base, new)]
    assert high - low < sum(bounds[1] - bounds[0] for bounds in separate)


@pytest.mark.parametrize(("base", "new"), [([], []), ([True], []), ([True], [True, False])])
def test_paired_drop_refuses(base: list[bool], new: list[bool]) -> None:
    with pytest.raises(ValueError, match="expected as many and at least 1"):
        paired_drop(base, new)


def test_macro_f1_by_hand() -> None:
    true, answered = list("aaabbc"), list("aabbbx")
    # a: 2 of 3 found, none wrong: 0.8; b: both found, one wrong: 0.8; c: missed: 0.
    assert macro_f1(true, answered, "abc") == pytest.approx((0.8 + 0.8 + 0) / 3)
    assert macro_f1(list("aa"), list("aa"), "abc") == 1
    assert macro_f1([], [], "abc") == 0
