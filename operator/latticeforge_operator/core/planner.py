"""The plan of a stack from pass to pass: made once its base is known, kept where it is acted on.

It lives in `status.plan`, and a step on the pool starts only as it is written there: whoever
decides next, after whatever crash, finds the same. A stage that has started keeps its strategy,
because checkpoints are cut for it, and its stack keeps the pool. The others are planned anew when
the spec, the pools, what `prepare` has counted or memory that ran out give a reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from decimal import Decimal
from functools import lru_cache, partial
from typing import Any

from latticeforge_operator.api import GPUPool, StackedTraining, StackedTrainingSpec, TrainingStatus
from latticeforge_operator.api.status import PlanStatus
from latticeforge_operator.api.training import Budget, OnExceed
from latticeforge_operator.core import ledger
from latticeforge_operator.core.outlook import BASE_AWAITED, CONDITION, Facts, Outlook, Verdict
from latticeforge_operator.core.planning import (
    History,
    Plan,
    PlanError,
    choose_pool,
    place,
    plan_stack,
    plan_status,
)
from latticeforge_operator.core.policies import remedy
from latticeforge_operator.core.values import Event
from latticeforge_trainer.contract import StepKind, digest_of
from latticeforge_trainer.estimate.base_model import BaseModel, read_base_model
from latticeforge_trainer.estimate.errors import EstimateError


def pool_at_hand(
    spec: StackedTrainingSpec, plan: PlanStatus | None, pools: Sequence[GPUPool]
) -> GPUPool:
    """The pool that a stack is on, or would be if nothing were known of it.

    Raises:
        PlanError: None serves.
    """
    return choose_pool(_pinned(spec, plan, pools) or spec, tuple(pools))


def _pinned(
    spec: StackedTrainingSpec, plan: PlanStatus | None, pools: Sequence[GPUPool]
) -> StackedTrainingSpec | None:
    """The spec with pool and GPUs as they are planned; None where its user or the pools forbid."""
    if plan is None or plan.pool not in {pool.name for pool in pools}:
        return None
    compute, gpus = spec.compute, plan.gpus or spec.compute.gpus
    if compute.pool not in {None, plan.pool} or compute.gpus not in {None, gpus}:
        return None
    compute = compute.model_copy(update={"pool": plan.pool, "gpus": gpus})
    return spec.model_copy(update={"compute": compute})


def _within_reach(spec: StackedTrainingSpec, pool: GPUPool) -> GPUPool:
    """The pool with the nodes that a plan may span: a volume is made before there is a plan.

    Its access mode, which cannot be changed later, is for one node unless more GPUs are asked for.
    """
    own_volume = spec.storage.size is not None and spec.compute.gpus is None
    return pool.model_copy(update={"nodes": 1}) if own_volume else pool


@dataclass(frozen=True)
class _Question:
    """What is to be planned, known by what the answer follows from."""

    key: str
    history: History
    ask: Callable[[], Plan] = field(compare=False)


@lru_cache(maxsize=128)
def _answer(question: _Question) -> Plan:
    """A plan, made once for all stacks that are alike: it takes as long as dozens of passes."""
    return question.ask()


class Planner:
    """Plans one stack.

    Args:
        training: The stack.
        status: Its status as last written.
        pools: Those that there are.
        facts: What is known of the stack.
    """

    def __init__(
        self,
        training: StackedTraining,
        status: TrainingStatus,
        pools: Sequence[GPUPool],
        facts: Facts,
    ) -> None:
        self._status, self._facts, self._generation = status, facts, training.generation
        self._market = pools
        pinned = _pinned(training.spec, status.plan, pools) if facts.on_pool else None
        self._spec, self._stays = pinned or training.spec, pinned is not None
        settled = facts.trained | (facts.begun if self._stays else frozenset())
        self._rest = [stage for stage in self._spec.stages if stage.name not in settled]
        self._pools = tuple(
            _within_reach(self._spec, p)
            for p in pools
            if not pinned or p.name == pinned.compute.pool
        )
        self._spent = ledger.total(status.steps, Decimal(status.cost.retired))
        self._headroom = remedy.headroom(facts.records.values())

    def outlook(self) -> Outlook:
        """Where the stack runs: by its plan if that still holds, else by a new one.

        Raises:
            PlanError: No pool serves.
        """
        if not self._rest:
            return self._settled()
        config = self._facts.config
        if config is None:
            return self._unknown()
        try:
            model = read_base_model(config)
        except EstimateError as error:
            message = f"nothing is predicted of {self._spec.base.model}: {error}"
            return self._outlook(self._sketch(), Verdict("Unknown", "NotPredicted", message))
        made_from = self._fingerprint(config)
        return self._kept(made_from) or self._planned(model, made_from)

    def _unknown(self) -> Outlook:
        """Nobody has said what the base is, or at least not yet."""
        name = self._spec.base.model
        if self._facts.is_read:
            message = f"nothing is predicted of {name}: an earlier version of prepare has read it"
            return self._outlook(self._sketch(), Verdict("Unknown", "NotPredicted", message))
        if self._facts.public_base.awaited:
            known = self._kept(self._status.plan.made_from) if self._status.plan else None
            asked = Verdict("Unknown", BASE_AWAITED, f"the Hub is asked what {name} is")
            return known or self._outlook(self._sketch(), asked)
        message = f"{name} is not known before prepare has read it"
        return self._outlook(self._sketch(), Verdict("Unknown", "BaseUnknown", message))

    def _kept(self, made_from: str) -> Outlook | None:
        """The plan as it is written, if it was made from that."""
        old, verdict = self._status.plan, self._written_verdict()
        if old is None or verdict is None or not made_from or old.made_from != made_from:
            return None
        return self._outlook(self._renamed(old), verdict)

    def _settled(self) -> Outlook:
        """Nothing is left to plan."""
        old = self._status.plan if self._stays else None
        plan = self._sketch() if old is None else self._renamed(old)
        verdict = self._written_verdict() if self._stays else None
        if verdict is None or verdict.value == "False":
            verdict = Verdict("True", "Planned", sentence(plan))
        return self._outlook(plan, verdict)

    def _planned(self, model: BaseModel, made_from: str) -> Outlook:
        """A new plan of what has not started."""
        sketch = self._sketch()
        try:
            chosen = self._chosen(model)
        except PlanError as error:
            plan = sketch.model_copy(update={"made_from": made_from})
            return self._outlook(plan, Verdict("False", "Infeasible", str(error)))
        new = plan_status(chosen, sketch.steps)
        stages = {stage.name: stage for stage in (*sketch.stages, *new.stages)}
        plan = new.model_copy(
            update={
                "stages": [stages[s.name] for s in self._spec.stages if s.name in stages],
                "seconds": sketch.seconds | new.seconds,
                "made_from": made_from,
            }
        )
        verdict = Verdict("True", "Planned", "; ".join([sentence(plan), *chosen.warnings]))
        events = tuple(Event("Plan", warning, warning=True) for warning in chosen.warnings)
        return replace(self._outlook(plan, verdict), events=events)

    def _chosen(self, model: BaseModel) -> Plan:
        """The plan of the rest.

        Neither memory that ran out nor money refuses what may still be done: the one is tried with
        less room, the other looked at again when a stage begins.
        """
        for headroom in dict.fromkeys((self._headroom, 0.0)):
            for limit in self._limits():
                spec = self._spec.model_copy(update={"stages": self._rest, "budget": limit})
                try:
                    return self._plan(spec, model, headroom)
                except PlanError as error:
                    refusal = error
        raise refusal

    def _plan(self, spec: StackedTrainingSpec, model: BaseModel, headroom: float) -> Plan:
        pools, data, history = self._pools, self._facts.data, self._facts.history
        market = [(pool.name, pool.spec.to_json(), pool.nodes) for pool in pools]
        counted = {stage: asdict(known) for stage, known in data.items()}
        return _answer(
            _Question(
                digest_of(spec.to_json(), market, self._facts.config, counted, headroom),
                history,
                partial(
                    plan_stack, spec, pools, model, data=data, history=history, headroom=headroom
                ),
            )
        )

    def _limits(self) -> list[Budget | None]:
        """What the rest may cost, then the same as a warning."""
        limit = self._spec.budget
        if limit is None:
            return [None]
        left = max(Decimal(0), Decimal(limit.limit) - self._spent).quantize(ledger.CENT)
        strict = limit.model_copy(update={"limit": str(left)})
        return [strict, strict.model_copy(update={"on_exceed": OnExceed.WARN})]

    def _sketch(self) -> PlanStatus:
        """Where it runs, with what earlier plans said of stages that have started."""
        pool = choose_pool(self._spec, self._pools)
        train = place(self._spec, self._spec.stages[0], StepKind.TRAIN, pool)
        running = self._facts.begun - {stage.name for stage in self._rest}
        old = self._status.plan
        names = [step.name for step in self._facts.steps]
        return PlanStatus(
            pool=pool.name,
            gpus=train.pods * train.gpus_per_pod,
            steps=names,
            stages=[s for s in old.stages if s.name in running] if old else [],
            seconds=_of_stages(running, old.seconds) if old else {},
        )

    def _renamed(self, plan: PlanStatus) -> PlanStatus:
        """The plan with the line as it is now: whether weights are merged shows late."""
        return plan.model_copy(update={"steps": [step.name for step in self._facts.steps]})

    def _fingerprint(self, config: Mapping[str, Any]) -> str:
        """Of what the plan of the rest follows from."""
        pools = {pool.name: (pool.spec.to_json(), pool.nodes) for pool in self._market}
        data = {stage: (d.tokens, d.sequences) for stage, d in self._facts.data.items()}
        return digest_of(self._generation, pools, config, data, self._headroom)[:16]

    def _written_verdict(self) -> Verdict | None:
        found = next((c for c in self._status.conditions if c.type == CONDITION), None)
        return Verdict(found.status, found.reason, found.message) if found else None

    def _outlook(self, plan: PlanStatus, verdict: Verdict) -> Outlook:
        pool = next(pool for pool in self._pools if pool.name == plan.pool)
        return Outlook(self._spec, pool, plan, verdict)


def _of_stages(stages: frozenset[str], seconds: Mapping[str, int]) -> dict[str, int]:
    return {step: s for step, s in seconds.items() if step.partition("/")[0] in stages}


def sentence(plan: PlanStatus) -> str:
    """`8 GPUs of h200: ZeRO-3, micro-batch 2; 3.40 h, 97.60 USD (88.00 to 110.00)`."""
    where = f"{plan.gpus} GPU{'s' * (plan.gpus != 1)} of pool {plan.pool}"
    if not plan.stages:
        return f"on pool {plan.pool}; nothing is predicted of it" if not plan.gpus else where
    words = {stage.words: stage.name for stage in plan.stages}
    how = "; ".join(w if len(words) == 1 else f"{name}: {w}" for w, name in words.items())
    if plan.hours is None or plan.cost is None:
        return f"{where}: {how}; time and cost follow when the tokens are counted"
    money = f"{plan.cost.expected} {plan.currency} ({plan.cost.low} to {plan.cost.high})"
    return f"{where}: {how}; {plan.hours.expected} h, {money}"
