"""How long steps take, and how far that may be off."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.unit.core.planning.cases import LARGE, SMALL, TOKENS, asked, h200

from latticeforge_operator.api import StackedTrainingSpec
from latticeforge_operator.core.planning import History, Measured, Option, StageData, Work, timing
from latticeforge_operator.core.planning.options import Request, option_of
from latticeforge_trainer.contract import (
    EvaluatePayload,
    Method,
    StepKind,
    SuiteRequest,
    TrainRuntime,
)
from latticeforge_trainer.estimate.constants import RATES
from latticeforge_trainer.estimate.duration import (
    loading_seconds,
    result_seconds,
    writing_seconds,
)
from latticeforge_trainer.suites import SUITES


def planned(
    data: StageData = TOKENS, *, history: History | None = None, gpus: int = 8, **pool: Any
) -> Option:
    spec = asked(method="LoRA", evaluate=[{"suite": "math", "minimum": "0.5"}])
    request = Request(spec, SMALL, {"one": data}, history or History())
    return option_of(request, h200(**pool), gpus)


def work(option: Option, kind: StepKind) -> Work:
    return next(w for w in option.works if w.step.rpartition("/")[2] == kind.value)


def test_every_kind_of_step_is_timed_in_order() -> None:
    names = [w.step for w in planned().works]
    assert names == ["one/prepare", "one/train", "one/merge", "one/evaluate", "publish"]
    assert [w.units for w in planned().works] == [0, 8, 0, 1, 0]


def test_low_expected_and_high_are_in_order() -> None:
    for option in (planned(), planned(StageData(tokens=10**6)), planned(spot=True)):
        for w in option.works:
            assert 0 <= w.seconds.low <= w.seconds.expected <= w.seconds.high


def test_estimated_tokens_spread_more_than_counted_ones() -> None:
    counted = work(planned(), StepKind.TRAIN).seconds
    guessed = work(planned(replace(TOKENS, exact=False)), StepKind.TRAIN).seconds
    assert guessed.expected == counted.expected
    assert guessed.low < counted.low
    assert guessed.high > counted.high


def test_spot_nodes_may_cost_a_checkpoint_and_loading_again() -> None:
    stays, spot = (work(planned(spot=s), StepKind.TRAIN).seconds for s in (False, True))
    assert (spot.low, spot.expected) == (stays.low, stays.expected)
    assert spot.high >= stays.high + timing.CHECKPOINT_SECONDS


def test_training_waits_for_what_of_a_checkpoint_the_host_has_no_room_for() -> None:
    tokens = StageData(tokens=12_000_000, exact=True)
    request = Request(asked(method="Full"), LARGE, {"one": tokens})
    roomy = option_of(request, h200(hostMemory="6000Gi"), 8).stages[0]
    assert timing.stall_of(roomy) == 0
    option = option_of(request, h200(), 8)
    train, stage = work(option, StepKind.TRAIN), option.stages[0]
    seconds = tokens.tokens / stage.tokens_per_second if tokens.tokens else 0
    stall = timing.stall_of(stage)
    assert stage.host_left is not None
    beyond = 12 * LARGE.parameters.total - stage.host_left // 2
    assert stall == pytest.approx(beyond / RATES.disk_write)
    count = timing.checkpoints_in(seconds, timing.interval_of(stage))
    assert count == 1  # the next one would be due after ten times as long as the first held it up
    assert f"{count} checkpoints that it waits {stall:,.0f} s for" in train.why
    aside = loading_seconds(stage.run) + result_seconds(stage.run)
    assert train.seconds.expected == pytest.approx(seconds + aside + count * stall, abs=2)


def test_what_may_be_lost_is_the_time_between_two_and_that_of_writing_one() -> None:
    small = option_of(Request(asked(method="LoRA"), SMALL, {"one": TOKENS}), h200(), 8).stages[0]
    writing = writing_seconds(small.run)
    assert timing.may_be_lost(small) == timing.CHECKPOINT_SECONDS + writing
    large = option_of(Request(asked(method="Full"), LARGE, {"one": TOKENS}), h200(), 8).stages[0]
    slow = replace(large, host_left=None)  # it never waits, but writes for longer than ten minutes
    writing = writing_seconds(large.run)
    assert writing > timing.CHECKPOINT_SECONDS
    assert timing.may_be_lost(slow) == 2 * writing


@pytest.mark.parametrize(
    ("seconds", "interval", "count"),
    [(599, 600, 0), (600, 600, 1), (1800, 600, 3), (1800, 610, 2), (1800, 10_000, 1)],
)
def test_checkpoints_that_take_long_are_few(seconds: float, interval: float, count: int) -> None:
    assert timing.checkpoints_in(seconds, interval) == count


def test_what_was_measured_sharpens_the_next_prediction() -> None:
    slow = History((Measured("owner/base", Method.LORA, "h200", 0.5),))
    before, after = (work(planned(history=h), StepKind.TRAIN).seconds for h in (None, slow))
    model, measured = planned().stages[0], planned(history=slow).stages[0]
    assert measured.tokens_per_second == pytest.approx(model.tokens_per_second / 2)
    assert after.expected > 1.3 * before.expected
    assert (after.high - after.low) / after.expected < (before.high - before.low) / before.expected


@pytest.mark.parametrize(
    ("runs", "error"), [((), timing.SPEED_ERROR), ((0.5,), timing.MEASURED_ERROR)]
)
def test_measured_runs_make_it_surer(runs: tuple[float, ...], error: float) -> None:
    history = History(tuple(Measured("owner/base", Method.LORA, "h200", r) for r in runs))
    seconds = planned(StageData(), history=history, gpus=1).works[0].seconds
    assert seconds.low == pytest.approx(seconds.expected / (1 + error), abs=1)
    assert seconds.high == pytest.approx(seconds.expected / (1 - error), abs=1)


def test_a_million_tokens_stand_for_those_that_nobody_knows() -> None:
    option = planned(StageData())
    assert option.per_million
    assert not option.predicted
    seconds = timing.MILLION / option.stages[0].tokens_per_second
    assert [w.seconds.expected for w in option.works] == [round(seconds)]


def test_a_base_in_a_folder_is_not_brought() -> None:
    def preparing(spec: StackedTrainingSpec) -> Work:
        request = Request(spec, SMALL, {"one": TOKENS})
        return work(option_of(request, h200(), 8), StepKind.PREPARE)

    local = asked(base={"model": "./models/base"})
    assert preparing(local).seconds.expected < preparing(asked()).seconds.expected


@pytest.mark.parametrize(
    ("suites", "problems"),
    [
        ([("json", 128, 0), ("cic", 64, 0), ("phase", 64, 0)], 128),
        ([("json", 64, 0), ("cic", 64, 1)], 128),
        ([("cic", 64, 0), ("math", 400, 0)], 464),
    ],
    ids=["one domain", "other seeds are other problems", "two domains"],
)
def test_suites_of_a_domain_share_answers(
    suites: list[tuple[str, int, int]], problems: int
) -> None:
    requests = [SuiteRequest(suite=s, samples=n, seed=seed) for s, n, seed in suites]
    assert timing.problems_of(EvaluatePayload(suites=requests)) == problems


def test_answers_and_checkpoints_are_the_trainers() -> None:
    assert max(suite.max_new_tokens for suite in SUITES.values()) == timing.ANSWER_TOKENS
    cic = {name for name, suite in SUITES.items() if suite.group == "cic"}
    assert cic == set(timing.CIC)
    default = TrainRuntime.model_fields["checkpoint_every_seconds"].default
    assert default == timing.CHECKPOINT_SECONDS
