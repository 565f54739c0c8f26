"""What follows from what is seen: one scene per promise."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from tests.unit.core.builders import model_facts, pool, reread, spec, stack, stage
from tests.unit.core.simulation import Cluster, Operator

from latticeforge_operator.api import TrainingStatus
from latticeforge_operator.api.status import Attempt, Phase, StepPhase, StepStatus
from latticeforge_operator.core import ledger
from latticeforge_operator.core.idle import refuse
from latticeforge_operator.core.reconcile import reconcile
from latticeforge_operator.core.walk import APPROVE_ANNOTATION
from latticeforge_trainer.contract import ExitCode, PublishResult, Recompute, StepState

GATED = [{"suite": "json", "minimum": "0.5", "samples": 64}]


def operator(fields: dict[str, Any] | None = None, **more: Any) -> Operator:
    """An operator that has just seen a new stack, and launched its first step."""
    new = Operator(stack(fields, **more))
    new.look()
    new.step()
    return new


def ends(op: Operator, step: str, *, code: int = 0, good: bool = True, **more: Any) -> None:
    """The step's live Job ends, and the operator sees it."""
    op.cluster.tick(60)
    job = live(op, step)
    if code:
        op.cluster.fail(job, code, **more)
    else:
        op.cluster.succeed(job, good=good)
    op.look()
    op.step()


def live(op: Operator, step: str) -> str:
    (job,) = [job.name for job in op.cluster.live() if job.step == step]
    return job


def run_until(op: Operator, step: str, *, good: bool = True) -> None:
    """Every Job succeeds until that of `step` has been launched."""
    for _ in range(50):
        jobs = [job for job in op.cluster.live() if not job.suspended]
        if any(job.step == step for job in jobs):
            return
        for job in jobs:
            ends(op, job.step, good=good)
        op.look()
        op.step()
    raise AssertionError(op.status.message)


def record(op: Operator, name: str) -> StepStatus:
    return next(step for step in op.status.steps if step.name == name)


def attempts(op: Operator, name: str) -> list[tuple[str | None, bool]]:
    return [(attempt.outcome, attempt.counted) for attempt in record(op, name).attempts]


def phase(op: Operator) -> Phase:
    return op.status.phase


def spent(op: Operator) -> Decimal:
    return ledger.total(op.status.steps, Decimal(op.status.cost.retired))


def condition(status: TrainingStatus, kind: str) -> tuple[str, str]:
    found = next(c for c in status.conditions if c.type == kind)
    return found.status, found.message


def edited(op: Operator, stage_index: int = -1, **fields: Any) -> dict[str, Any]:
    """The spec with something of one stage changed."""
    new = op.training.spec.to_json()
    new["stages"][stage_index] |= fields
    return new


def set_rate(op: Operator, rate: str, stage_index: int = -1) -> None:
    op.edit(edited(op, stage_index, hyperparameters={"learningRate": rate}))


# --- the way through


def test_a_stack_runs_to_its_end() -> None:
    op = operator(spec(stage("math", evaluate=GATED), stage("cic", evaluate=GATED)))
    assert phase(op) is Phase.RUNNING
    assert condition(op.status, "Succeeded")[0] == "Unknown"
    op.run()
    assert phase(op) is Phase.SUCCEEDED
    assert op.status.message == "published at https://hub/owner/result"
    assert op.status.published is not None
    assert op.status.published.commit == "abc"
    assert op.status.progress.percent == 100
    assert condition(op.status, "Succeeded")[0] == "True"
    assert condition(op.status, "Progressing")[0] == "False"
    assert {step.phase for step in op.status.steps} == {StepPhase.DONE}
    assert {stage.phase for stage in op.status.stages} == {StepPhase.DONE}
    assert len(op.cluster.created) == len(set(op.cluster.created)) == len(op.status.steps)
    assert [event.reason for event in op.events].count("StepDone") == len(op.status.steps)
    assert op.status.finished_at is not None


def test_percent_never_falls_when_all_goes_well_and_an_end_is_expected() -> None:
    op = operator(spec(stage("math", evaluate=GATED), stage("cic", evaluate=GATED)))
    seen = [op.status.progress.percent]
    while phase(op) is Phase.RUNNING:
        for job in op.cluster.live():
            ends(op, job.step)
        op.step()
        seen.append(op.status.progress.percent)
        if phase(op) is Phase.RUNNING and seen[-1] > 10:
            assert op.status.progress.eta is not None
            assert op.status.progress.eta > op.cluster.now.strftime("%Y-%m-%dT%H:%M:%SZ")
    assert seen == sorted(seen)
    assert seen[-1] == 100
    assert op.status.progress.eta is None


