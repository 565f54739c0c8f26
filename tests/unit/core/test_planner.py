"""A stack is planned once its base is known, and what is acted on stays."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.core.builders import model_facts, pool, reread, spec, stack, stage
from tests.unit.core.simulation import Cluster, Operator
from tests.unit.estimate.test_shapes import QWEN_72B, QWEN_HALF_B

from latticeforge_operator.api import StackedTrainingSpec
from latticeforge_operator.api.status import Attempt, Condition, Phase, PlanStatus, StepStatus
from latticeforge_operator.core import planner
from latticeforge_operator.core.planner import sentence
from latticeforge_operator.core.planning import Plan, plan_stack
from latticeforge_operator.core.policies import remedy
from latticeforge_operator.core.policies.remedy import headroom
from latticeforge_operator.core.values import Launch, PublicBase
from latticeforge_trainer.contract import ExitCode, Strategy, TrainConfig

SMALL = model_facts(QWEN_HALF_B)
LARGE = model_facts(QWEN_72B)
ROOMY = pool(hostMemory="1900Gi")
EIGHT = {"gpus": 8}
UNKNOWN = model_facts({"model_type": "mamba"})


def operator(
    fields: dict[str, Any] | None = None, base: Any = None, pools: Any = None, **more: Any
) -> Operator:
    """An operator that has just launched the first prepare step of a new stack."""
    cluster = Cluster(base=base or SMALL, pools=pools or (pool(),))
    fields = fields or spec(stage("one", **more), publish=None)
    new = Operator(stack({"failure": {"maxRestarts": 99}, **fields}), cluster)
    new.look()
    new.step()
    return new


def passes(op: Operator, number: int = 1) -> None:
    for _ in range(number):
        op.look()
        op.step()


def reads_base(op: Operator) -> None:
    """The running prepare step tells what the base is."""
    (job,) = [job.name for job in op.cluster.live()]
    op.cluster.reads_base(job)
    passes(op)


def trains(op: Operator, name: str = "one") -> Launch:
    """The launch of a stage's training, after all before it went well."""
    for _ in range(20):
        if launches := launches_of(op, f"{name}/train"):
            return launches[-1]
        op.cluster.tick(60)
        for job in op.cluster.live():
            op.cluster.succeed(job.name)
        op.cluster.end_leaving_pods()
        passes(op)
    raise AssertionError(op.status.message)


def launches_of(op: Operator, step: str) -> list[Launch]:
    return [launch for launch in op.cluster.launches.values() if launch.step == step]


def strategy(launch: Launch) -> Strategy:
    assert isinstance(launch.config, TrainConfig)
    return launch.config.runtime.strategy


def runs_out_of_memory(op: Operator) -> None:
    """The running attempt does, and the next begins."""
    (job,) = [job.name for job in op.cluster.live()]
    op.cluster.fail(job, ExitCode.OUT_OF_MEMORY)
    passes(op)
    op.cluster.tick(600)
    passes(op)


def plan(op: Operator) -> PlanStatus:
    assert op.status.plan is not None
    return op.status.plan


def phase(op: Operator) -> Phase:
    return op.status.phase


def planned(op: Operator) -> Condition:
    return next(c for c in op.status.conditions if c.type == "Planned")


# --- when it is planned


def test_it_is_planned_as_soon_as_prepare_has_read_the_base() -> None:
    op = operator()
    assert (planned(op).status, planned(op).reason) == ("Unknown", "BaseUnknown")
    reads_base(op)
    assert planned(op).status == "True"
    assert "time and cost follow when the tokens are counted" in planned(op).message
    trains(op)
    (own,) = plan(op).stages
    assert own.tokens_exact
    assert planned(op).message == sentence(plan(op))
    assert f"{plan(op).gpus} GPU" in planned(op).message
    assert "USD (" in planned(op).message


def test_what_is_planned_is_what_the_trainer_is_told() -> None:
    op = operator(method="Full", hyperparameters={"globalBatchTokens": 262144})
    launch = trains(op)
    (own,) = plan(op).stages
    assert strategy(launch) == own.planned
    assert launch.placement.pods * launch.placement.gpus_per_pod == plan(op).gpus
    assert strategy(launch).micro_batch > 1, "the trainer's own default is 1"


def test_what_does_not_fit_is_refused_before_its_weights_are_there() -> None:
    op = operator(spec(stage("one", method="Full"), compute={"gpus": 8}), LARGE)
    (prepare,) = op.cluster.live()
    reads_base(op)
    assert op.status.phase is Phase.FAILED
    assert planned(op).status == "False"
    assert "16 bytes × 72.7 B ÷ 8 = 135.4 GiB" in op.status.message
    assert "does not fit on 8 × H200" in op.status.message
    assert prepare.name not in op.cluster.jobs
    assert not [name for name in op.cluster.created if "-train-" in name]
    assert op.status.cost.spent == "0.00"


