"""The CIC suites: what is right, what is wrong, and what a score says."""

import json
from decimal import Decimal
from itertools import islice
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticeforge_trainer.domain.briefings import Briefing, briefings
from latticeforge_trainer.suites import SUITES, Problem, Verdict
from latticeforge_trainer.suites.cic_suites import CIC_SUITES, parse_object

BRIEFING = Briefing(
    phi=Decimal("0.81"),
    entropy=Decimal("0.40"),
    causality=Decimal("0.52"),
    phi_rate=Decimal("0.11"),
    entropy_rate=Decimal("0.40"),
    a=Decimal("-0.32"),
    b=Decimal("0.25"),
    series=(12, 25, 41, 55, 66, 80),
    base=Decimal("0.80"),
    horizons=(3, 12),
    template=0,
)
PROBLEM = Problem("cic-0", [], BRIEFING)
RIGHT = json.loads(BRIEFING.answer())
FORMULA = "F[T] = Φ(0.81) − 0.3×H(0.40) + 0.25×C(0.52)"


def credit(suite: str, **changes: Any) -> float:
    answer = {key: value for key, value in (RIGHT | changes).items() if value is not None}
    return SUITES[suite].score(PROBLEM, json.dumps(answer)).credit


@pytest.mark.parametrize("suite", CIC_SUITES, ids=lambda suite: suite.name)
@pytest.mark.parametrize(
    "frame", ["{}", "\n  {}\n", "```json\n{}\n```", "```\n{}\n```\n"], ids=repr
)
def test_the_right_answer_in_its_frames(suite: Any, frame: str) -> None:
    assert suite.score(PROBLEM, frame.replace("{}", BRIEFING.answer())).correct


@pytest.mark.parametrize("suite", CIC_SUITES, ids=lambda suite: suite.name)
@pytest.mark.parametrize(
    "text",
    [
        "",
        "I cannot do that.",
        "Here it is: {}",
        "{} I hope this helps.",
        "{}\n{}",
        "[{}]",
        "```json\n{}",
        "```python\n{}\n```",
        '"text"',
        "[" * 100_000,
        "9" * 10_000,
    ],
    ids=lambda text: text[:20],
)
def test_anything_but_one_object_is_wrong_in_every_suite(suite: Any, text: str) -> None:
    verdict = suite.score(PROBLEM, text.replace("{}", BRIEFING.answer()))
    assert verdict.credit == 0
    assert verdict.details["reason"].startswith("not a JSON object: ")


@pytest.mark.parametrize("text", ['{"a": 1, "a": 1}', '{"a": NaN}', '{"a": -Infinity}'])
def test_what_only_python_calls_json_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"occurs twice|is no JSON"):
        parse_object(text)


@pytest.mark.parametrize(
    "changes",
    [
        {"phase": None},
        {"phase": "liquid"},
        {"phase": ["ordered"]},
        {"confidence_bounds": {}},
        {"confidence_bounds": {"3m": 1.2}},
        {"confidence_bounds": {"3m": "0.59"}},
        {"confidence_bounds": {"3m": True}},
        {"confidence_bounds": {"soon": 0.5}},
        {"confidence_bounds": [0.59, 0.24]},
        {"cic_assessment": ""},
        {"cic_assessment": 0.82},
        {"historical_pattern": "boom"},
        {"note": "one key too many"},
    ],
    ids=repr,
)
def test_json_wants_the_schema(changes: dict[str, Any]) -> None:
    assert credit("json", **changes) == 0


def test_json_does_not_judge_the_values() -> None:
    assert credit("json", phase="critical", cic_assessment="F = 7") == 1