def test_the_forecast_is_what_the_rest_costs_at_the_rate_so_far() -> None:
    op = operator(spec(stage("math"), stage("cic"), publish=None))
    op.cluster.base = model_facts(config=None)
    run_until(op, "math/train")
    assert op.status.cost.forecast is None
    ends(op, "math/train")
    assert op.status.cost.spent == "0.06"
    assert op.status.cost.forecast == "0.12"
    ends(op, "math/merge")
    assert live(op, "cic/train")
    assert op.status.cost.forecast == "0.12"
    ends(op, "cic/train", code=1)
    assert (op.status.cost.spent, op.status.cost.useful, op.status.cost.lost) == (
        "0.12",
        "0.06",
        "0.06",
    )
    assert op.status.cost.forecast is not None
    assert Decimal(op.status.cost.forecast) > Decimal("0.12")
    op.run()
    assert op.status.cost.forecast is None
    cost = op.status.cost
    assert Decimal(cost.useful) + Decimal(cost.lost) == Decimal(cost.spent)
    assert cost.waiting == "0.00"


def test_scores_stand_beside_those_of_base_and_previous() -> None:
    op = operator(spec(stage("base", evaluate=GATED), stage("cic", evaluate=GATED)))
    op.run()
    first, second = op.status.stages
    assert [(s.suite, s.value, s.base, s.previous) for s in first.scores] == [
        ("json", "1.000", "1.000", None)
    ]
    assert [(s.base, s.previous, s.passed) for s in second.scores] == [("1.000", "1.000", True)]
    assert second.model == [record(op, "cic/merge").digest]


@pytest.mark.parametrize("gates", [[], GATED])
@pytest.mark.parametrize(
    ("handoff", "artifact", "models"),
    [
        ("Merge", "Merged", [["math/merge"], ["cic/merge"]]),
        ("ContinueAdapter", "Merged", [["math/train"], ["cic/merge"]]),
        ("ContinueAdapter", "Adapter", [["math/train"], ["cic/train"]]),
    ],
)
def test_a_stage_names_what_forms_its_model_with_gates_and_without(
    handoff: str, artifact: str, models: list[list[str]], gates: list[dict[str, Any]]
) -> None:
    stages = stage("math", evaluate=gates), stage("cic", handoff=handoff, evaluate=gates)
    op = operator(spec(*stages, publish={"repository": "owner/result", "artifact": artifact}))
    op.run()
    expected = [[record(op, name).digest for name in names] for names in models]
    assert [stage.model for stage in op.status.stages] == expected


# --- planning


def test_without_a_pool_it_waits_and_goes_on_when_there_is_one() -> None:
    op = Operator(stack(), Cluster(pools=()))
    op.step()
    assert (phase(op), op.status.message[:19]) == (Phase.PENDING, "there is no GPUPool")
    assert op.status.started_at is None
    op.step()
    assert [event.reason for event in op.events] == ["Unplaced"]
    op.cluster.pools = (pool(),)
    op.step()
    assert op.cluster.created
    assert phase(op) is Phase.RUNNING


def test_a_pool_that_goes_away_ends_nothing_but_is_no_excuse_to_hold_on() -> None:
    op = operator()
    run_until(op, "math/train")
    op.cluster.pools = ()
    op.step()
    assert phase(op) is Phase.PENDING
    assert not op.cluster.jobs[live(op, "math/train")].suspended
    op.edit(op.training.spec.to_json() | {"suspend": True})
    op.step()
    assert op.cluster.jobs[live(op, "math/train")].suspended


def test_plan_runs_nothing_and_says_what_it_would() -> None:
    op = operator(spec(mode="Plan", compute={"gpus": 8}))
    assert phase(op) is Phase.PLANNED
    assert not op.cluster.created
    assert op.status.plan is not None
    assert (op.status.plan.pool, op.status.plan.gpus) == ("h200", 8)
    assert op.status.plan.steps[0] == "math/prepare"
    assert op.status.started_at is None
    op.edit(op.training.spec.to_json() | {"mode": "Run"})
    op.run()
    assert phase(op) is Phase.SUCCEEDED


def test_a_running_stack_that_shall_only_be_planned_ends_its_job() -> None:
    op = operator()
    op.edit(op.training.spec.to_json() | {"mode": "Plan"})
    op.step()
    assert phase(op) is Phase.PLANNED
    assert not op.cluster.jobs