def test_an_edit_that_fits_lets_a_refused_stack_go_on() -> None:
    op = operator(spec(stage("one", method="Full"), compute={"gpus": 8}), LARGE)
    reads_base(op)
    op.edit(spec(stage("one", method="QLoRA"), publish=None, compute={"gpus": 8}))
    passes(op)
    assert strategy(trains(op)).processes == 8
    assert planned(op).status == "True"


@pytest.mark.parametrize("base", [UNKNOWN, model_facts(config=None)])
@pytest.mark.parametrize("accelerator", ["H200", "CPU"])
def test_of_what_is_not_known_nothing_is_predicted_and_it_runs(base: Any, accelerator: str) -> None:
    op = operator(base=base, pools=(pool(accelerator=accelerator),))
    launch = trains(op)
    assert strategy(launch) == Strategy()
    assert plan(op).stages == []
    assert (planned(op).status, planned(op).reason) == ("Unknown", "NotPredicted")
    op.run()
    assert op.status.phase is Phase.SUCCEEDED


def test_a_cpu_pool_needs_no_prediction() -> None:
    op = operator(pools=(pool("local", accelerator="CPU", gpusPerNode=0),))
    assert strategy(trains(op)) == Strategy()
    assert planned(op).message == "on pool local; nothing is predicted of it"
    assert op.status.cost.forecast is None


def test_mode_plan_says_how_to_get_one_without_running_anything() -> None:
    op = operator(spec(mode="Plan"))
    assert op.status.phase is Phase.PLANNED
    assert not op.cluster.created
    assert "not known before prepare has read it; `latticeforge plan FILE`" in op.status.message


def test_a_public_base_is_planned_before_anything_runs() -> None:
    op = operator_that_sees(PublicBase(QWEN_72B), spec(stage("one", method="Full"), compute=EIGHT))
    assert op.status.phase is Phase.FAILED
    assert "16 bytes × 72.7 B ÷ 8 = 135.4 GiB" in op.status.message
    assert not op.cluster.created


def test_what_prepare_says_comes_before_what_the_hub_says() -> None:
    op = operator_that_sees(PublicBase(QWEN_72B), spec(stage("one", method="QLoRA"), compute=EIGHT))
    assert planned(op).status == "True"
    large = plan(op).stages[0].memory
    op.cluster.base = SMALL
    (job,) = op.cluster.live()
    op.cluster.reads_base(job.name)
    op.view = replace(op.cluster.observed(), public_base=PublicBase(QWEN_72B))
    op.step()
    assert Decimal(plan(op).stages[0].memory or 0) < Decimal(large or 0)


def test_mode_plan_waits_for_the_hub_and_then_has_a_plan() -> None:
    op = operator_that_sees(PublicBase(awaited=True), spec(mode="Plan"))
    assert phase(op) is Phase.PENDING
    assert (planned(op).status, planned(op).reason) == ("Unknown", "BaseAwaited")
    op.view = replace(op.view, public_base=PublicBase(QWEN_HALF_B))
    op.step()
    assert phase(op) is Phase.PLANNED
    assert planned(op).message == op.status.message == sentence(plan(op))
    before = op.status
    op.view = replace(op.view, public_base=PublicBase(awaited=True))
    op.step()
    assert op.status == before, "an operator that starts again asks again, and has its plan"
    assert not op.cluster.created


def operator_that_sees(base: PublicBase, fields: dict[str, Any]) -> Operator:
    op = Operator(stack(fields), Cluster())
    op.view = replace(op.cluster.observed(), public_base=base)
    op.step()
    return op


def test_mode_plan_follows_the_pools() -> None:
    op = operator(spec(mode="Plan"))
    op.cluster.pools = (pool(), pool("cheap", pricePerGPUHour="1"))
    passes(op)
    assert (op.status.phase, plan(op).pool) == (Phase.PLANNED, "cheap")


def test_a_volume_for_one_node_keeps_a_plan_on_one_node() -> None:
    fields = {"base": model_facts(QWEN_72B), "pools": (replace_nodes(ROOMY, 4),)}
    own = operator(spec(stage("one", method="Full"), storage={"size": "40Ti"}), **fields)
    reads_base(own)
    assert plan(own).gpus == 8
    named = operator(spec(stage("one", method="Full")), **fields)
    reads_base(named)
    assert plan(named).gpus > 8


