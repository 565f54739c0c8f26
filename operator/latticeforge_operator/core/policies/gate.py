"""Whether a stage passes: its scores against its gates.

A gate compares against the bound of the 95 % interval that is harder to pass by luck: the lower
bound of a score must reach `minimum`, the upper bound of a paired drop must not exceed
`maximumDrop`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from latticeforge_operator.api.training import Against, Gate
from latticeforge_trainer.contract import EvaluateResult, PairedDrop, Score

DEFAULT_SAMPLES = 64
MAX_SAMPLES = 100_000
"""As many as a gate may ask for."""
_Z2 = 3.841  # squared standard normal quantile of a two-sided 95 % interval


def perfect_bound(samples: int) -> float:
    """Wilson's lower 95 % bound when every answer is right."""
    return samples / (samples + _Z2)


def samples_of(gate: Gate) -> int:
    """How many held-out problems a gate asks: enough to reach its minimum with a few wrong."""
    if gate.samples is not None:
        return gate.samples
    minimum = Decimal(gate.minimum or 0)
    if minimum >= 1:
        return DEFAULT_SAMPLES
    return min(MAX_SAMPLES, max(DEFAULT_SAMPLES, 16 * math.ceil(8 / (1 - minimum) / 16)))


def unreachable(gate: Gate) -> str | None:
    """Why no model could pass the gate, or None."""
    if gate.minimum is None:
        return None
    bound, minimum = perfect_bound(samples_of(gate)), float(gate.minimum)
    if minimum > perfect_bound(MAX_SAMPLES):
        return f"suite {gate.suite}: no interval reaches minimum {gate.minimum}; ask for 0.99"
    if bound >= minimum:
        return None
    needed = math.ceil(_Z2 * minimum / (1 - minimum))
    return (
        f"suite {gate.suite}: with {samples_of(gate)} samples even a perfect score proves only "
        f"{bound:.3f}, less than minimum {gate.minimum}; give samples: {needed} or more"
    )


def failures(gates: Sequence[Gate], result: EvaluateResult) -> list[str]:
    """Why the gates are not passed, one message each; empty when they are."""
    verdicts = (judge(gate, result) for gate in gates)
    return [verdict.message for verdict in verdicts if not verdict.passed]


@dataclass(frozen=True)
class Verdict:
    """One gate's outcome."""

    suite: str
    passed: bool
    message: str
    """The comparison with both numbers."""


def judge(gate: Gate, result: EvaluateResult) -> Verdict:
    """Compare one gate with a score table."""
    score = _score(result, gate.suite)
    if score is None:
        return Verdict(gate.suite, passed=False, message=f"{gate.suite} was not scored")
    failures = []
    if gate.minimum is not None and score.low < float(gate.minimum):
        failures.append(
            f"{gate.suite} {score.value:.3f} (95 % interval from {score.low:.3f}, n={score.n}) "
            f"does not reach minimum {gate.minimum}"
        )
    if gate.maximum_drop is not None:
        failures += _judge_drop(gate, result)
    return Verdict(gate.suite, passed=not failures, message="; ".join(failures))


def _score(result: EvaluateResult, suite: str) -> Score | None:
    return next((s for s in result.table[0].scores if s.suite == suite), None)


def _judge_drop(gate: Gate, result: EvaluateResult) -> list[str]:
    against = "base" if gate.against is Against.BASE else "previous"
    drop = _drop(result, gate.suite, against)
    if drop is None:
        return [f"{gate.suite} was not compared with {against}"]
    if drop.high <= float(gate.maximum_drop or 0):
        return []
    message = (
        f"{gate.suite} fell by {drop.drop:.3f} against {against} (95 % interval up to "
        f"{drop.high:.3f}), more than maximumDrop {gate.maximum_drop} allows"
    )
    return [message]


def _drop(result: EvaluateResult, suite: str, against: str) -> PairedDrop | None:
    return next((d for d in result.drops if (d.suite, d.against) == (suite, against)), None)
