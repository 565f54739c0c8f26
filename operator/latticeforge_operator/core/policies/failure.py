"""What a failed attempt was, and what follows: a table, first match wins.

Preemptions, evictions, lost nodes and interruptions are retried and not counted; user errors are
never retried; everything else is retried with exponential back-off and counted against
`maxRestarts`.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from latticeforge_operator.core.values import JobView, PodView
from latticeforge_trainer.contract import ExitCode, Progress

FIRST_DELAY = timedelta(seconds=5)
LONGEST_DELAY = timedelta(minutes=5)
DEADLINE = "DeadlineExceeded"
_SIGNALLED = 128  # shells and the kubelet report 128 + the signal's number


class Outcome(StrEnum):
    """How an attempt ended."""

    DONE = "Done"
    USER_ERROR = "UserError"
    DEADLINE = "Deadline"
    PREEMPTED = "Preempted"
    OUT_OF_MEMORY = "OutOfMemory"
    NUMERICAL = "Numerical"
    NETWORK = "Network"
    INTERRUPTED = "Interrupted"
    FAILED = "Failed"
    STALLED = "Stalled"
    VANISHED = "Vanished"
    """Somebody deleted its Job."""
    UNREPORTED = "Unreported"
    """It ended well, but its report was lost."""


@dataclass(frozen=True)
class Failure:
    """A failed attempt's class and remedy."""

    outcome: Outcome
    reason: str
    counted: bool
    remedy: str
    """What follows."""


@dataclass(frozen=True)
class Evidence:
    """What is known of a failed attempt."""

    job: JobView
    pods: tuple[PodView, ...]
    progress: Progress | None

    @property
    def exit_codes(self) -> set[int]:
        """Exit codes of its pods that did not end well.

        A pod that somebody deletes is gone with its code; the trainer's own report still tells it.
        """
        codes = {pod.exit_code for pod in self.pods if pod.exit_code not in (None, 0)}
        return codes or self._reported_codes

    @property
    def _reported_codes(self) -> set[int]:
        progress = self.progress
        if progress is None or not progress.exit_code:
            return set()
        earlier = datetime.fromisoformat(progress.updated_at) < self.job.created_at
        return set() if earlier else {progress.exit_code}

    @property
    def complete(self) -> bool:
        """Whether nothing more is to be learned: watches of other kinds may still bring it."""
        if self.job.reason == DEADLINE or any(pod.disrupted for pod in self.pods):
            return True
        killed = all(code > _SIGNALLED for code in self.exit_codes)
        return bool(self.exit_codes) and (killed or bool(self.last_words))

    @property
    def log_tail(self) -> str:
        """The end of the log of the pod that failed, not of a peer that was asked to stop."""
        asked = {None, 0, ExitCode.INTERRUPTED, _SIGNALLED + signal.SIGTERM}
        failed = (pod for pod in self.pods if pod.exit_code not in asked)
        return next((pod.log_tail for pod in failed if pod.log_tail), "")

    @property
    def last_words(self) -> str:
        """The trainer's own sentence, if it belongs to the end of this attempt."""
        return self.progress.message if self.progress and self._reported_codes else ""


def _code(code: ExitCode) -> Callable[[Evidence], bool]:
    return lambda evidence: code in evidence.exit_codes


@dataclass(frozen=True)
class _Row:
    outcome: Outcome
    matches: Callable[[Evidence], bool]
    retried: bool
    counted: bool
    otherwise: str
    """The reason when the trainer left no words of its own."""
    remedy: str


TABLE = (
    _Row(
        Outcome.USER_ERROR,
        _code(ExitCode.USER_ERROR),
        retried=False,
        counted=True,
        otherwise="the trainer refused the input; see its log",
        remedy="none: the input must be corrected",
    ),
    _Row(
        Outcome.DEADLINE,
        lambda e: e.job.reason == DEADLINE,
        retried=True,
        counted=False,
        otherwise="the budget's deadline was reached",
        remedy="goes on when the budget allows it",
    ),
    _Row(
        Outcome.PREEMPTED,
        lambda e: any(pod.disrupted for pod in e.pods),
        retried=True,
        counted=False,
        otherwise="its pod was preempted or its node lost",
        remedy="resumes from the last checkpoint",
    ),
    _Row(
        Outcome.OUT_OF_MEMORY,
        _code(ExitCode.OUT_OF_MEMORY),
        retried=True,
        counted=True,
        otherwise="GPU memory ran out",
        remedy="half the micro-batch, twice the accumulation",
    ),
    _Row(
        Outcome.NUMERICAL,
        _code(ExitCode.NUMERICAL),
        retried=True,
        counted=True,
        otherwise="loss or gradients were not finite",
        remedy="goes back to the last good checkpoint",
    ),
    _Row(
        Outcome.NETWORK,
        _code(ExitCode.NETWORK),
        retried=True,
        counted=True,
        otherwise="the Hub or the network failed",
        remedy="tried again after a pause",
    ),
    _Row(
        # Last of all: when one pod of several fails, the others are asked to stop.
        Outcome.INTERRUPTED,
        lambda e: e.exit_codes == {ExitCode.INTERRUPTED},
        retried=True,
        counted=False,
        otherwise="it was asked to stop and wrote a checkpoint",
        remedy="resumes from the checkpoint",
    ),
    _Row(
        Outcome.FAILED,
        lambda _: True,
        retried=True,
        counted=True,
        otherwise="",
        remedy="started again after a pause",
    ),
)


NEVER_RETRIED = frozenset(row.outcome for row in TABLE if not row.retried)
"""Outcomes after which only an edit of the stack helps."""


def classify(evidence: Evidence) -> Failure:
    """The first row of the table that matches."""
    row = next(row for row in TABLE if row.matches(evidence))
    reason = evidence.last_words or row.otherwise or _unknown(evidence)
    return Failure(row.outcome, reason, row.counted, row.remedy)


def _unknown(evidence: Evidence) -> str:
    codes = ", ".join(str(code) for code in sorted(evidence.exit_codes))
    told = next((pod.ended_because for pod in evidence.pods if pod.ended_because), "")
    if told:
        return f"its container ended: {told}"
    if codes:
        return f"its process ended with exit code {codes}; see its log"
    return evidence.job.message or "its pod disappeared without an exit code"


def delay(counted_restarts: int) -> timedelta:
    """How long to wait before the next attempt, after that many counted failures."""
    if counted_restarts == 0:
        return timedelta()
    doublings = min(counted_restarts - 1, 10)
    return min(FIRST_DELAY * (1 << doublings), LONGEST_DELAY)