def test_what_no_model_can_pass_is_refused_at_once() -> None:
    op = operator(spec(stage("a", evaluate=[{"suite": "json", "minimum": "0.95", "samples": 64}])))
    assert phase(op) is Phase.FAILED
    assert condition(op.status, "Accepted") == ("False", op.status.message)
    assert "give samples: 73 or more" in op.status.message
    assert not op.cluster.created
    before = op.status
    op.cluster.tick(60)
    op.step()
    assert op.status == before


def test_a_refusal_ends_what_runs_and_stays_as_it_is() -> None:
    op = operator()
    decision = refuse(2, op.status, op.view, "spec.stages: wrong", op.cluster.now)
    assert decision.delete == tuple(op.cluster.jobs)
    assert condition(decision.status, "Progressing")[0] == "False"
    assert condition(decision.status, "Succeeded")[0] == "False"
    op.cluster.tick(60)
    again = refuse(2, reread(decision.status), op.view, "spec.stages: wrong", op.cluster.now)
    assert again.status == decision.status
    assert not again.events


# --- failures


@pytest.mark.parametrize("code", [82, 83, 84, 1, 137])
def test_a_counted_failure_is_retried_after_a_while(code: int) -> None:
    op = operator()
    ends(op, "math/prepare", code=code)
    assert attempts(op, "math/prepare")[0][1]
    assert "starts again soon: it is so" in op.status.message
    decision = op.decide()
    assert decision.launch is None
    assert decision.wake_at is not None
    op.cluster.tick((decision.wake_at - op.cluster.now).total_seconds())
    op.step()
    assert record(op, "math/prepare").attempts[1].job == live(op, "math/prepare")
    assert [event.reason for event in op.events][-1] == "StepStarted"


@pytest.mark.parametrize("allowed", [0, 2])
def test_it_is_given_up_after_max_restarts(allowed: int) -> None:
    op = operator(spec(failure={"maxRestarts": allowed}))
    for _ in range(allowed + 1):
        ends(op, "math/prepare", code=1)
        op.cluster.tick(600)
        op.step()
    assert phase(op) is Phase.FAILED
    assert f"given up after {allowed + 1} failures" in op.status.message
    assert record(op, "math/prepare").phase is StepPhase.FAILED
    assert op.status.stages[0].phase is StepPhase.FAILED
    assert condition(op.status, "Succeeded")[0] == "False"


def test_a_train_step_that_stands_still_is_started_again_elsewhere() -> None:
    op = operator()
    run_until(op, "math/train")
    job = live(op, "math/train")
    for pod in op.cluster.active(job):
        op.cluster.pods[pod.name] = replace(pod, node="n1")
    op.cluster.tick(800)
    op.cluster.say(job, StepState.RUNNING)
    op.cluster.tick(800)
    op.look()
    assert op.step().delete == ()
    op.cluster.tick(200)
    op.look()
    assert op.step().delete == (job,)
    assert record(op, "math/train").attempts[0].outcome == "Stalled"
    assert "n1" in op.events[-1].message
    created = len(op.cluster.created)
    for _ in range(3):
        op.cluster.tick(60)
        op.look()
        op.step()
        assert len(op.cluster.created) == created, "the first attempt still holds its pods"
    op.cluster.end_leaving_pods()
    op.look()
    again = op.step().launch
    assert again is not None
    assert again.avoided_nodes == ("n1",)
    assert attempts(op, "math/train") == [("Stalled", True), (None, False)]


def test_the_end_of_a_stalled_job_is_asked_for_until_it_comes() -> None:
    op = operator()
    run_until(op, "math/train")
    job = live(op, "math/train")
    op.cluster.tick(1000)
    op.look()
    op.status = reread(op.decide().status)  # the operator died before it deleted the Job
    assert op.step().delete == (job,)
    assert phase(op) is Phase.RUNNING


@pytest.mark.parametrize("waits", ["evaluation", "pending", "suspended"])
def test_what_waits_or_evaluates_does_not_stall(waits: str) -> None:
    op = operator(spec(stage("math", evaluate=GATED)))
    step = "math/evaluate" if waits == "evaluation" else "math/train"
    run_until(op, step)
    if waits == "pending":
        op.cluster.stick(live(op, step))
    if waits == "suspended":
        op.edit(op.training.spec.to_json() | {"suspend": True})
        op.step()
    op.cluster.tick(7200)
    op.look()
    assert not op.step().delete
    assert attempts(op, step) == [(None, False)]


def test_numbers_that_fail_again_after_a_rollback_end_the_stack() -> None:
    op = operator()
    run_until(op, "math/train")
    ends(op, "math/train", code=ExitCode.NUMERICAL)
    op.cluster.tick(600)
    op.step()
    assert phase(op) is Phase.RUNNING
    ends(op, "math/train", code=ExitCode.NUMERICAL)
    assert phase(op) is Phase.FAILED
    assert "lower learningRate" in op.status.message


