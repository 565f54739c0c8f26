"""What a failed attempt was: every row of the table, and which of two wins."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from tests.unit.core.builders import START, report

from latticeforge_operator.core.policies.failure import (
    NEVER_RETRIED,
    TABLE,
    Evidence,
    classify,
    delay,
)
from latticeforge_operator.core.values import JobView, PodView
from latticeforge_trainer.contract import Progress, StepState

LATER = START + timedelta(minutes=1)


def evidence(
    *codes: int | None,
    reason: str = "BackoffLimitExceeded",
    disrupted: bool = False,
    progress: Progress | None = None,
    message: str = "Job has reached the specified backoff limit",
) -> Evidence:
    job = JobView("job", "a/train", "d" * 64, 0, START, failed=True, reason=reason, message=message)
    pods = tuple(
        PodView(f"pod-{i}", "job", "Failed", exit_code=code, disrupted=disrupted and i == 0)
        for i, code in enumerate(codes)
    )
    return Evidence(job, pods, progress)


def words(code: int, *, earlier: bool = False) -> Progress:
    at = START - timedelta(seconds=1) if earlier else LATER
    return report("a/train", "d" * 64, StepState.FAILED, at=at, message="so it is", exit_code=code)


@pytest.mark.parametrize(
    ("seen", "outcome", "counted"),
    [
        (evidence(81), "UserError", True),
        (evidence(progress=words(80)), "Interrupted", False),
        (evidence(progress=words(80, earlier=True)), "Failed", True),
        (evidence(81, disrupted=True), "UserError", True),
        (evidence(80, reason="DeadlineExceeded"), "Deadline", False),
        (evidence(137, disrupted=True), "Preempted", False),
        (evidence(1, 137, disrupted=True), "Preempted", False),
        (evidence(None, disrupted=True), "Preempted", False),
        (evidence(80), "Interrupted", False),
        (evidence(80, 80), "Interrupted", False),
        (evidence(82), "OutOfMemory", True),
        (evidence(82, 80), "OutOfMemory", True),
        (evidence(83), "Numerical", True),
        (evidence(84), "Network", True),
        (evidence(1), "Failed", True),
        (evidence(1, 80), "Failed", True),
        (evidence(137), "Failed", True),
        (evidence(), "Failed", True),
        (evidence(0, None), "Failed", True),
    ],
)
def test_first_match_wins(seen: Evidence, outcome: str, counted: bool) -> None:
    verdict = classify(seen)
    assert (verdict.outcome, verdict.counted) == (outcome, counted)
    assert verdict.reason


def test_every_row_is_tested_above() -> None:
    parameters = test_first_match_wins.pytestmark[0].args[1]  # type: ignore[attr-defined]  # pytest
    assert {row.outcome for row in TABLE} == {outcome for _, outcome, _ in parameters}


def test_only_user_errors_are_never_retried() -> None:
    assert {"UserError"} == NEVER_RETRIED


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        (evidence(81, progress=words(81)), "so it is"),
        (evidence(81, progress=words(81, earlier=True)), "the trainer refused the input"),
        (evidence(1, progress=words(1)), "so it is"),
        (evidence(1, 7), "exit code 1, 7; see its log"),
        (evidence(), "Job has reached the specified backoff limit"),
        (evidence(message=""), "its pod disappeared without an exit code"),
        (evidence(82, progress=report("a/train", "d" * 64, at=LATER)), "GPU memory ran out"),
    ],
)
def test_the_reason_is_the_trainers_sentence_if_it_is_about_this_attempt(
    seen: Evidence, reason: str
) -> None:
    assert reason in classify(seen).reason


@pytest.mark.parametrize(
    ("seen", "complete"),
    [
        (evidence(), False),
        (evidence(None), False),
        (evidence(81), False),
        (evidence(81, progress=words(81)), True),
        (evidence(81, progress=words(81, earlier=True)), False),
        (evidence(137), True),
        (evidence(137, 1), False),
        (evidence(None, disrupted=True), True),
        (evidence(reason="DeadlineExceeded"), True),
    ],
)
def test_evidence_is_complete_when_nothing_more_will_be_told(
    seen: Evidence, complete: bool
) -> None:
    assert seen.complete is complete


def test_what_the_kubelet_says_of_the_end_is_told() -> None:
    seen = evidence(137)
    pod = replace(seen.pods[0], ended_because="OOMKilled")
    assert classify(replace(seen, pods=(pod,))).reason == "its container ended: OOMKilled"


def test_every_row_says_what_follows() -> None:
    assert all(row.remedy for row in TABLE)


def test_delays_double_up_to_a_limit() -> None:
    seconds = [delay(count).total_seconds() for count in (0, 1, 2, 3, 7, 100)]
    assert seconds == [0, 5, 10, 20, 300, 300]


def test_the_log_kept_is_that_of_the_pod_that_failed() -> None:
    asked = PodView("p0", "job", "Failed", exit_code=143, log_tail="asked to stop")
    stopped = PodView("p1", "job", "Failed", exit_code=80, log_tail="stopped")
    broken = PodView("p2", "job", "Failed", exit_code=1, log_tail="Traceback")
    job = evidence(1).job
    assert Evidence(job, (asked, stopped, broken), None).log_tail == "Traceback"
    assert Evidence(job, (asked, stopped), None).log_tail == ""