def replace_nodes(of: Any, nodes: int) -> Any:
    return of.model_copy(update={"nodes": nodes})


# --- what stays


def test_a_step_starts_only_as_its_plan_is_written() -> None:
    op = operator(hyperparameters={"globalBatchTokens": 262144})
    op.cluster.succeed(op.cluster.live()[0].name)
    op.look()
    decision = op.step(write_status=False)
    assert decision.launch is None
    assert decision.wake_at == op.cluster.now
    op.cluster.pools = (pool(pricePerGPUHour="36"), pool("other"))
    passes(op, 2)
    launch = launches_of(op, "one/train")[-1]
    assert (plan(op).pool, launch.placement.pool.name) == ("other", "other")


def test_a_changed_price_moves_only_what_has_not_started() -> None:
    op = operator(spec(stage("one"), stage("two"), publish=None))
    first = trains(op)
    forecast = op.status.cost.forecast
    op.cluster.pools = (pool(pricePerGPUHour="36"), pool("cheap", pricePerGPUHour="1"))
    passes(op)
    assert op.status.cost.forecast != forecast
    assert [job.step for job in op.cluster.live()] == ["one/train"]
    assert not [job for job in op.cluster.live() if job.suspended]
    second = trains(op, "two")
    assert second.placement.pool.name == first.placement.pool.name == "h200"
    assert strategy(second).processes == strategy(first).processes


@settings(max_examples=40, deadline=None)
@given(
    happenings=st.lists(st.sampled_from(["price", "pool", "preempt", "fail", "memory"]), max_size=6)
)
def test_attempts_of_a_step_differ_by_remedies_alone(happenings: list[str]) -> None:
    op = operator(method="Full")
    first = trains(op)
    for number, happening in enumerate(happenings):
        (job,) = [job.name for job in op.cluster.live()] or [""]
        if not job:
            break  # memory ran out for good
        match happening:
            case "price":
                op.cluster.pools = (*op.cluster.pools[1:], pool(pricePerGPUHour=str(number + 1)))
            case "pool":
                op.cluster.pools += (pool(f"p{number}", pricePerGPUHour="0.01"),)
            case "preempt":
                op.cluster.preempt(job)
            case "fail":
                op.cluster.fail(job, 1)
            case "memory":
                op.cluster.fail(job, ExitCode.OUT_OF_MEMORY)
        passes(op)
        op.cluster.tick(600)
        op.cluster.end_leaving_pods()
        passes(op)
    for launch in launches_of(op, "one/train"):
        remedied = {"micro_batch": 1, "recompute": "auto"}
        same = strategy(first).model_copy(update=remedied)
        assert strategy(launch).model_copy(update=remedied) == same
        assert launch.placement.pool.name == "h200"
        assert launch.placement.units == first.placement.units


def test_an_edit_of_the_gpus_is_followed_by_the_next_attempt() -> None:
    op = operator(spec(stage("one"), publish=None, compute={"gpus": 2}))
    trains(op)
    op.edit(spec(stage("one"), publish=None, compute={"gpus": 4}))
    passes(op)
    (job,) = op.cluster.live()
    op.cluster.fail(job.name, 1)
    passes(op)
    op.cluster.tick(600)
    passes(op, 2)
    assert [strategy(launch).processes for launch in launches_of(op, "one/train")] == [2, 4]


def test_what_an_earlier_operator_has_started_goes_on_as_it_began() -> None:
    op = operator(spec(stage("one", method="Full"), publish=None, compute={"gpus": 8}))
    op.cluster.base = model_facts(config=None)
    first = trains(op)
    # The old operator knew neither the base's config, nor conditions and plans of this kind.
    conditions = [c for c in op.status.conditions if c.type != "Planned"]
    op.status = reread(op.status.model_copy(update={"conditions": conditions}))
    (prepare,) = [step for step in op.status.steps if step.name == "one/prepare"]
    assert prepare.result is not None
    prepare.result["base"]["config"] = QWEN_HALF_B
    op.cluster.fail(next(job.name for job in op.cluster.live()), 1)
    passes(op)
    op.cluster.tick(600)
    passes(op)
    again = launches_of(op, "one/train")[-1]
    assert again.attempt == 1
    assert strategy(again) == strategy(first)


def test_only_what_is_left_is_planned() -> None:
    op = operator(spec(stage("one"), stage("two"), publish=None))
    trains(op, "two")
    hours = plan(op).hours
    rest = op.training.spec.to_json()
    rest["stages"][1]["hyperparameters"]["learningRate"] = "1e-6"
    op.edit(rest)
    passes(op)  # ends what ran
    op.cluster.end_leaving_pods()
    passes(op)
    assert hours is not None
    left = plan(op).hours
    assert left is not None
    assert Decimal(left.expected) < Decimal(hours.expected)
    assert [s.name for s in plan(op).stages] == ["one", "two"]
    assert "one/train" in plan(op).seconds