def test_memory_that_cannot_be_saved_ends_the_stack_at_once() -> None:
    op = operator()
    op.cluster.base = model_facts(config=None)  # starts with micro-batch 1
    run_until(op, "math/train")
    for _ in (Recompute.LAYERS, Recompute.OFFLOAD):  # what is tried before it is given up
        ends(op, "math/train", code=ExitCode.OUT_OF_MEMORY)
        assert phase(op) is Phase.RUNNING
        op.cluster.tick(600)
        op.step()
    ends(op, "math/train", code=ExitCode.OUT_OF_MEMORY)
    assert phase(op) is Phase.FAILED
    assert "ask for more GPUs" in op.status.message
    assert record(op, "math/train").attempts[0].remedy


def test_a_user_error_stops_at_once_with_the_trainers_sentence() -> None:
    op = operator()
    ends(op, "math/prepare", code=81)
    assert (phase(op), op.status.message) == (
        Phase.FAILED,
        "math/prepare failed: it is so",
    )
    op.cluster.tick(3600)
    op.step()
    assert len(op.cluster.created) == 1


def test_after_an_edit_a_failed_step_is_tried_again() -> None:
    op = operator()
    ends(op, "math/prepare", code=81)
    op.edit(op.training.spec.to_json() | {"failure": {"maxRestarts": 6}})
    op.look()
    op.step()
    assert phase(op) is Phase.RUNNING
    assert len(op.cluster.created) == 2
    op.run()
    assert phase(op) is Phase.SUCCEEDED


def test_an_interruption_is_retried_at_once_and_not_counted() -> None:
    op = operator(spec(failure={"maxRestarts": 0}))
    for _ in range(3):
        ends(op, "math/prepare", code=ExitCode.INTERRUPTED)
    assert attempts(op, "math/prepare") == [("Interrupted", False)] * 3 + [(None, False)]


def test_a_preempted_pod_is_replaced_within_the_attempt() -> None:
    op = operator()
    run_until(op, "math/train")
    op.cluster.preempt(live(op, "math/train"))
    op.look()
    op.step()
    assert attempts(op, "math/train") == [(None, False)]
    op.run()
    assert phase(op) is Phase.SUCCEEDED


def test_a_job_that_somebody_deleted_is_made_again_when_its_pods_are_gone() -> None:
    op = operator(spec(failure={"maxRestarts": 0}))
    run_until(op, "math/train")
    op.cluster.delete(live(op, "math/train"))
    op.look()
    op.step()
    assert "of a deleted Job to end" in op.status.message
    assert op.decide().launch is None
    op.cluster.tick(300)
    op.look()
    op.step()
    before = spent(op)
    assert before == Decimal("0.30")
    op.cluster.end_leaving_pods()
    op.look()
    op.step()
    assert attempts(op, "math/train") == [("Vanished", False), (None, False)]
    assert spent(op) == before
    assert op.status.cost.lost == "0.30"
    assert "Vanished" in [event.reason for event in op.events]


def test_a_success_waits_for_its_report() -> None:
    op = operator()
    job = live(op, "math/prepare")
    op.cluster.succeed(job)
    op.view = replace(op.cluster.observed(), progress={})
    decision = op.step()
    assert decision.wake_at is not None
    assert "its last report is due" in op.status.message
    op.look()
    op.step()
    assert record(op, "math/prepare").phase is StepPhase.DONE


def test_a_success_without_a_report_is_asked_again() -> None:
    op = operator()
    job = live(op, "math/prepare")
    op.cluster.succeed(job)
    op.cluster.progress.clear()
    op.cluster.tick(60)
    op.look()
    op.step()
    assert attempts(op, "math/prepare") == [("Unreported", True)]


@pytest.mark.parametrize(
    "result", [None, PublishResult(url="u", commit="c", bytes=1, files=1)], ids=["none", "other"]
)
def test_a_report_of_something_else_is_none(result: PublishResult | None) -> None:
    op = operator()
    op.cluster.succeed(live(op, "math/prepare"))
    op.cluster.progress = {
        key: report.model_copy(update={"result": result})
        for key, report in op.cluster.progress.items()
    }
    op.cluster.tick(60)
    op.look()
    op.step()
    assert attempts(op, "math/prepare") == [("Unreported", True)]


