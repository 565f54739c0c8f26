"""When a train step counts as standing still."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from tests.unit.core.builders import START, report

from latticeforge_operator.core.policies.stall import stalls_at
from latticeforge_operator.core.values import JobView, PodView

TIMEOUT = timedelta(minutes=15)
JOB = JobView("job", "a/train", "d" * 64, 0, START)
POD = PodView("pod", "job", "Running", scheduled_at=START + timedelta(minutes=2))


def after(minutes: int) -> datetime:
    return START + timedelta(minutes=minutes)


def test_the_last_move_counts() -> None:
    moved = report("a/train", JOB.digest, at=after(5))
    earlier = report("a/train", JOB.digest, at=START - timedelta(days=1))
    assert stalls_at(JOB, [POD], None, TIMEOUT) == after(17)
    assert stalls_at(JOB, [POD], moved, TIMEOUT) == after(20)
    assert stalls_at(JOB, [POD], earlier, TIMEOUT) == after(17)
    later = replace(POD, scheduled_at=after(9))
    assert stalls_at(JOB, [POD, later], moved, TIMEOUT) == after(24)


@pytest.mark.parametrize(
    ("job", "pods"),
    [
        (JOB, []),
        (JOB, [replace(POD, phase="Failed")]),
        (JOB, [POD, replace(POD, phase="Pending", scheduled_at=None)]),
        (JOB, [replace(POD, deleting=True)]),
        (replace(JOB, suspended=True), [POD]),
        (replace(JOB, deleting=True), [POD]),
    ],
    ids=["no pod", "ended", "one waits", "pod goes", "suspended", "job goes"],
)
def test_what_waits_or_goes_does_not_stand_still(job: JobView, pods: list[PodView]) -> None:
    assert stalls_at(job, pods, None, TIMEOUT) is None