# --- memory that ran out


@pytest.mark.parametrize(
    ("outcomes", "share"),
    [
        ([], 0.0),
        (["Failed", "Preempted"], 0.0),
        (["OutOfMemory"], 0.05),
        (["OutOfMemory"] * 9, 0.2),
    ],
)
def test_room_is_left_for_what_was_not_foreseen(outcomes: list[str], share: float) -> None:
    attempts = [
        Attempt(number=n, job=f"job-{n}", outcome=outcome) for n, outcome in enumerate(outcomes)
    ]
    assert headroom([StepStatus(name="one/train", digest="d", attempts=attempts)]) == share


def test_after_memory_ran_out_later_stages_leave_more_room() -> None:
    sizes = {"globalBatchTokens": 4_194_304}
    fields = spec(
        stage("one", method="QLoRA", hyperparameters=sizes),
        stage("two", method="QLoRA", hyperparameters=sizes, handoff="ContinueAdapter"),
        publish=None,
        compute={"gpus": 1},
    )
    op = operator(fields, LARGE)
    trains(op)
    before = plan(op).stages
    runs_out_of_memory(op)
    after = plan(op).stages
    assert after[0] == before[0], "what runs is remedied, not planned anew"
    memory = [Decimal(stages[1].memory or 0) for stages in (before, after)]
    assert memory[1] < memory[0] * Decimal("0.97")


def test_memory_that_ran_out_refuses_nothing_that_may_still_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    op = operator(spec(stage("one"), stage("two"), publish=None))
    trains(op)
    before = plan(op)
    monkeypatch.setattr(remedy, "MOST_HEADROOM", 1.0)
    monkeypatch.setattr(remedy, "HEADROOM", 1.0)
    runs_out_of_memory(op)
    assert plan(op).made_from != before.made_from
    assert (planned(op).status, op.status.phase) == ("True", Phase.RUNNING)


# --- money


@pytest.mark.parametrize(
    ("on_exceed", "phase"),
    [("Suspend", Phase.SUSPENDED), ("Fail", Phase.FAILED), ("Warn", Phase.RUNNING)],
)
def test_a_budget_that_cannot_last_starts_nothing(on_exceed: str, phase: Phase) -> None:
    limit = {"limit": "0.08", "onExceed": on_exceed}
    op = operator(spec(stage("one"), publish=None, budget=limit))
    op.cluster.succeed(op.cluster.live()[0].name)
    passes(op, 3)
    assert op.status.phase is phase
    warnings = [event.message for event in op.events if event.reason == "Plan"]
    if phase is Phase.RUNNING:
        assert launches_of(op, "one/train")
        assert len(warnings) == 1
        assert "more than budget.limit 0.08" in warnings[0]
        assert warnings[0] in planned(op).message
    else:
        assert not launches_of(op, "one/train")
        assert "the rest is predicted to cost" in op.status.message
        assert "raise it to" in op.status.message
    op.edit(op.training.spec.to_json() | {"budget": {"limit": "9"}})
    op.run()
    assert op.status.phase is Phase.SUCCEEDED


def test_money_is_no_reason_to_end_what_runs() -> None:
    op = operator(spec(stage("one"), publish=None, budget={"limit": "9"}))
    trains(op)
    op.edit(op.training.spec.to_json() | {"budget": {"limit": "0.08"}})
    passes(op)
    assert [(job.step, job.suspended) for job in op.cluster.live()] == [("one/train", False)]


def test_the_forecast_is_the_plans_until_something_has_run() -> None:
    op = operator()
    trains(op)
    cost = plan(op).cost
    assert cost is not None
    assert op.status.cost.forecast == cost.expected
    end = op.cluster.now + timedelta(seconds=plan(op).seconds["one/train"])
    assert op.status.progress.eta == end.strftime("%Y-%m-%dT%H:%M:%SZ")


def test_stacks_that_are_alike_are_planned_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def counted(spec: StackedTrainingSpec, *more: Any, **fields: Any) -> Plan:
        asked.append(spec.base.model)
        return plan_stack(spec, *more, **fields)

    monkeypatch.setattr(planner, "plan_stack", counted)
    unlike = spec(stage("one"), publish=None, base={"model": "owner/unlike-all-others"})
    for gpus in (1, 1, 2):
        reads_base(operator(unlike | {"compute": {"gpus": gpus}}))
    assert len(asked) == 2
