"""Briefings: measurements in, the one correct CIC assessment out.

Every number is drawn on a grid on which the computation is exact: H and dH/dt in steps of 0.10
and C in steps of 0.04 make 0.3×H and 0.25×C two-decimal numbers, so rounded terms always add up to
the rounded sum. The splits are cut by (Φ, H, C): no sum that is asked in the held-out split has
been shown in training, let alone the same briefing.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from random import Random
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from latticeforge_trainer.domain.cic import (
    GAMMA,
    LAMBDA,
    PATTERN_SHAPES,
    PATTERNS,
    PHASES,
    Pattern,
    Phase,
    cic_functional,
    epistemic_bound,
    landau_ginzburg,
    rank_patterns,
    rounded,
    uipt_transition,
)
from latticeforge_trainer.domain.samples import Sample, Split, fingerprint, split_of

HORIZONS = (1, 3, 6, 12)
"""Horizons in months that a briefing may ask for; each asks for two."""

PATTERN_MARGIN = Decimal("0.10")
"""The best pattern leads the second by at least this r: a briefing has one right answer."""

TEMPLATES = (
    """\
Assess this situation as JSON. Φ {phi}, H {entropy}, C {causality}; dΦ/dt {phi_rate}, dH/dt \
{entropy_rate}; Landau a {a}, b {b}; index {series}; confidence {base} for {near} and {far} months.\
""",
    """\
Measured: Φ={phi}, H={entropy}, C={causality}, dΦ/dt={phi_rate}, dH/dt={entropy_rate}, a={a}, \
b={b}. Index: {series}. Base confidence {base}, horizons {near} and {far} months. Give the CIC \
assessment in JSON.\
""",
    """\
Briefing. Φ is {phi}, H is {entropy}, C is {causality}. Rates: Φ {phi_rate}, H {entropy_rate}. \
Free energy: a {a}, b {b}. Indicator {series}. Confidence today {base}; project {near} and {far} \
months. Reply in JSON.\
""",
    """\
Write the JSON assessment: index {series}, Φ {phi}, H {entropy}, C {causality}, a {a}, b {b}, \
dΦ/dt {phi_rate}, dH/dt {entropy_rate}, confidence {base} over {near} and {far} months.\
""",
)


class Assessment(BaseModel):
    """The answer to a briefing; its JSON schema is what the `json` suite asks for."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    cic_assessment: Annotated[str, Field(min_length=1)]
    """The computation of F[T], then of the transition criterion, in writing."""
    phase: Phase
    confidence_bounds: Annotated[
        dict[Annotated[str, Field(pattern=r"^\d+m$")], Annotated[float, Field(ge=0, le=1)]],
        Field(min_length=1),
    ]
    """Confidence by horizon in months, such as ``{"3m": 0.59}``."""
    historical_pattern: Pattern


@dataclass(frozen=True)
class Briefing:
    """The measurements of one situation; all but the series carry two decimals."""

    phi: Decimal
    entropy: Decimal
    causality: Decimal
    phi_rate: Decimal
    entropy_rate: Decimal
    a: Decimal
    b: Decimal
    series: tuple[int, ...]
    """Six readings of an indicator index between 0 and 100."""
    base: Decimal
    """Confidence today, in [0, 1]."""
    horizons: tuple[int, int]
    """Months, the nearer first."""
    template: int
    """Index of the wording in ``TEMPLATES``."""

    @property
    def key(self) -> str:
        """What decides the split: the inputs of the CIC functional."""
        return f"{self.phi} {self.entropy} {self.causality}"

    @property
    def functional(self) -> Decimal:
        """F[T], exact."""
        return cic_functional(self.phi, self.entropy, self.causality)

    @property
    def phase(self) -> Phase:
        """The Landau–Ginzburg phase."""
        return landau_ginzburg(self.a, self.b).phase

    @property
    def bounds(self) -> dict[str, Decimal]:
        """Confidence left at each horizon, to two decimals."""
        return {f"{t}m": rounded(epistemic_bound(self.base, Decimal(t))) for t in self.horizons}

    @property
    def pattern(self) -> Pattern:
        """The historical pattern that the series resembles most."""
        return rank_patterns(self.series)[0].name

    def prompt(self) -> str:
        """The measurements in words."""
        near, far = self.horizons
        return TEMPLATES[self.template].format(
            phi=self.phi,
            entropy=self.entropy,
            causality=self.causality,
            phi_rate=signed(self.phi_rate),
            entropy_rate=self.entropy_rate,
            a=signed(self.a),
            b=self.b,
            series=", ".join(str(level) for level in self.series),
            base=self.base,
            near=near,
            far=far,
        )

    def assessment(self) -> Assessment:
        """The one correct answer."""
        return Assessment(
            cic_assessment=f"{self._functional_text()}; {self._transition_text()}",
            phase=self.phase,
            confidence_bounds={name: float(bound) for name, bound in self.bounds.items()},
            historical_pattern=self.pattern,
        )

    def answer(self) -> str:
        """The assessment as the JSON text that a model is trained to write."""
        return json.dumps(self.assessment().model_dump(), ensure_ascii=False)

    def _functional_text(self) -> str:
        entropy_term, causal_term = rounded(LAMBDA * self.entropy), rounded(GAMMA * self.causality)
        return (
            f"F[T] = Φ({self.phi}) − {LAMBDA}×H({self.entropy}) + {GAMMA}×C({self.causality})"
            f" = {self.phi} − {entropy_term} + {causal_term} = {signed(rounded(self.functional))}"
        )

    def _transition_text(self) -> str:
        threshold = rounded(LAMBDA * self.entropy_rate)
        verdict = uipt_transition(self.phi_rate, self.entropy_rate)
        return f"λ·dH/dt = {LAMBDA}×{self.entropy_rate} = {threshold}, {verdict}"


