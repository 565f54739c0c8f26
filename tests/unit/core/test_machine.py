"""Reconcile as a state machine: whatever users, pods and crashes do, the promises hold."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.unit.core.builders import CONFIG, model_facts, pool, stack
from tests.unit.core.simulation import Cluster, Operator
from tests.unit.core.strategies import specs

from latticeforge_operator.api.crds import stacked_training_crd
from latticeforge_operator.api.status import Phase, StepPhase
from latticeforge_operator.core import ledger
from latticeforge_operator.core.policies import gate
from latticeforge_operator.core.reconcile import FINAL
from latticeforge_operator.core.values import JobView
from latticeforge_operator.core.walk import APPROVE_ANNOTATION
from latticeforge_operator.devcluster.schema import unknown_fields
from latticeforge_operator.devcluster.validation import faults
from latticeforge_trainer.contract import EvaluateResult, ExitCode

STATUS_SCHEMA = stacked_training_crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"][
    "properties"
]["status"]
PRICES = ("3.60", "7.20")


class Machine(RuleBasedStateMachine):
    @initialize(spec=specs(), config=st.sampled_from([CONFIG, CONFIG, None]))
    def create(self, spec: dict[str, Any], config: dict[str, Any] | None) -> None:
        self.operator = Operator(stack(spec), Cluster(base=model_facts(config)))
        self.cluster = self.operator.cluster
        self.spent = Decimal(0)

    # --- the operator

    @rule(dies=st.sampled_from([False, False, False, True]))
    def passes(self, dies: bool) -> None:
        before, generation = self.operator.status.phase, self.operator.status.observed_generation
        again = self.operator.decide()
        assert self.operator.decide() == again, "the same picture, another decision"
        decision = self.operator.step(write_status=not dies)
        if before in FINAL and generation == self.operator.training.generation:
            assert decision.status.phase is before, "a terminal phase did not stay"
        status = decision.status.to_json()
        assert not faults(STATUS_SCHEMA, status)
        assert not list(unknown_fields(STATUS_SCHEMA, status))
        spent = ledger.total(decision.status.steps, Decimal(decision.status.cost.retired))
        assert spent >= self.spent, "spent fell"
        if not dies:
            self.spent = spent
        if decision.status.phase is Phase.SUCCEEDED:
            phases = {step.phase for step in decision.status.steps}
            assert phases <= {StepPhase.DONE, StepPhase.REUSED}
        if decision.launch is not None and decision.launch.step == "publish":
            self.check_gates()

    def check_gates(self) -> None:
        """Every gate that must hold has been passed or approved."""
        records = {step.name: step for step in self.operator.status.steps}
        approved = self.operator.training.annotations.get(APPROVE_ANNOTATION, "").split(",")
        for stage in self.operator.training.spec.stages:
            if not stage.evaluate or stage.on_gate_failure == "Warn":
                continue
            if stage.on_gate_failure == "RequireApproval" and stage.name in approved:
                continue
            name, digest = next(
                (name, record.digest)
                for name, record in records.items()
                if name == f"{stage.name}/evaluate"
            )
            progress = self.cluster.progress[name, digest]
            assert isinstance(progress.result, EvaluateResult)
            assert not gate.failures(stage.evaluate, progress.result), "published past a gate"

    @rule()
    def sees_jobs(self) -> None:
        view, truth = self.operator.view, self.cluster.observed()
        gone = {job.name for job in view.jobs} - self.cluster.jobs.keys()
        # The pods of a Job are heard of long before its deletion.
        pods = truth.pods if gone else view.pods
        self.operator.view = replace(view, jobs=truth.jobs, pods=pods)

    @rule()
    def sees_pods(self) -> None:
        self.operator.view = replace(self.operator.view, pods=self.cluster.observed().pods)

    @rule()
    def sees_reports(self) -> None:
        self.operator.view = replace(self.operator.view, progress=self.cluster.observed().progress)

    @rule()
    def starts_again(self) -> None:
        self.operator.look()

    @rule(jobs=st.integers(1, 4), good=st.sampled_from([True, True, False]))
    def goes_well_for_a_while(self, jobs: int, good: bool) -> None:
        for _ in range(jobs):
            self.cluster.tick(60)
            for job in self.running():
                self.cluster.succeed(job.name, good=good)
            self.leaving_pods_end()
            self.operator.look()
            self.passes(dies=False)

    # --- time and the cluster

    @rule(seconds=st.sampled_from([1, 5, 30, 600]))
    def time_goes_by(self, seconds: int) -> None:
        self.cluster.tick(seconds)

    @rule(seconds=st.sampled_from([3, 90, 86400]))
    def clock_is_set_back(self, seconds: int) -> None:
        self.cluster.now -= timedelta(seconds=seconds)

    @rule(days=st.sampled_from([1, 400]))
    def nobody_is_there_for_days(self, days: int) -> None:
        self.cluster.tick(days * 86400)

    def job(self, data: st.DataObject) -> JobView:
        return data.draw(st.sampled_from(self.running()))

    def running(self) -> list[JobView]:
        return [job for job in self.cluster.live() if self.cluster.active(job.name)]

    @precondition(lambda self: self.running())
    @rule(data=st.data(), good=st.booleans())
    def job_succeeds(self, data: st.DataObject, good: bool) -> None:
        self.cluster.succeed(self.job(data).name, good=good)

    @precondition(lambda self: self.running())
    @rule(
        data=st.data(),
        code=st.sampled_from([1, 137, *(c for c in ExitCode if c)]),
        words=st.booleans(),
        reason=st.sampled_from(["", "DeadlineExceeded"]),
    )
    def job_fails(self, data: st.DataObject, code: int, words: bool, reason: str) -> None:
        self.cluster.fail(self.job(data).name, code, words=words, reason=reason)

    @precondition(lambda self: self.running())
    @rule(data=st.data(), fate=st.sampled_from(["preempt", "delete", "stick"]))
    def job_suffers(self, data: st.DataObject, fate: str) -> None:
        getattr(self.cluster, fate)(self.job(data).name)

    @precondition(lambda self: self.preparing())
    @rule(data=st.data())
    def base_is_read(self, data: st.DataObject) -> None:
        self.cluster.reads_base(data.draw(st.sampled_from(self.preparing())).name)

    def preparing(self) -> list[JobView]:
        return [job for job in self.running() if job.step.endswith("/prepare")]

    @rule()
    def images_are_missing(self) -> None:
        self.cluster.pulling = True

    @rule()
    def pods_start(self) -> None:
        self.cluster.pods_start()

    @rule()
    def leaving_pods_end(self) -> None:
        self.cluster.end_leaving_pods()

    # --- users

    @rule(spec=specs())
    def user_applies(self, spec: dict[str, Any]) -> None:
        self.operator.edit(spec)

    @rule(key=st.sampled_from(["suspend", "mode"]))
    def user_toggles(self, key: str) -> None:
        other = {False: True, True: False, "Run": "Plan", "Plan": "Run"}
        spec = self.operator.training.spec.to_json()
        self.operator.edit(spec | {key: other[spec[key]]})

    @rule(rate=st.sampled_from(["1e-5", "3e-5"]))
    def user_changes_the_last_stage(self, rate: str) -> None:
        spec = self.operator.training.spec.to_json()
        spec["stages"][-1]["hyperparameters"]["learningRate"] = rate
        self.operator.edit(spec)

    @rule()
    def user_approves(self) -> None:
        names = ",".join(stage.name for stage in self.operator.training.spec.stages)
        self.operator.edit(None, **{APPROVE_ANNOTATION: names})

    @rule(price=st.sampled_from(PRICES), other=st.sampled_from([None, *PRICES]))
    def prices_change(self, price: str, other: str | None) -> None:
        more = () if other is None else (pool("other", pricePerGPUHour=other),)
        self.cluster.pools = (pool(pricePerGPUHour=price), *more)

    @rule()
    def pool_is_removed(self) -> None:
        self.cluster.pools = ()

    # --- promises

    @invariant()
    def no_step_lives_twice(self) -> None:
        if not hasattr(self, "cluster"):
            return
        living: dict[str, set[str]] = {}
        for pod in self.cluster.pods.values():
            if pod.active:
                step = self.cluster.launches[pod.job].step
                living.setdefault(step, set()).add(pod.job)
        assert all(len(jobs) == 1 for jobs in living.values()), living

    @invariant()
    def no_second_is_charged_twice(self) -> None:
        if not hasattr(self, "cluster"):
            return
        units = 0.0
        for name, seconds in self.cluster.paid.items():
            placement = self.cluster.launches[name.rsplit("-", 2)[0]].placement
            units += seconds * placement.units / placement.pods
        most = Decimal(units) * Decimal(max(PRICES)) / 3600
        assert self.spent <= most + Decimal("0.001"), (self.spent, most)

    @invariant()
    def the_bill_adds_up(self) -> None:
        if not hasattr(self, "cluster"):
            return
        cost = self.operator.status.cost
        parts = [Decimal(part) for part in (cost.useful, cost.lost, cost.waiting)]
        assert sum(parts) == Decimal(cost.spent)
        assert min(parts) >= 0
        if cost.forecast is not None:
            assert Decimal(cost.forecast) >= Decimal(cost.spent)

    def teardown(self) -> None:
        """Left alone by everybody, the stack comes to its end."""
        if not hasattr(self, "cluster"):
            return
        self.cluster.tick(3600)
        spec = self.operator.training.spec.to_json()
        spec |= {"suspend": False, "mode": "Run"}
        spec.pop("budget", None)
        self.cluster.pools = (pool(),)
        self.user_approves()
        for stage in spec["stages"]:
            stage["onGateFailure"] = "Warn"
        for ttl in ("7h", "8h"):  # what has failed before may be the end of it, until an edit
            self.operator.edit(spec | {"ttlAfterFinished": ttl})
            self.operator.look()
            self.operator.run()
        assert self.operator.status.phase is Phase.SUCCEEDED, self.operator.status.message


Machine.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestMachine = Machine.TestCase