@pytest.mark.parametrize(
    "text",
    [
        "F[T] = 0.82",
        "F = 0.82",
        f"{FORMULA} = 0.82",
        f"{FORMULA} = 0.820",
        f"{FORMULA} = 0.81 − 0.12 + 0.13 = 0.82",
        "F[T] = Φ − λH + γC = 0.82",
        f"High risk. {FORMULA} = 0.82; the trend is up, r = 0.99.",
    ],
)
def test_cic_right(text: str) -> None:
    assert credit("cic", cic_assessment=text) == 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"{FORMULA} = 0.81 − 0.12 + 0.13 = 0.83", "F is 0.83, truly 0.82"),
        (f"{FORMULA} = 0.81 − 0.12 + 0.14 = 0.82", "an equality does not hold"),
        (f"{FORMULA} = 0.82; 0.1 + 0.1 = 0.3", "an equality does not hold"),
        # Two wrong inputs that make up for each other.
        ("F[T] = Φ(0.84) − 0.3×H(0.50) + 0.25×C(0.52) = 0.82", "Φ is 0.84, measured 0.81"),
        ("F[T] = 0.826", "F is 0.826"),
        ("F[T] = 0.82; F = 0.83", "F is 0.83"),
        (FORMULA, "no value of F is stated"),
        (f"{FORMULA} = high", "no value of F is stated"),
        ("G = 0.82", "no value of F is stated"),
        ("0.82", "no value of F is stated"),
        (f"{FORMULA} = 82% = 0.82", "cannot compute with '%'"),
    ],
)
def test_cic_wrong(text: str, reason: str) -> None:
    verdict = SUITES["cic"].score(PROBLEM, json.dumps(RIGHT | {"cic_assessment": text}))
    assert verdict.credit == 0
    assert reason in verdict.details["reason"]


def test_cic_checks_what_is_written_elsewhere() -> None:
    assert credit("cic", historical_pattern="plateau, r = 0.5 + 0.5 = 1.0") == 1
    assert credit("cic", historical_pattern="plateau, r = 0.5 + 0.5 = 0.9") == 0


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ({"3m": 0.59, "12m": 0.24}, 1),
        ({"3m": 0.5827, "12m": 0.2509}, 1),  # 0.59265 and 0.24096
        ({"3m": 0.5826, "12m": 0.24}, 0.5),
        ({"3m": 0.59, "12m": 0.251}, 0.5),
        ({"3m": 0.59}, 0.5),
        ({"6m": 0.59, "1m": 0.24}, 0),
        ({"3m": "0.59", "12m": True}, 0),
        ({"3m": 1e400, "12m": None}, 0),
        ([0.59, 0.24], 0),
        (None, 0),
    ],
)
def test_confidence(bounds: Any, expected: float) -> None:
    text = json.dumps(RIGHT | {"confidence_bounds": bounds}).replace("Infinity", "1e400")
    assert SUITES["confidence"].score(PROBLEM, text).credit == expected


def test_phase() -> None:
    assert credit("phase") == 1
    assert credit("phase", phase="critical") == 0
    assert credit("phase", phase={"label": "ordered"}) == 0
    assert credit("phase", historical_pattern=None) == 1


def test_macro_f1_counts_answers_that_are_no_phase() -> None:
    suite = SUITES["phase"]
    asked = [Problem("", [], b) for b in islice(briefings(0, "heldout"), 90)]
    good = [suite.score(p, p.truth.answer()) for p in asked]
    assert suite.summarize(good).extra == {"macro_f1": 1}
    mute = [suite.score(p, "" if p.truth.phase == "critical" else p.truth.answer()) for p in asked]
    assert suite.summarize(mute).extra["macro_f1"] == pytest.approx(2 / 3)


def test_score_has_n_and_interval() -> None:
    score = SUITES["json"].summarize([Verdict(1)] * 31 + [Verdict(0)])
    assert (score.suite, score.n, score.value) == ("json", 32, 31 / 32)
    assert (score.low, score.high) == pytest.approx((0.8426, 0.9945), abs=1e-4)


def test_problems_are_held_out_shared_and_deterministic() -> None:
    problems = [suite.problems(40, seed=5) for suite in CIC_SUITES]
    assert all(drawn == problems[0] for drawn in problems)
    assert {suite.group for suite in CIC_SUITES} == {"cic"}
    assert len({suite.max_new_tokens for suite in CIC_SUITES}) == 1
    trained = {(b.phi, b.entropy, b.causality) for b in islice(briefings(5, "train"), 2000)}
    asked = {(p.truth.phi, p.truth.entropy, p.truth.causality) for p in problems[0]}
    assert not asked & trained
    (message,) = problems[0][0].messages
    assert message == {"role": "user", "content": problems[0][0].truth.prompt()}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@given(st.sampled_from(CIC_SUITES), st.sampled_from(sorted(RIGHT)), json_values)
def test_no_answer_makes_a_suite_raise(suite: Any, key: str, value: Any) -> None:
    verdict = suite.score(PROBLEM, json.dumps(RIGHT | {key: value}))
    assert 0 <= verdict.credit <= 1