def test_a_failure_waits_for_the_exit_code_and_the_last_words() -> None:
    op = operator()
    before = op.cluster.observed()
    op.cluster.fail(live(op, "math/prepare"), 81)
    truth = op.cluster.observed()
    for stale in (
        replace(truth, pods=before.pods, progress={}),
        replace(truth, progress={}),
    ):
        op.view = stale
        op.step()
        assert phase(op) is Phase.RUNNING
        assert attempts(op, "math/prepare") == [(None, False)]
    op.look()
    op.step()
    assert op.status.message == "math/prepare failed: it is so"


def test_a_failure_does_not_wait_for_ever() -> None:
    op = operator()
    op.cluster.fail(live(op, "math/prepare"), 81, words=False)
    op.look()
    wake = op.step().wake_at
    assert wake is not None
    op.cluster.now = wake
    op.step()
    assert phase(op) is Phase.FAILED
    assert "the trainer refused the input" in op.status.message


def test_a_pod_that_nobody_can_place_is_explained() -> None:
    op = operator()
    run_until(op, "math/train")
    op.cluster.stick(live(op, "math/train"))
    op.look()
    op.step()
    assert op.status.message == "math/train: waiting: 0/3 nodes are available"
    assert spent(op) == 0


# --- a status that was lost


def test_a_job_whose_launch_was_not_recorded_is_found_again_and_paid_for() -> None:
    op = operator()
    run_until(op, "math/prepare")
    ends_prepare = live(op, "math/prepare")
    op.cluster.succeed(ends_prepare)
    op.look()
    op.step()
    run_until(op, "cic/prepare")
    op.cluster.succeed(live(op, "cic/prepare"))
    op.look()
    op.step()  # records the plan
    op.step(write_status=False)
    job = live(op, "math/train")
    op.cluster.tick(3600)
    op.look()
    op.step()
    assert [a.job for a in record(op, "math/train").attempts] == [job]
    assert spent(op) == Decimal("3.60")
    assert len([name for name in op.cluster.created if "-train-" in name]) == 1


def test_what_is_found_in_the_store_is_not_run() -> None:
    first = operator()
    first.run()
    found = {s.digest: s.result for s in first.status.steps if not s.name.endswith("/prepare")}
    second = operator(name="other", uid="uid-2")
    while record(second, "cic/prepare").phase is not StepPhase.DONE:
        job = second.cluster.live()[0]
        second.cluster.succeed(job.name)
        key = (job.step, job.digest)
        report = second.cluster.progress[key]
        assert report.result is not None
        body = report.result.to_json() | {"found": found}
        second.cluster.progress[key] = report.model_copy(
            update={"result": type(report.result).model_validate(body)}
        )
        second.cluster.tick(1)
        second.look()
        second.step()
    assert second.status.phase is Phase.SUCCEEDED
    assert len(second.cluster.created) == 2
    reused = [s.name for s in second.status.steps if s.phase is StepPhase.REUSED]
    assert reused == ["math/train", "math/merge", "cic/train", "cic/merge", "publish"]
    assert second.status.published is not None


def test_stages_with_the_same_data_each_prepare_by_themselves() -> None:
    data = [{"source": "owner/same"}]
    op = operator(spec(stage("one", data=data), stage("two", data=data)))
    digests = {step.digest for step in op.status.steps[:2]}
    assert len(digests) == 1
    op.run()
    assert phase(op) is Phase.SUCCEEDED
    assert [len(step.attempts) for step in op.status.steps] == [1] * len(op.status.steps)


# --- edits


def test_an_edit_of_the_running_step_ends_its_job_before_the_new_one_starts() -> None:
    op = operator()
    run_until(op, "cic/train")
    old = live(op, "cic/train")
    op.cluster.tick(600)
    set_rate(op, "3e-6")
    op.look()
    op.step()
    assert old not in op.cluster.jobs
    assert op.cluster.created[-1] == old
    op.look()
    op.cluster.tick(300)
    op.step()
    assert op.cluster.created[-1] == old, "its pod is still writing"
    op.cluster.end_leaving_pods()
    op.look()
    op.step()
    assert live(op, "cic/train") != old
    assert op.status.cost.retired == "0.900000"
    assert op.status.cost.lost == "0.90"
    assert len(record(op, "cic/train").attempts) == 1
    op.run()
    done = [name for name in op.cluster.created if "-train-" in name]
    assert len(done) == 3


def test_an_edit_and_back_again_pays_once() -> None:
    op = operator()
    run_until(op, "cic/merge")
    rate = op.training.spec.stages[-1].hyperparameters.learning_rate
    before = spent(op)
    assert before > 0
    set_rate(op, "3e-6")
    for _ in range(4):
        op.look()
        op.step()
        op.cluster.end_leaving_pods()
    assert spent(op) == before
    set_rate(op, rate)
    for _ in range(4):
        op.look()
        op.step()
        op.cluster.end_leaving_pods()
    assert spent(op) == before
    op.run()
    assert phase(op) is Phase.SUCCEEDED