def signed(value: Decimal) -> str:
    """A number with the minus sign of typeset mathematics, as the formulas have it."""
    return str(value).replace("-", "−")


def briefings(seed: int, split: Split) -> Iterator[Briefing]:
    """Draw different situations of one split without end; the same seed gives the same ones."""
    rng = Random(f"cic {split} {seed}")  # noqa: S311  (reproducible data, not a secret)
    seen: set[Briefing] = set()
    while True:
        briefing = _draw(rng)
        if split_of(briefing.key) == split and briefing not in seen:
            seen.add(briefing)
            yield briefing


def sample_of(briefing: Briefing) -> Sample:
    """The briefing as a chat sample, with an id that is the same wherever it is drawn."""
    prompt = briefing.prompt()
    return Sample(f"cic-{fingerprint(prompt):016x}", prompt, briefing.answer())


def _draw(rng: Random) -> Briefing:
    entropy_rate = _hundredths(rng, 10, 90, step=10)
    near, far = sorted(rng.sample(HORIZONS, 2))
    return Briefing(
        phi=_hundredths(rng, 20, 95),
        entropy=_hundredths(rng, 10, 90, step=10),
        causality=_hundredths(rng, 4, 96, step=4),
        phi_rate=_draw_phi_rate(rng, LAMBDA * entropy_rate),
        entropy_rate=entropy_rate,
        a=_draw_landau_a(rng),
        b=_hundredths(rng, 25, 100, step=25),
        series=_draw_series(rng),
        base=_hundredths(rng, 50, 95, step=5),
        horizons=(near, far),
        template=rng.randrange(len(TEMPLATES)),
    )


def _hundredths(rng: Random, low: int, high: int, step: int = 1) -> Decimal:
    return Decimal(rng.randrange(low, high + 1, step)).scaleb(-2)


def _draw_phi_rate(rng: Random, threshold: Decimal) -> Decimal:
    """About half the time close to the threshold, or hardly any transition would approach."""
    if rng.randrange(2):
        return rounded(threshold * _hundredths(rng, 90, 110))
    return _hundredths(rng, -20, 60)


def _draw_landau_a(rng: Random) -> Decimal:
    """Every phase equally often."""
    low, high = {"ordered": (-95, -6), "critical": (-5, 5), "disordered": (6, 95)}[
        PHASES[rng.randrange(len(PHASES))]
    ]
    return _hundredths(rng, low, high)


def _draw_series(rng: Random) -> tuple[int, ...]:
    """A pattern at some scale and offset with noise, unless the noise has blurred it."""
    while True:
        shape = PATTERN_SHAPES[PATTERNS[rng.randrange(len(PATTERNS))]]
        step, offset = rng.randrange(8, 15), rng.randrange(5, 20)
        series = tuple(level * step + offset + rng.randrange(-4, 5) for level in shape)
        if _is_distinct(series):
            return series


def _is_distinct(series: Sequence[int]) -> bool:
    best, second, *_ = rank_patterns(series)
    return best.r - second.r >= PATTERN_MARGIN
