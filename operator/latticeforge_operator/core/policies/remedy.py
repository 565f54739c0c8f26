"""What the next attempt does differently, and when no other attempt would end better.

Only counted failures matter: an edit of a stack that had failed forgives them, so a remedy starts
anew with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from latticeforge_operator.api.status import Attempt, StepStatus
from latticeforge_operator.core.policies.failure import NEVER_RETRIED, Outcome
from latticeforge_trainer.contract import Recompute, StepKind, Strategy

HEADROOM = 0.05
"""Share of the GPU memory that each attempt which ran out of it makes later stages leave free:
twice the mean error of the estimate, which has just been shown to be too low."""

MOST_HEADROOM = 0.2
"""More would refuse what fits: then something else is wrong."""

NUMERICAL_FAILURES = 2
"""After so many, the same numbers would fail again."""


def strategy_after(attempts: Sequence[Attempt], strategy: Strategy) -> Strategy:
    """The strategy with less memory per GPU for each time that it ran out.

    The global batch stays: the trainer accumulates over twice as many forward passes.

    Args:
        attempts: The step's attempts so far.
        strategy: What was planned.
    """
    for _ in range(_counted(attempts, Outcome.OUT_OF_MEMORY)):
        strategy = _smaller(strategy) or strategy
    return strategy


def hopeless(kind: StepKind, attempts: Sequence[Attempt], strategy: Strategy) -> str | None:
    """Why another attempt would end like the last, or None.

    Args:
        kind: The step's kind.
        attempts: Its attempts so far, at least one.
        strategy: What was planned.
    """
    last = attempts[-1]
    reason = last.reason or last.outcome or ""
    if not last.counted:
        return None
    if last.outcome in NEVER_RETRIED:
        return reason
    if last.outcome == Outcome.NUMERICAL and _is_numerically_hopeless(attempts):
        return f"{reason} (again after going back to the last good checkpoint); lower learningRate"
    if last.outcome == Outcome.OUT_OF_MEMORY and kind is StepKind.TRAIN:
        before = strategy_after(attempts[:-1], strategy)
        if _smaller(before) is None:
            return (
                f"{reason} (with micro-batch 1, every layer recomputed and its input in host "
                "memory); ask for more GPUs, a shorter sequenceLength, or method LoRA or QLoRA"
            )
    return None


def headroom(steps: Iterable[StepStatus]) -> float:
    """Share of the GPU memory that later stages leave free, after so much has run out of it.

    Args:
        steps: The steps of the stack; forgiven attempts count here, for memory does not forgive.
    """
    attempts = (attempt for step in steps for attempt in step.attempts)
    failures = sum(attempt.outcome == Outcome.OUT_OF_MEMORY for attempt in attempts)
    return min(failures * HEADROOM, MOST_HEADROOM)


def avoided_nodes(attempts: Sequence[Attempt]) -> tuple[str, ...]:
    """Nodes on which the step has stalled; others are preferred from then on."""
    stalled = (attempt for attempt in attempts if attempt.outcome == Outcome.STALLED)
    return tuple(sorted({node for attempt in stalled for node in attempt.nodes}))


def _smaller(strategy: Strategy) -> Strategy | None:
    """The next strategy that needs less memory and gives the same result; None: there is none."""
    if strategy.micro_batch > 1:
        return strategy.model_copy(update={"micro_batch": strategy.micro_batch // 2})
    more = {Recompute.LAYERS: Recompute.OFFLOAD, Recompute.OFFLOAD: None}.get(
        strategy.recompute, Recompute.LAYERS
    )
    return strategy.model_copy(update={"recompute": more}) if more else None


def _is_numerically_hopeless(attempts: Sequence[Attempt]) -> bool:
    return _counted(attempts, Outcome.NUMERICAL) >= NUMERICAL_FAILURES


def _counted(attempts: Sequence[Attempt], outcome: str) -> int:
    return sum(attempt.counted and attempt.outcome == outcome for attempt in attempts)
