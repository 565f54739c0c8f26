"""docs/reference/exit-codes.md: how an attempt can end, and what follows.

What the operator does with a code is asked of the operator's own table.
"""

from __future__ import annotations

from datetime import UTC, datetime

from docs.generate.markdown import code, page, table

from latticeforge_operator.core.policies.failure import (
    FIRST_DELAY,
    LONGEST_DELAY,
    Evidence,
    Outcome,
    classify,
)
from latticeforge_operator.core.policies.remedy import NUMERICAL_FAILURES
from latticeforge_operator.core.values import JobView, PodView
from latticeforge_trainer.contract import ExitCode
from latticeforge_trainer.errors import StepError

_OTHER = 1
"""A code that the contract does not know."""

_ADVICE = {
    ExitCode.DONE: "nothing",
    ExitCode.INTERRUPTED: "nothing",
    ExitCode.USER_ERROR: "correct what `status.message` names, and apply the stack again",
    ExitCode.OUT_OF_MEMORY: (
        "nothing; if it fails for good, more GPUs, a shorter `sequenceLength`, or an adapter method"
    ),
    ExitCode.NUMERICAL: "nothing the first time; if it fails for good, lower `learningRate`",
    ExitCode.NETWORK: "nothing; if it fails for good, look at the Hub, proxy and network policies",
    _OTHER: "read `status.steps[].attempts[].log`, the end of the failed pod's log",
}

_OUTCOMES = {
    Outcome.DONE: ("exit code 0, and its report has come", "goes on with the next step"),
    Outcome.USER_ERROR: ("exit code 81", "fails the stack at once"),
    Outcome.DEADLINE: (
        "the Job's deadline: what is left of the budget, divided by the price",
        "does what `budget.onExceed` says",
    ),
    Outcome.PREEMPTED: (
        "the pod was preempted or evicted, or its node was lost",
        "starts it again from the last checkpoint",
    ),
    Outcome.OUT_OF_MEMORY: ("exit code 82", "starts it again with less memory"),
    Outcome.NUMERICAL: (
        "exit code 83",
        f"goes back to the last good checkpoint; after {NUMERICAL_FAILURES} times it fails",
    ),
    Outcome.NETWORK: ("exit code 84", "starts it again after a pause"),
    Outcome.INTERRUPTED: ("exit code 80 of every pod", "starts it again from the checkpoint"),
    Outcome.FAILED: (
        "any other code, or the kernel killed it (137)",
        "starts it again after a pause",
    ),
    Outcome.STALLED: (
        "a train step whose pods run reported nothing new for `failure.stallTimeout`",
        "ends it and starts it again, elsewhere if there is room",
    ),
    Outcome.VANISHED: ("somebody deleted its Job", "starts it again"),
    Outcome.UNREPORTED: (
        "exit code 0, but no report came",
        "asks again: what is complete in the store is reported at once",
    ),
}

_UNCOUNTED = {Outcome.DONE, Outcome.VANISHED}
_COUNTED = {Outcome.STALLED, Outcome.UNREPORTED}
"""Of those that no exit code tells."""

_INTRODUCTION = f"""\
A step's process ends with one of these codes; `status.steps[].attempts[]` keeps the `outcome`, the
`reason` in the trainer's own words, the `remedy`, and whether the attempt was `counted`. More
counted attempts than `failure.maxRestarts` fail the stack; the pauses between them double from
{FIRST_DELAY.seconds} to {LONGEST_DELAY.seconds} seconds. An edit of a failed stack forgives what
was counted."""


def text() -> str:
    """The page."""
    return page(
        "Exit codes and failure classes",
        _INTRODUCTION,
        "## Exit codes",
        table(
            ("code", "name", "meaning", "what the operator does", "counted", "what you do"),
            [_row(exit_code) for exit_code in (*ExitCode, _OTHER)],
        ),
        "## Outcomes",
        "`latticeforge_attempts` counts attempts by these words.",
        table(
            ("outcome", "how it is told", "what the operator does", "counted"),
            [
                (code(outcome.value), told, does, _yes(_is_counted(outcome)))
                for outcome, (told, does) in ((o, _OUTCOMES[o]) for o in Outcome)
            ],
        ),
        "## Of the commands",
        "Those of `latticeforge` itself are in [cli.md](cli.md).",
    )


def _row(exit_code: int) -> tuple[str, ...]:
    if exit_code == ExitCode.DONE:
        done = ("the result is complete", "goes on with the next step", "no")
        return "0", code(Outcome.DONE.value), *done, _ADVICE[exit_code]
    verdict = classify(_evidence(exit_code))
    return (
        "other" if exit_code == _OTHER else str(exit_code),
        code(verdict.outcome.value),
        _meaning(exit_code),
        verdict.remedy,
        _yes(verdict.counted),
        _ADVICE[exit_code],
    )


def _meaning(exit_code: int) -> str:
    """In the words of the error that ends with the code."""
    errors = (e for e in StepError.__subclasses__() if e.exit_code == exit_code)
    told = next((e.__doc__ or "" for e in errors), "a defect, or the kernel killed it (137)")
    return told.rstrip(".")


def _is_counted(outcome: Outcome) -> bool:
    if outcome in _UNCOUNTED | _COUNTED:
        return outcome in _COUNTED
    evidence = (_evidence(c) for c in (*ExitCode, _OTHER) if c)
    special = (_evidence(_OTHER, reason="DeadlineExceeded"), _evidence(_OTHER, disrupted=True))
    verdicts = map(classify, (*evidence, *special))
    return next(verdict.counted for verdict in verdicts if verdict.outcome is outcome)


def _evidence(exit_code: int, *, reason: str = "", disrupted: bool = False) -> Evidence:
    """An attempt whose one pod ended so."""
    now = datetime(2026, 1, 1, tzinfo=UTC)
    job = JobView("job", "s/train", "d", 0, created_at=now, failed=True, reason=reason)
    pod = PodView("pod", "job", "Failed", exit_code=exit_code, disrupted=disrupted)
    return Evidence(job, (pod,), None)


def _yes(value: bool) -> str:
    return "yes" if value else "no"
