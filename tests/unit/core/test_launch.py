"""Names and configs of what is launched."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from tests.unit.core.builders import pool, prepare_result, spec, stack, stage
from tests.unit.core.simulation import Operator
from tests.unit.core.strategies import specs

from latticeforge_operator.core.launch import (
    MAX_NAME,
    Launcher,
    object_name,
    shared_name,
    store_claim,
)
from latticeforge_operator.core.planning import Placement
from latticeforge_operator.core.steps import expand
from latticeforge_trainer.contract import (
    EvaluateConfig,
    MergeConfig,
    PrepareConfig,
    PublishConfig,
    StepConfig,
    Strategy,
    TrainConfig,
)

# A Service's name, the strictest of all: RFC 1035.
LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
NAMES = st.from_regex(r"[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?", fullmatch=True)


@pytest.mark.parametrize(
    "name",
    [
        "elle",
        "qwen2.5-72b",
        "7b",
        "a" * 63,
        "a" * 30 + "." + "b" * 32,
        "a" * 30 + "-" * 32 + "b",
        "a" * 29 + ".-" * 16 + "b",
    ],
)
@given(attempt=st.integers(0, 9999), stage_name=st.sampled_from(["s", "s" * 40, "publish"]))
def test_names_are_labels_with_room_for_pods(name: str, attempt: int, stage_name: str) -> None:
    training = stack(spec(stage(stage_name)), name=name)
    for step in expand(training.spec, {}):
        job = object_name(training, step, attempt)
        assert len(job) <= MAX_NAME
        assert LABEL.fullmatch(job)
        assert LABEL.fullmatch(shared_name(training))


@given(NAMES)
def test_any_name_works(name: str) -> None:
    training = stack(name=name)
    for step in expand(training.spec, {}):
        assert LABEL.fullmatch(object_name(training, step, 12))
    assert len(store_claim(training)) <= 63


def test_a_name_is_unique_per_stack_step_and_digest() -> None:
    first, again = stack(), stack()
    steps = expand(first.spec, {})
    names = {object_name(training, step, 0) for training in (first, again) for step in steps}
    names |= {object_name(stack(uid="uid-2"), step, 0) for step in steps}
    other = stack(spec(stage("math"), stage("cic", data=[{"source": "owner/other"}])))
    names.add(object_name(first, expand(other.spec, {})[1], 0))
    assert len(names) == 2 * len(steps) + 1


def test_names_that_are_cut_alike_do_not_share_a_volume() -> None:
    fields = spec(storage={"size": "1Gi"})
    one, other = (stack(fields, name="n" * 62 + end) for end in "ab")
    assert store_claim(one) != store_claim(other)
    assert store_claim(stack(fields)) == "elle-store"
    assert store_claim(stack(spec(storage={"claimName": "mine"}))) == "mine"


def launched(fields: dict[str, Any]) -> dict[str, StepConfig]:
    """The config of every step of a stack that runs to its end."""
    operator = Operator(stack(fields))
    operator.look()
    operator.step()
    operator.run()
    launches = operator.cluster.launches.values()
    return {launch.step: launch.config for launch in launches}


def test_configs_name_the_artifacts_of_the_steps_before() -> None:
    gates = [{"suite": "json", "minimum": "0.5"}]
    fields = spec(stage("math", evaluate=gates), stage("cic", evaluate=gates))
    configs = launched(fields)
    prepare, train = configs["cic/prepare"], configs["cic/train"]
    merge, evaluate, publish = configs["cic/merge"], configs["cic/evaluate"], configs["publish"]
    assert isinstance(prepare, PrepareConfig)
    assert isinstance(train, TrainConfig)
    assert isinstance(merge, MergeConfig)
    assert isinstance(evaluate, EvaluateConfig)
    assert isinstance(publish, PublishConfig)
    upstream = configs["math/merge"].digest
    assert prepare.runtime.known == {
        "math/prepare": prepare_result(configs["math/prepare"].digest).artifact
    }
    assert prepare.runtime.merges is False
    assert prepare.runtime.destination == publish.payload
    assert train.runtime.data == prepare_result(prepare.digest).artifact
    assert (train.runtime.upstream_model, train.runtime.upstream_adapter) == (upstream, None)
    assert (merge.runtime.upstream_model, merge.runtime.adapter) == (upstream, train.digest)
    assert evaluate.runtime.model.artifact == merge.digest
    assert [m.name for m in evaluate.runtime.compare] == ["base", "math"]
    assert [m.artifact for m in evaluate.runtime.compare] == [None, upstream]
    assert publish.runtime.model.artifact == merge.digest
    assert [s.evaluate for s in publish.runtime.stages] == [
        configs["math/evaluate"].digest,
        evaluate.digest,
    ]


def test_a_continued_adapter_is_handed_over() -> None:
    fields = spec(stage("math", method="LoRA"), stage("cic", handoff="ContinueAdapter"))
    configs = launched(fields)
    train = configs["cic/train"]
    assert isinstance(train, TrainConfig)
    assert train.runtime.upstream_model is None
    assert train.runtime.upstream_adapter == configs["math/train"].digest
    assert train.payload.continue_adapter


def test_a_changed_tokenizer_is_part_of_every_model_that_is_evaluated() -> None:
    training = stack(spec(stage("math", evaluate=[{"suite": "json", "minimum": "0.5"}])))
    steps = {step.name: step for step in expand(training.spec, {})}
    prepared = prepare_result(steps["math/prepare"].digest)
    facts = prepared.base.model_copy(update={"tokenizer": "changed"})
    done = {"math/prepare": prepared.model_copy(update={"base": facts})}
    line = expand(training.spec, done)
    (evaluate,) = (step for step in line if step.name == "math/evaluate")
    placement = Placement(pool(), pods=1, gpus_per_pod=1, on_pool=True, strategy=Strategy())
    config = Launcher(training, line, done, "0").launch(evaluate, 0, placement, None).config
    assert isinstance(config, EvaluateConfig)
    models = [config.runtime.model, *config.runtime.compare]
    assert [model.tokenizer for model in models] == ["changed"] * 2
    assert len({model.identity for model in models}) == 2


@given(specs())
def test_every_config_can_be_read_by_the_trainer(fields: dict[str, Any]) -> None:
    fields |= {"mode": "Run", "suspend": False}
    fields.pop("budget", None)
    for config in launched(fields).values():
        assert TypeAdapter(StepConfig).validate_python(config.to_json()) == config


def test_only_prepare_and_publish_get_the_token() -> None:
    publish = {"repository": "owner/x", "tokenSecret": {"name": "hf"}}
    operator = Operator(stack(spec(publish=publish)))
    operator.look()
    operator.step()
    operator.run()
    with_token = {x.step for x in operator.cluster.launches.values() if x.needs_token}
    assert with_token == {"math/prepare", "cic/prepare", "publish"}