def test_after_the_end_only_what_an_edit_changed_runs_again() -> None:
    op = operator(spec(stage("math", evaluate=GATED), stage("cic", evaluate=GATED)))
    op.run()
    done = len(op.cluster.created)
    set_rate(op, "3e-6")
    op.run()
    again = [op.cluster.launches[name].step for name in op.cluster.created[done:]]
    assert again == ["cic/train", "cic/merge", "cic/evaluate", "publish"]
    assert phase(op) is Phase.SUCCEEDED


def test_while_an_edited_stack_runs_again_it_has_not_succeeded() -> None:
    op = operator()
    op.run()
    set_rate(op, "3e-6")
    op.look()
    op.step()
    assert condition(op.status, "Succeeded")[0] == "Unknown"
    assert op.status.finished_at is None


def test_what_a_renamed_stage_has_cost_stays_counted() -> None:
    op = operator(spec(stage("one", data=[{"source": "owner/same"}])))
    op.run()
    before = spent(op)
    assert before > 0
    renamed = spec(stage("two", data=[{"source": "owner/same"}]))
    op.edit(renamed)
    for _ in range(5):
        op.look()
        op.step()
        assert spent(op) >= before
    op.run()
    assert spent(op) > before


def test_an_edit_of_the_data_of_a_later_stage_lets_the_running_one_wait() -> None:
    op = operator()
    run_until(op, "math/train")
    job = live(op, "math/train")
    op.edit(edited(op, data=[{"source": "owner/other"}]))
    for _ in range(3):
        op.cluster.tick(60)
        op.look()
        op.step()
        op.cluster.end_leaving_pods()
    assert op.cluster.jobs[job].suspended
    assert live(op, "cic/prepare")
    ends(op, "cic/prepare")
    assert not op.cluster.jobs[job].suspended
    op.run()
    trained = [name for name in op.cluster.created if "-train-" in name]
    assert trained[0] == job
    assert len(trained) == 2


def test_a_moved_gpu_count_is_billed_as_it_was_launched() -> None:
    op = operator(spec(compute={"gpus": 8}))
    run_until(op, "math/train")
    op.edit(op.training.spec.to_json() | {"compute": {"gpus": 1}})
    op.cluster.tick(3600)
    op.look()
    op.step()
    assert spent(op) == Decimal("28.8")


# --- suspension


def test_suspension_releases_the_gpus_and_resumes_the_same_attempt() -> None:
    op = operator()
    run_until(op, "math/train")
    job = live(op, "math/train")
    op.cluster.tick(600)
    op.edit(op.training.spec.to_json() | {"suspend": True})
    op.look()
    op.step()
    assert op.cluster.jobs[job].suspended
    assert (phase(op), "is checkpointing" in op.status.message) == (Phase.RUNNING, True)
    op.cluster.tick(100)
    op.look()
    op.step()
    op.cluster.end_leaving_pods()
    op.look()
    op.step()
    assert phase(op) is Phase.SUSPENDED
    op.cluster.tick(10_000)
    op.step()
    assert spent(op) == Decimal("0.7")
    op.edit(op.training.spec.to_json() | {"suspend": False})
    op.step()
    assert not op.cluster.jobs[job].suspended
    op.look()
    op.cluster.tick(100)
    op.look()
    op.step()
    assert spent(op) == Decimal("0.8")
    assert len(record(op, "math/train").attempts) == 1
    op.run()
    assert phase(op) is Phase.SUCCEEDED


def test_a_stack_that_is_suspended_from_the_start_runs_nothing() -> None:
    op = operator(spec(suspend=True))
    assert phase(op) is Phase.SUSPENDED
    assert not op.cluster.created


def test_suspension_while_waiting_for_a_restart() -> None:
    op = operator()
    ends(op, "math/prepare", code=1)
    op.edit(op.training.spec.to_json() | {"suspend": True})
    op.cluster.tick(600)
    op.step()
    assert phase(op) is Phase.SUSPENDED
    assert len(op.cluster.created) == 1


def test_a_queued_job_is_resumed_by_kueue_alone() -> None:
    op = operator(spec(compute={"queue": "research"}))
    run_until(op, "math/train")
    op.cluster.suspend(live(op, "math/train"))
    op.look()
    assert op.step().resume == ()


