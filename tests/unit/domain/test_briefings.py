"""Briefings: deterministic, in two splits that share nothing, and right by the suites' judges."""

import json
import re
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal, localcontext
from itertools import islice

from hypothesis import given, settings
from hypothesis import strategies as st

from latticeforge_trainer.domain import briefings as module
from latticeforge_trainer.domain.briefings import Assessment, Briefing, briefings, sample_of
from latticeforge_trainer.domain.cic import PATTERNS, PHASES, rank_patterns, uipt_transition
from latticeforge_trainer.domain.samples import Split, fingerprint, split_of
from latticeforge_trainer.suites import SUITES, Problem

EXAMPLE = Briefing(
    phi=Decimal("0.81"),
    entropy=Decimal("0.40"),
    causality=Decimal("0.52"),
    phi_rate=Decimal("-0.11"),
    entropy_rate=Decimal("0.40"),
    a=Decimal("-0.32"),
    b=Decimal("0.25"),
    series=(12, 25, 41, 55, 66, 80),
    base=Decimal("0.80"),
    horizons=(3, 12),
    template=0,
)


def draw(n: int, seed: int = 0, split: Split = "train") -> list[Briefing]:
    return list(islice(briefings(seed, split), n))


def test_example() -> None:
    assert sample_of(EXAMPLE).prompt == (
        "Assess this situation as JSON. Φ 0.81, H 0.40, C 0.52; dΦ/dt −0.11, dH/dt 0.40; "
        "Landau a −0.32, b 0.25; index 12, 25, 41, 55, 66, 80; confidence 0.80 for 3 and 12 months."
    )
    assert json.loads(EXAMPLE.answer()) == {
        "cic_assessment": "F[T] = Φ(0.81) − 0.3×H(0.40) + 0.25×C(0.52) = 0.81 − 0.12 + 0.13 = 0.82;"
        " λ·dH/dt = 0.3×0.40 = 0.12, stable",
        "phase": "ordered",
        "confidence_bounds": {"3m": 0.59, "12m": 0.24},
        "historical_pattern": "gradual escalation",
    }


def test_a_negative_functional_is_written_like_the_rest() -> None:
    negative = Briefing(**{**vars(EXAMPLE), "phi": Decimal("0.10"), "causality": Decimal("0.04")})
    negative = Briefing(**{**vars(negative), "entropy": Decimal("0.90")})
    assert "= 0.10 − 0.27 + 0.01 = −0.16;" in negative.answer()
    assert SUITES["cic"].score(Problem("", [], negative), negative.answer()).correct


def test_same_seed_same_bytes() -> None:
    """A change of this number changes every digest of generated data: mention it to users."""
    text = "".join(briefing.prompt() + briefing.answer() for briefing in draw(50, seed=7))
    assert f"{fingerprint(text):016x}" == "f9d3e63e5ce2bde0"


def test_seeds_differ() -> None:
    assert not set(draw(50, seed=1)) & set(draw(50, seed=2))


@settings(max_examples=15)
@given(st.integers(), st.integers())
def test_splits_share_no_sum(one: int, other: int) -> None:
    train = {(b.phi, b.entropy, b.causality) for b in draw(150, one, "train")}
    heldout = {(b.phi, b.entropy, b.causality) for b in draw(50, other, "heldout")}
    assert not train & heldout


def test_about_a_fifth_of_all_sums_is_held_out() -> None:
    keys = [f"0.{phi} 0.{entropy}0 0.52" for phi in range(20, 96) for entropy in range(1, 10)]
    assert 0.15 < sum(split_of(key) == "heldout" for key in keys) / len(keys) < 0.25
    assert {split_of(briefing.key) for briefing in draw(100, split="heldout")} == {"heldout"}


def test_ten_thousand_answers_are_right_by_every_suite() -> None:
    for briefing in draw(10_000):
        problem, answer = Problem("", [], briefing), briefing.answer()
        for name in ("json", "cic", "phase", "confidence"):
            assert SUITES[name].score(problem, answer).correct, (name, answer)


def test_one_answer_is_right() -> None:
    """No bound lies so near a rounding edge, and no pattern so near another, that it is a toss."""
    for briefing in draw(500):
        with localcontext(prec=12, rounding=ROUND_FLOOR):
            low = briefing.bounds, briefing.pattern
        with localcontext(prec=12, rounding=ROUND_CEILING):
            high = briefing.bounds, briefing.pattern
        assert low == high == (briefing.bounds, briefing.pattern)
        best, second, *_ = rank_patterns(briefing.series)
        assert best.r - second.r >= module.PATTERN_MARGIN


def test_every_label_occurs_often_enough_to_be_learnt() -> None:
    drawn = draw(1000)
    for phase in PHASES:
        assert sum(b.phase == phase for b in drawn) > 250
    for pattern in PATTERNS:
        assert sum(b.pattern == pattern for b in drawn) > 150
    approaching = [uipt_transition(b.phi_rate, b.entropy_rate) == "approaching" for b in drawn]
    assert 350 < sum(approaching) < 650
    assert {b.template for b in drawn} == set(range(len(module.TEMPLATES)))


def test_every_wording_gives_every_measurement() -> None:
    fields = set(re.findall(r"{(\w+)}", module.TEMPLATES[0]))
    assert fields == set(vars(EXAMPLE)) - {"template", "horizons"} | {"near", "far"}
    for template in module.TEMPLATES:
        assert sorted(re.findall(r"{(\w+)}", template)) == sorted(fields)
        assert "JSON" in template
        assert "\n" not in template


def test_briefings_are_short() -> None:
    """A quickstart trains on two cores: every character is paid for thousands of times."""
    for briefing in draw(300):
        assert len(briefing.prompt()) < 200
        assert len(briefing.answer()) < 260


def test_schema_of_the_answer() -> None:
    schema = Assessment.model_json_schema()
    assert schema["required"] == [
        "cic_assessment",
        "phase",
        "confidence_bounds",
        "historical_pattern",
    ]
    assert schema["additionalProperties"] is False
    assert schema["properties"]["phase"]["enum"] == list(PHASES)
