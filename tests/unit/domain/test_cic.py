"""The domain's arithmetic, by tables and by the laws that it must obey."""

import math
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticeforge_trainer.domain import cic

hundredths = st.integers(-500, 500).map(lambda n: Decimal(n).scaleb(-2))
shares = st.integers(0, 100).map(lambda n: Decimal(n).scaleb(-2))
months = st.integers(0, 600).map(Decimal)
series = st.lists(st.integers(0, 100), min_size=6, max_size=6).filter(lambda s: len(set(s)) > 1)


@pytest.mark.parametrize(
    ("phi", "entropy", "causality", "expected"),
    [
        ("0.81", "0.40", "0.52", "0.82"),  # the worked example of the domain
        ("0", "0", "0", "0"),
        ("1", "0", "0", "1"),
        ("0", "1", "0", "-0.3"),
        ("0", "0", "1", "0.25"),
        ("0.81", "0.41", "0.53", "0.8195"),  # exact, not rounded
    ],
)
def test_functional(phi: str, entropy: str, causality: str, expected: str) -> None:
    assert cic.cic_functional(Decimal(phi), Decimal(entropy), Decimal(causality)) == Decimal(
        expected
    )


@given(hundredths, hundredths, hundredths, hundredths)
def test_functional_is_linear(
    phi: Decimal, entropy: Decimal, causality: Decimal, more: Decimal
) -> None:
    start = cic.cic_functional(phi, entropy, causality)
    assert cic.cic_functional(phi + more, entropy, causality) - start == more
    assert cic.cic_functional(phi, entropy + more, causality) - start == -cic.LAMBDA * more
    assert cic.cic_functional(phi, entropy, causality + more) - start == cic.GAMMA * more


@pytest.mark.parametrize(
    ("phi_rate", "entropy_rate", "expected"),
    [
        ("0.12", "0.40", "approaching"),  # equal
        ("0.51", "2.00", "approaching"),  # 0.60: exactly 0.15 apart, relative to the larger
        ("0.50", "2.00", "stable"),
        ("0.70", "2.00", "approaching"),  # 0.143 of 0.70
        ("0.71", "2.00", "stable"),
        ("-0.12", "-0.40", "approaching"),
        ("-0.12", "0.40", "stable"),  # the same size, the other way
        ("0", "0", "stable"),  # nothing moves
        ("0.01", "0", "stable"),
    ],
)
def test_transition(phi_rate: str, entropy_rate: str, expected: str) -> None:
    assert cic.uipt_transition(Decimal(phi_rate), Decimal(entropy_rate)) == expected


@given(hundredths, hundredths, st.sampled_from([Decimal(-1), Decimal("0.5"), Decimal(7)]))
def test_transition_does_not_depend_on_units(x: Decimal, y: Decimal, scale: Decimal) -> None:
    assert cic.uipt_transition(x, y) == cic.uipt_transition(scale * x, scale * y)


@pytest.mark.parametrize(
    ("a", "b", "phase", "order_parameter"),
    [
        ("-0.50", "0.25", "ordered", "1"),
        ("-0.32", "0.25", "ordered", "0.8"),
        ("-0.06", "0.03", "ordered", "1"),
        ("-0.05", "0.03", "critical", "0"),
        ("0", "1", "critical", "0"),
        ("0.05", "1", "critical", "0"),
        ("0.06", "1", "disordered", "0"),
    ],
)
def test_landau_ginzburg(a: str, b: str, phase: str, order_parameter: str) -> None:
    assert cic.landau_ginzburg(Decimal(a), Decimal(b)) == (phase, Decimal(order_parameter))


@given(hundredths, st.integers(1, 500).map(lambda n: Decimal(n).scaleb(-2)))
def test_order_parameter_minimises_the_free_energy(a: Decimal, b: Decimal) -> None:
    phase, minimum = cic.landau_ginzburg(a, b)
    if phase == "critical":
        return

    def energy(phi: Decimal) -> Decimal:
        return a * phi**2 + b * phi**4

    nearby = [minimum + step for step in (Decimal("-0.001"), Decimal("0.001"))]
    assert all(energy(phi) > energy(minimum) for phi in nearby)


@pytest.mark.parametrize("b", ["0", "-1"])
def test_free_energy_without_minimum_is_refused(b: str) -> None:
    with pytest.raises(ValueError, match=f"b is {b}, expected a positive number"):
        cic.landau_ginzburg(Decimal(-1), Decimal(b))


@pytest.mark.parametrize(
    ("base", "t", "expected"),
    [("0.80", "0", "0.80"), ("0.80", "3", "0.59"), ("0.80", "12", "0.24"), ("1.4", "1", "1.00")],
)
def test_epistemic_bound(base: str, t: str, expected: str) -> None:
    assert cic.rounded(cic.epistemic_bound(Decimal(base), Decimal(t))) == Decimal(expected)


@given(shares, months, months)
def test_confidence_only_ever_decays(base: Decimal, t: Decimal, later: Decimal) -> None:
    now, then = cic.epistemic_bound(base, t), cic.epistemic_bound(base, t + later)
    assert 0 <= then <= now <= base
    assert float(now) == pytest.approx(float(base) * math.exp(-0.1 * float(t)), rel=1e-12)


def test_horizon_in_the_past_is_refused() -> None:
    with pytest.raises(ValueError, match="horizon is -1 months, expected 0 or more"):
        cic.epistemic_bound(Decimal(1), Decimal(-1))


@pytest.mark.parametrize("name", cic.PATTERNS)
def test_every_pattern_matches_itself_best(name: cic.Pattern) -> None:
    shape = cic.PATTERN_SHAPES[name]
    best, second, *_ = cic.rank_patterns([10 * level + 7 for level in shape])
    assert best.name == name
    assert round(best.r, 9) == 1
    assert second.r < Decimal("0.9"), "two patterns are hard to tell apart"


def test_escalation_and_de_escalation_are_opposites() -> None:
    r = cic.pearson_r(cic.PATTERN_SHAPES["gradual escalation"], cic.PATTERN_SHAPES["de-escalation"])
    assert r == -1


@given(series, series, st.integers(1, 9), st.integers(-50, 50))
def test_pearson_r_ignores_scale_and_offset(
    x: list[int], y: list[int], scale: int, offset: int
) -> None:
    r = cic.pearson_r(x, y)
    assert -1 <= round(r, 20) <= 1
    assert r == cic.pearson_r(y, x)
    assert round(r, 20) == round(cic.pearson_r([scale * v + offset for v in x], y), 20)
    assert round(r, 20) == -round(cic.pearson_r([-v for v in x], y), 20)


@pytest.mark.parametrize(
    ("x", "message"), [([1, 2], "2 and 6 points"), ([3] * 6, "constant, so its correlation")]
)
def test_undefined_correlation_is_refused(x: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cic.rank_patterns(x)


@pytest.mark.parametrize(
    ("value", "expected"), [("0.125", "0.13"), ("-0.125", "-0.13"), ("0.1249", "0.12")]
)
def test_rounding_is_half_away_from_zero(value: str, expected: str) -> None:
    assert cic.rounded(Decimal(value)) == Decimal(expected)
