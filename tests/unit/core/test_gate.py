"""Gates: what passes, how many problems are asked, what nobody could pass."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticeforge_operator.api.training import Gate
from latticeforge_operator.core.policies.gate import (
    failures,
    judge,
    perfect_bound,
    samples_of,
    unreachable,
)
from latticeforge_trainer.contract import EvaluateResult, ModelScores, PairedDrop, Score
from latticeforge_trainer.suites.statistics import wilson

MINIMA = st.decimals("0.01", "1", places=4).map(lambda value: f"{value:f}")


def gate(**fields: Any) -> Gate:
    return Gate.model_validate({"suite": "json", **fields})


def result(low: float, drops: dict[str, float] | None = None) -> EvaluateResult:
    score = Score(suite="json", value=0.9, low=low, high=1, n=64)
    return EvaluateResult(
        table=[ModelScores(model="cic", scores=[score])],
        drops=[
            PairedDrop(suite="json", against=against, drop=0.01, low=0, high=high)
            for against, high in (drops or {}).items()
        ],
    )


@pytest.mark.parametrize(
    ("fields", "table", "passed", "message"),
    [
        ({"minimum": "0.8"}, result(0.8), True, ""),
        (
            {"minimum": "0.8"},
            result(0.79),
            False,
            "json 0.900 (95 % interval from 0.790, n=64) does not reach minimum 0.8",
        ),
        ({"maximumDrop": "0.02"}, result(0, {"previous": 0.02}), True, ""),
        (
            {"maximumDrop": "0.02"},
            result(0, {"previous": 0.021, "base": 0}),
            False,
            (
                "json fell by 0.010 against previous (95 % interval up to 0.021), "
                "more than maximumDrop 0.02 allows"
            ),
        ),
        ({"maximumDrop": "0.02", "against": "Base"}, result(0, {"base": 0.02}), True, ""),
        (
            {"maximumDrop": "0.02", "against": "Base"},
            result(0),
            False,
            "json was not compared with base",
        ),
        (
            {"suite": "math", "minimum": "0.1"},
            result(1),
            False,
            "math was not scored",
        ),
    ],
)
def test_judge(fields: dict[str, Any], table: EvaluateResult, passed: bool, message: str) -> None:
    verdict = judge(gate(**fields), table)
    assert (verdict.passed, verdict.message) == (passed, message)
    assert failures([gate(**fields)], table) == ([] if passed else [message])


def test_a_gate_that_asks_both_tells_both() -> None:
    both = gate(minimum="0.8", maximumDrop="0.02")
    message = judge(both, result(0.7, {"previous": 0.5})).message
    assert "does not reach minimum" in message
    assert "maximumDrop" in message


@given(st.integers(1, 100_000))
def test_the_perfect_bound_is_the_trainers(samples: int) -> None:
    assert perfect_bound(samples) == pytest.approx(wilson(samples, samples)[0], abs=1e-4)


@given(MINIMA)
def test_samples_suffice_with_some_wrong_answers_or_it_is_refused(minimum: str) -> None:
    asks = gate(minimum=minimum)
    n = samples_of(asks)
    assert 64 <= n <= 100_000
    if unreachable(asks) is None:
        allowed = 2 if n < 100_000 else 0
        assert wilson(n - allowed, n)[0] >= float(minimum) - 1e-4


@given(MINIMA, st.integers(8, 100_000))
def test_unreachable_agrees_with_the_trainers_interval(minimum: str, samples: int) -> None:
    asks = gate(minimum=minimum, samples=samples)
    best, threshold = wilson(samples, samples)[0], float(minimum)
    if abs(best - threshold) > 1e-4:
        assert (unreachable(asks) is None) == (best >= threshold)


@pytest.mark.parametrize("minimum", ["1", "0.99997", "0.999999"])
def test_no_number_of_samples_helps(minimum: str) -> None:
    assert "no interval reaches minimum" in (unreachable(gate(minimum=minimum)) or "")


def test_how_many_samples_would_help() -> None:
    told = unreachable(gate(minimum="0.95", samples=64)) or ""
    assert "even a perfect score proves only 0.943" in told
    needed = int(told.rpartition("samples: ")[2].removesuffix(" or more"))
    assert unreachable(gate(minimum="0.95", samples=needed)) is None
    assert unreachable(gate(minimum="0.95", samples=needed - 1)) is not None


@pytest.mark.parametrize(
    ("fields", "samples"),
    [
        ({"maximumDrop": "0.1"}, 64),
        ({"minimum": "0.5"}, 64),
        ({"minimum": "0.9"}, 80),
        ({"minimum": "0.99"}, 800),
        ({"minimum": "0.99", "samples": 400}, 400),
    ],
)
def test_samples_of(fields: dict[str, Any], samples: int) -> None:
    assert samples_of(gate(**fields)) == samples