def test_a_job_that_is_in_no_queue_is_resumed_whatever_queue_the_stack_names() -> None:
    op = operator(spec(compute={"queue": "research"}))
    run_until(op, "math/prepare")
    job = live(op, "math/prepare")
    op.cluster.suspend(job)
    op.look()
    assert op.step().resume == (job,)


# --- money


def budgeted(limit: str, on_exceed: str) -> Operator:
    op = operator(spec(budget={"limit": limit, "onExceed": on_exceed}))
    run_until(op, "math/train")
    return op


def test_the_deadline_of_a_job_holds_the_budget_without_an_operator() -> None:
    op = budgeted("7.2", "Suspend")
    assert op.cluster.launches[live(op, "math/train")].deadline_seconds == 7200
    assert op.cluster.launches[op.cluster.created[0]].deadline_seconds is None


def test_a_spent_budget_suspends_until_it_is_raised() -> None:
    op = budgeted("3.6", "Suspend")
    op.cluster.tick(3600)
    op.look()
    op.step()
    assert op.cluster.jobs[live(op, "math/train")].suspended
    op.cluster.end_leaving_pods()
    op.look()
    op.step()
    assert phase(op) is Phase.SUSPENDED
    assert op.status.message == "the budget of 3.6 is spent; raise it to go on"
    assert [e.message[:4] for e in op.events if e.reason == "Budget"] == ["50 %", "80 %", "100 "]
    op.edit(op.training.spec.to_json() | {"budget": {"limit": "1000"}})
    op.look()
    op.step()
    op.run()
    assert phase(op) is Phase.SUCCEEDED


def test_a_spent_budget_can_end_the_stack_and_the_last_seconds_are_billed() -> None:
    op = budgeted("3.6", "Fail")
    op.cluster.tick(3600)
    op.look()
    op.step()
    assert (phase(op), op.status.message) == (Phase.FAILED, "the budget of 3.6 is spent")
    assert not op.cluster.live()
    op.cluster.tick(100)
    op.look()
    op.step()
    assert phase(op) is Phase.FAILED
    assert spent(op) == Decimal("3.7")


def test_a_budget_may_only_warn() -> None:
    op = budgeted("3.6", "Warn")
    assert op.cluster.launches[live(op, "math/train")].deadline_seconds is None
    op.cluster.tick(7200)
    op.cluster.say(live(op, "math/train"), StepState.RUNNING)
    op.look()
    op.step()
    assert phase(op) is Phase.RUNNING
    assert not op.cluster.jobs[live(op, "math/train")].suspended


def test_a_budget_that_is_all_but_spent_starts_no_job() -> None:
    op = budgeted("3.6", "Suspend")
    op.cluster.tick(3590)
    op.cluster.fail(live(op, "math/train"), 80, reason="DeadlineExceeded")
    op.look()
    created = len(op.cluster.created)
    for _ in range(5):
        op.step()
        op.look()
    assert len(op.cluster.created) == created
    assert phase(op) is Phase.SUSPENDED


# --- gates


def gated(on_failure: str) -> Operator:
    op = operator(spec(stage("math", evaluate=GATED, onGateFailure=on_failure), stage("cic")))
    run_until(op, "math/evaluate")
    ends(op, "math/evaluate", good=False)
    return op


def test_a_failed_gate_stops_the_stack() -> None:
    op = gated("Stop")
    assert phase(op) is Phase.FAILED
    assert "stage math did not pass its gate: json 0.000" in op.status.message
    assert op.status.stages[0].scores[0].passed is False
    op.run()
    assert not [x for x in op.cluster.launches.values() if x.step == "cic/train"]


def test_a_failed_gate_may_only_warn() -> None:
    op = gated("Warn")
    assert live(op, "cic/train")
    assert [e.warning for e in op.events if e.reason == "GateWarning"] == [True]
    op.run()
    assert phase(op) is Phase.SUCCEEDED


def test_a_failed_gate_may_ask_for_approval() -> None:
    op = gated("RequireApproval")
    assert phase(op) is Phase.AWAITING_APPROVAL
    assert f"kubectl annotate st elle {APPROVE_ANNOTATION}=math" in op.status.message
    op.edit(None, **{APPROVE_ANNOTATION: "other"})
    op.step()
    assert phase(op) is Phase.AWAITING_APPROVAL
    op.edit(None, **{APPROVE_ANNOTATION: "other, math"})
    op.run()
    assert phase(op) is Phase.SUCCEEDED


