"""Seconds and money: counted once, never lost, at the price of the moment."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.core.builders import START, pool

from latticeforge_operator.api.status import Attempt, StepStatus
from latticeforge_operator.core.ledger import (
    charge,
    charge_all,
    held_seconds,
    idle_seconds,
    pod_price,
    summary,
    total,
)
from latticeforge_operator.core.values import PodView

HOUR = timedelta(hours=1)
POD = PodView("pod-1", "job-1", "Running", scheduled_at=START)
TRY = Attempt(number=0, job="job-1", gpus_per_pod=8)


def step(*attempts: Attempt, name: str = "a/train") -> StepStatus:
    return StepStatus(name=name, digest="d", attempts=list(attempts))


@pytest.mark.parametrize(
    ("pod", "seconds"),
    [
        (POD, {"pod-1": 3600.0}),
        (replace(POD, scheduled_at=None), {}),
        (replace(POD, finished_at=START + HOUR / 2, phase="Failed"), {"pod-1": 1800.0}),
        (replace(POD, phase="Failed"), {}),
        (replace(POD, scheduled_at=START + 2 * HOUR), {"pod-1": 0.0}),
        (replace(POD, deleting=True), {"pod-1": 3600.0}),
    ],
)
def test_held_from_scheduled_to_gone(pod: PodView, seconds: dict[str, float]) -> None:
    assert held_seconds([pod], START + HOUR) == seconds


def test_the_price_is_per_gpu_and_hour() -> None:
    (charged,) = charge_all([step(TRY)], [POD], pool(), START + HOUR)
    assert charged.attempts[0].cost == "28.800000"
    assert charged.attempts[0].pods == {"pod-1": 3600.0}


@pytest.mark.parametrize("name", ["a/prepare", "a/merge", "publish"])
def test_steps_off_the_pool_cost_nothing(name: str) -> None:
    assert pod_price(name, TRY, pool()) == 0


def test_a_cpu_pod_costs_one_unit() -> None:
    attempt = TRY.model_copy(update={"gpus_per_pod": 0})
    assert pod_price("a/train", attempt, pool(pricePerGPUHour="0.5")) == Decimal("0.5")


def test_an_edited_number_of_gpus_does_not_change_what_runs() -> None:
    assert pod_price("a/evaluate", TRY, pool()) == Decimal("28.8")


def test_vanished_pods_stay_counted_and_new_ones_add() -> None:
    first = charge(TRY, {"pod-1": 100.0}, Decimal(3600))
    second = charge(first, {"pod-2": 50.0}, Decimal(3600))
    assert second.pods == {"pod-1": 100.0, "pod-2": 50.0}
    assert Decimal(second.cost) == 150


def test_a_changed_price_applies_from_then_on() -> None:
    first = charge(TRY, {"pod-1": 100.0}, Decimal(3600))
    second = charge(first, {"pod-1": 200.0}, Decimal(7200))
    assert Decimal(second.cost) == 100 + 200


def test_a_pod_of_another_job_is_not_charged() -> None:
    (charged,) = charge_all([step(TRY)], [replace(POD, job="job-2")], pool(), START + HOUR)
    assert charged.attempts == [TRY]


def test_an_ended_attempt_is_charged_while_its_pods_last() -> None:
    ended = TRY.model_copy(update={"outcome": "Vanished"})
    (charged,) = charge_all([step(ended)], [replace(POD, deleting=True)], pool(), START + HOUR)
    assert Decimal(charged.attempts[0].cost) == Decimal("28.8")


@given(
    st.lists(
        st.tuples(st.sampled_from(["pod-1", "pod-2", "pod-3"]), st.floats(0, 1e6)), max_size=30
    )
)
def test_cost_never_falls_and_follows_the_longest_seen(seen: list[tuple[str, float]]) -> None:
    attempt, longest = TRY, dict[str, float]()
    for name, seconds in seen:
        before = Decimal(attempt.cost)
        attempt = charge(attempt, {name: seconds}, Decimal(3600))
        assert Decimal(attempt.cost) >= before
        longest[name] = max(seconds, longest.get(name, 0.0))
        assert charge(attempt, {name: seconds}, Decimal(3600)) == attempt
    assert float(attempt.cost) == pytest.approx(sum(longest.values()), abs=1e-3)


def test_the_bill() -> None:
    done = TRY.model_copy(update={"outcome": "Done", "cost": "10", "pods": {"p": 10.0}})
    lost = TRY.model_copy(update={"outcome": "Failed", "cost": "2.5", "pods": {"q": 5.0}})
    runs = TRY.model_copy(update={"cost": "1"})
    bill = summary([step(lost, done), step(runs)], Decimal("0.25"), "EUR")
    assert (bill.spent, bill.lost, bill.retired) == ("13.75", "2.75", "0.25")
    assert (bill.currency, bill.gpu_seconds) == ("EUR", 120.0)
    assert total([step(lost, done)], Decimal("0.25")) == Decimal("12.75")


def test_pods_wait_for_their_peers_and_the_waiting_is_part_of_the_bill() -> None:
    ready = replace(POD, started_at=START + HOUR / 4)
    pulls = PodView("pod-2", "job-1", "Pending", scheduled_at=START)
    (waits,) = charge_all([step(TRY)], [ready, pulls], pool(), START + HOUR / 2)
    assert (waits.attempts[0].cost, waits.attempts[0].idle_cost) == ("28.800000", "28.800000")
    both = [ready, replace(pulls, phase="Running", started_at=START + HOUR / 2)]
    (runs,) = charge_all([waits], both, pool(), START + HOUR)
    assert (runs.attempts[0].cost, runs.attempts[0].idle_cost) == ("57.600000", "28.800000")
    ended = runs.attempts[0].model_copy(update={"outcome": "Failed"})
    bill = summary([step(ended)], Decimal(0), "USD")
    assert (bill.spent, bill.useful, bill.lost, bill.waiting) == ("57.60", "0.00", "28.80", "28.80")


@pytest.mark.parametrize(
    ("pod", "seconds"),
    [
        (replace(POD, started_at=START + HOUR / 2), 1800.0),
        (replace(POD, started_at=START - HOUR), 0.0),
        (replace(POD, started_at=START + 2 * HOUR), 3600.0),
        (replace(POD, phase="Failed", finished_at=START + HOUR / 2), 1800.0),
        (POD, 3600.0),
    ],
    ids=["started", "clocks differ", "clocks differ more", "never started", "starting"],
)
def test_idle_until_the_trainer_runs(pod: PodView, seconds: float) -> None:
    assert idle_seconds([pod], START + HOUR) == {"pod-1": seconds}
