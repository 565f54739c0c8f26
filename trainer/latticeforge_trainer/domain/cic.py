"""The exact arithmetic of a CIC assessment, as small pure functions on decimals.

Decimals and not floats: a briefing states numbers such as 0.81, its answer must add up to the
last digit, and ``Decimal`` rounds, takes roots and exponentials identically on every platform.
"""

from collections.abc import Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal
from types import MappingProxyType
from typing import Literal, NamedTuple, get_args

Phase = Literal["ordered", "disordered", "critical"]
Transition = Literal["approaching", "stable"]
Pattern = Literal["gradual escalation", "sudden crisis", "oscillation", "de-escalation", "plateau"]

PHASES: tuple[Phase, ...] = get_args(Phase)
PATTERNS: tuple[Pattern, ...] = get_args(Pattern)

LAMBDA = Decimal("0.3")
"""Weight of the conditional entropy H(T|X) in the CIC functional, and of dH/dt in the UIPT."""

GAMMA = Decimal("0.25")
"""Weight of the multi-scale causal power C_multi(T) in the CIC functional."""

TRANSITION_TOLERANCE = Decimal("0.15")
"""Largest relative difference of dΦ/dt and λ·dH/dt at which a transition is approaching."""

CRITICAL_TOLERANCE = Decimal("0.05")
"""Largest |a| that counts as a → 0: measurements carry two decimals, so a is never known better."""

DECAY_PER_MONTH = Decimal("0.1")
"""Rate at which the confidence in a forecast decays with its horizon."""

PATTERN_SHAPES: Mapping[Pattern, tuple[int, ...]] = MappingProxyType(
    {
        "gradual escalation": (0, 1, 2, 3, 4, 5),  # the same step every period
        "sudden crisis": (0, 0, 0, 0, 5, 5),  # quiet, then a jump that stays
        "oscillation": (0, 5, 0, 5, 0, 5),  # tension and release in turn
        "de-escalation": (5, 4, 3, 2, 1, 0),  # the same step down every period
        "plateau": (0, 3, 5, 5, 5, 5),  # an early rise that levels off
    }
)
"""Levels of an indicator over six equal periods; Pearson's r ignores their scale and offset."""


class Landau(NamedTuple):
    """Minimum of a Landau–Ginzburg free energy: the phase and its order parameter φ₀."""

    phase: Phase
    order_parameter: Decimal


class PatternMatch(NamedTuple):
    """The historical pattern that a series resembles most, with Pearson's r in [-1, 1]."""

    name: Pattern
    r: Decimal


def rounded(value: Decimal, places: int = 2) -> Decimal:
    """Round half away from zero, as people do, to ``places`` decimals."""
    return value.quantize(Decimal(1).scaleb(-places), rounding=ROUND_HALF_UP)


def cic_functional(phi: Decimal, entropy: Decimal, causality: Decimal) -> Decimal:
    """F[T] = Φ(T) − λ·H(T|X) + γ·C_multi(T), exact.

    Args:
        phi: integrated information Φ(T).
        entropy: conditional entropy H(T|X).
        causality: multi-scale causal power C_multi(T).
    """
    return phi - LAMBDA * entropy + GAMMA * causality


def uipt_transition(phi_rate: Decimal, entropy_rate: Decimal) -> Transition:
    """Say whether a phase transition approaches: dΦ/dt ≈ λ·dH/dt.

    The difference is taken relative to the larger magnitude, so that neither side is the
    reference. Two rates of zero are stable: nothing moves.
    """
    threshold = LAMBDA * entropy_rate
    scale = max(abs(phi_rate), abs(threshold))
    if scale == 0:
        return "stable"
    close = abs(phi_rate - threshold) <= TRANSITION_TOLERANCE * scale
    return "approaching" if close else "stable"


def landau_ginzburg(a: Decimal, b: Decimal) -> Landau:
    """Phase and order parameter that minimise f(φ) = a·φ² + b·φ⁴ in mean field.

    Within ``CRITICAL_TOLERANCE`` of a = 0 the phase is critical, where φ₀ vanishes with exponent
    β = 1/2; below it φ₀ = √(−a / 2b), above it φ₀ = 0.

    Raises:
        ValueError: b is not positive, so that f has no minimum.
    """
    if b <= 0:
        raise ValueError(f"b is {b}, expected a positive number: f(φ) has no minimum otherwise")
    if abs(a) <= CRITICAL_TOLERANCE:
        return Landau("critical", Decimal(0))
    if a > 0:
        return Landau("disordered", Decimal(0))
    return Landau("ordered", (-a / (2 * b)).sqrt())


def epistemic_bound(base: Decimal, months: Decimal) -> Decimal:
    """Confidence that is left at a horizon: base · e^(−0.1·months), bounded to [0, 1].

    Raises:
        ValueError: the horizon lies in the past.
    """
    if months < 0:
        raise ValueError(f"the horizon is {months} months, expected 0 or more")
    return min(max(base * (-DECAY_PER_MONTH * months).exp(), Decimal(0)), Decimal(1))


def pearson_r(x: Sequence[int], y: Sequence[int]) -> Decimal:
    """Pearson's product-moment correlation of two series of readings.

    Raises:
        ValueError: the lengths differ, or a series is constant and r is undefined.
    """
    if len(x) != len(y):
        raise ValueError(f"the series have {len(x)} and {len(y)} points, expected as many")
    # n²·cov and n²·var of integers are integers: the two roots are all that is ever rounded.
    n, x_sum, y_sum = len(x), sum(x), sum(y)
    covariance = n * sum(u * v for u, v in zip(x, y, strict=True)) - x_sum * y_sum
    x_variance = n * sum(u * u for u in x) - x_sum**2
    y_variance = n * sum(v * v for v in y) - y_sum**2
    if not x_variance or not y_variance:
        raise ValueError("a series is constant, so its correlation is undefined")
    return Decimal(covariance) / (Decimal(x_variance).sqrt() * Decimal(y_variance).sqrt())


def rank_patterns(series: Sequence[int]) -> list[PatternMatch]:
    """Every historical pattern with its correlation to ``series``, best first.

    Raises:
        ValueError: the series has not six points, or is constant.
    """
    matches = [PatternMatch(name, pearson_r(series, PATTERN_SHAPES[name])) for name in PATTERNS]
    return sorted(matches, key=lambda match: match.r, reverse=True)