@pytest.mark.parametrize("on_failure", ["Stop", "RequireApproval"])
def test_a_gate_that_is_raised_later_stops_what_runs_behind_it(on_failure: str) -> None:
    op = operator(spec(stage("math", evaluate=GATED), stage("cic")))
    run_until(op, "math/evaluate")
    ends(op, "math/evaluate")
    job = live(op, "cic/train")
    drop = [{"suite": "json", "maximumDrop": "0", "against": "Previous", "samples": 64}]
    op.edit(edited(op, 0, evaluate=drop, onGateFailure=on_failure))
    op.look()
    op.step()
    assert job not in op.cluster.jobs or op.cluster.jobs[job].suspended
    assert phase(op) in {Phase.FAILED, Phase.AWAITING_APPROVAL}


def test_a_lowered_gate_lets_a_failed_stack_go_on_without_repeating() -> None:
    op = gated("Stop")
    drop = [{"suite": "json", "maximumDrop": "1", "against": "Base", "samples": 64}]
    op.edit(edited(op, 0, evaluate=drop))
    created = len(op.cluster.created)
    op.run()
    assert phase(op) is Phase.SUCCEEDED
    again = {op.cluster.launches[name].step for name in op.cluster.created[created:]}
    assert again == {"cic/train", "cic/merge", "publish"}


def test_a_suite_that_was_not_scored_fails_its_gate_and_nothing_else() -> None:
    op = operator(spec(stage("math", evaluate=GATED)))
    run_until(op, "math/evaluate")
    job = live(op, "math/evaluate")
    op.cluster.say(job, StepState.DONE, code=0)
    key = next(key for key in op.cluster.progress if key[0] == "math/evaluate")
    report = op.cluster.progress[key]
    assert report.result is not None
    empty = {"kind": "evaluate", "table": [{"model": "math", "scores": []}]}
    op.cluster.succeed(job)
    op.cluster.progress[key] = report.model_copy(
        update={"result": type(report.result).model_validate(empty)}
    )
    op.look()
    op.step()
    assert phase(op) is Phase.FAILED
    assert "json was not scored" in op.status.message
    assert op.status.stages[0].scores == []


# --- an end is an end


@pytest.mark.parametrize("phase", [Phase.SUCCEEDED, Phase.FAILED])
def test_an_ended_stack_stays_as_it_is_and_leaves_nothing_behind(phase: Phase) -> None:
    op = operator()
    stale = Attempt(number=0, job="elsewhere")
    op.status = op.status.model_copy(
        update={
            "phase": phase,
            "steps": [StepStatus(name="math/train", digest="d", attempts=[stale])],
        }
    )
    decision = reconcile(op.training, op.status, op.cluster.observed(), op.cluster.now)
    assert decision.status == op.status
    assert decision.delete == tuple(op.cluster.jobs)
    assert decision.launch is None


# --- after the end


def ended_with_ttl(**storage: str) -> Operator:
    op = operator(spec(ttlAfterFinished="2h", storage=storage))
    op.run()
    op.cluster.tick(7200 - 120)
    op.look()
    return op


def test_jobs_and_the_own_volume_go_after_the_ttl_and_the_record_stays() -> None:
    op = ended_with_ttl(size="1Ti")
    decision = op.decide()
    assert not decision.delete
    assert not decision.delete_volume
    assert decision.wake_at is not None
    op.cluster.tick((decision.wake_at - op.cluster.now).total_seconds())
    decision = op.step()
    assert decision.delete_volume
    assert set(decision.delete) == set(op.cluster.created)
    op.look()
    again = op.step()
    assert not again.delete
    assert not again.delete_volume
    assert phase(op) is Phase.SUCCEEDED
    assert op.status.published is not None
    assert len(op.status.steps) == len(op.cluster.created)


def test_a_stack_that_ends_is_looked_at_again_when_its_ttl_is_over() -> None:
    op = operator(spec(ttlAfterFinished="2h"))
    run_until(op, "publish")
    op.cluster.succeed(live(op, "publish"))
    op.look()
    assert op.step().wake_at == op.cluster.now + timedelta(hours=2)
    assert phase(op) is Phase.SUCCEEDED


def test_a_volume_that_is_named_stays() -> None:
    op = ended_with_ttl(claimName="store")
    op.cluster.tick(3600)
    decision = op.step()
    assert decision.delete
    assert not decision.delete_volume


def test_an_edit_after_the_volume_went_runs_everything_and_keeps_the_bill() -> None:
    op = ended_with_ttl(size="1Ti")
    op.cluster.tick(3600)
    op.step()
    op.look()
    before, created = spent(op), len(op.cluster.created)
    set_rate(op, "1e-5")
    op.step()
    assert op.cluster.created[created:] == [live(op, "math/prepare")]
    assert spent(op) == before > 0
    assert op.status.volume_removed_at is None
