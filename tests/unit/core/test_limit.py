"""The limit holds, whenever the operator lives or is dead: by the Jobs' own deadlines.

A dead operator cannot bill what deleted pods hold while they end: at most their grace each time.
"""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.unit.core.builders import model_facts, pool, spec, stack, stage
from tests.unit.core.simulation import Cluster, Operator

from latticeforge_operator.cluster.manifests import GRACE_SECONDS
from latticeforge_operator.core.policies.budget import LEAST_SECONDS
from latticeforge_trainer.contract import StepKind

PER_SECOND = Decimal(2)
"""Of one pod: two GPUs at a dollar a second each."""
GRACE = GRACE_SECONDS[StepKind.TRAIN]

WAYS = st.lists(
    st.one_of(
        st.tuples(st.just("alone"), st.integers(1, 400)),
        st.tuples(st.sampled_from(["pass", "suspend", "fail", "preempt", "leave"]), st.just(0)),
    ),
    max_size=30,
)


def operator(limit: int, **fields: Any) -> Operator:
    """A stack whose first step on the pool is about to be started."""
    budget = {"limit": str(limit), "onExceed": "Suspend"}
    training = stack(spec(stage("a"), budget=budget, compute={"gpus": 2}, **fields))
    base = model_facts(config=None)  # of what is not predicted, all that counts is what is spent
    op = Operator(training, Cluster(pools=(pool(pricePerGPUHour="3600"),), base=base))
    op.look()
    op.step()
    op.cluster.succeed("".join(op.cluster.jobs))
    passes(op)
    return op


def passes(op: Operator) -> None:
    op.look()
    op.step()


def held(op: Operator) -> Decimal:
    """What the pods on the pool have really cost."""
    cluster = op.cluster
    on_pool = [name for name, launch in cluster.launches.items() if launch.placement.on_pool]
    seconds = sum(s for pod, s in cluster.paid.items() if pod.rsplit("-", 2)[0] in on_pool)
    return Decimal(seconds) * PER_SECOND


def suspend(op: Operator) -> None:
    op.edit(op.training.spec.to_json() | {"suspend": not op.training.spec.suspend})


@settings(max_examples=200, deadline=None)
@example(ways=[("suspend", 0), ("preempt", 0)], limit=120)
@given(ways=WAYS, limit=st.integers(1, 2000))
def test_never_past_the_limit_plus_one_grace(ways: list[tuple[str, int]], limit: int) -> None:
    op = operator(limit, failure={"maxRestarts": 9})
    bound = limit + GRACE * PER_SECOND
    for way, seconds in [*ways, ("pass", 0), ("alone", 1400)]:
        live = [job for job in op.cluster.live() if op.cluster.active(job.name)]
        match way:
            case "alone":
                # What a deleted pod held after a dead operator last saw it, nobody can tell him.
                bound += GRACE * PER_SECOND if op.cluster.leaving() else 0
                op.cluster.run_alone(seconds)
            case "pass":
                passes(op)
            case "suspend":
                suspend(op)
                passes(op)
            case "leave":
                op.cluster.end_leaving_pods()
            case "fail" if live:
                op.cluster.fail(live[0].name, 1)
            case "preempt" if live:
                op.cluster.preempt(live[0].name)
        assert held(op) <= bound, (held(op), bound, way)


def test_a_resumed_job_gets_what_is_left_and_not_its_first_deadline_again() -> None:
    op = operator(1000)
    (job,) = op.cluster.live()
    assert job.deadline_seconds == 500
    op.cluster.run_alone(300)
    suspend(op)
    passes(op)
    op.cluster.end_leaving_pods()
    passes(op)
    suspend(op)
    passes(op)
    assert op.cluster.jobs[job.name].deadline_seconds == 200
    op.cluster.run_alone(3000)
    assert held(op) == 1000


def test_a_job_that_kueue_holds_back_gets_what_is_left() -> None:
    op = operator(1000)
    (launched,) = op.cluster.live()
    job = op.cluster.jobs[launched.name] = replace(launched, queue="research")
    op.cluster.run_alone(300)
    op.cluster.suspend(job.name)
    passes(op)
    op.cluster.end_leaving_pods()
    passes(op)
    assert op.cluster.jobs[job.name] == replace(job, suspended=True, deadline_seconds=200)


@pytest.mark.parametrize("limit", [1, 2 * LEAST_SECONDS - 1])
def test_a_limit_that_pays_for_nothing_starts_nothing(limit: int) -> None:
    op = operator(limit)
    assert not [job for job in op.cluster.live() if op.cluster.launches[job.name].placement.on_pool]
    assert "budget" in op.status.message
