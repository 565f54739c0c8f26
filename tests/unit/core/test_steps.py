"""spec → steps: which, from which weights, merged where, and what their digests depend on."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from tests.unit.core.builders import model_facts, prepare_result, spec, stack, stage
from tests.unit.core.strategies import specs

from latticeforge_operator.core.steps import BASE, Step, Weights, expand, kind_of, merges, recipes
from latticeforge_trainer.contract import EvaluatePayload, PublishPayload, StepKind, step_digest


def gates() -> list[dict[str, Any]]:
    return [{"suite": "json", "minimum": "0.5", "samples": 64}]


def line(fields: dict[str, Any], *, quantization: str | None = None) -> dict[str, Step]:
    """The whole line, with every prepare step done."""
    parsed = stack(fields).spec
    prepared = {
        step.name: prepare_result(step.digest, model_facts(quantization=quantization))
        for step in expand(parsed, {})
        if step.kind is StepKind.PREPARE
    }
    return {step.name: step for step in expand(parsed, prepared)}


def two(first: str, second: str, handoff: str = "Merge", **publish: str) -> dict[str, Any]:
    return spec(
        stage("math", method=first, evaluate=gates()),
        stage("cic", method=second, handoff=handoff, evaluate=gates()),
        publish={"repository": "owner/x", **publish},
    )


@pytest.mark.parametrize(
    ("fields", "quantization", "names"),
    [
        (two("Full", "Full"), None, "math/train math/evaluate cic/train cic/evaluate publish"),
        (
            two("LoRA", "LoRA"),
            None,
            "math/train math/merge math/evaluate cic/train cic/merge cic/evaluate publish",
        ),
        (
            two("LoRA", "Full"),
            None,
            "math/train math/merge math/evaluate cic/train cic/evaluate publish",
        ),
        (
            two("Full", "QLoRA"),
            None,
            "math/train math/evaluate cic/train cic/merge cic/evaluate publish",
        ),
        (
            two("LoRA", "LoRA", "ContinueAdapter"),
            None,
            "math/train math/evaluate cic/train cic/merge cic/evaluate publish",
        ),
        (
            two("LoRA", "QLoRA", "ContinueAdapter", artifact="Adapter"),
            None,
            "math/train math/evaluate cic/train cic/evaluate publish",
        ),
        (
            two("QLoRA", "QLoRA", "ContinueAdapter"),
            "nf4",
            "math/train math/evaluate cic/train cic/evaluate publish",
        ),
        (
            two("QLoRA", "QLoRA", "ContinueAdapter", artifact="Merged"),
            "nf4",
            "math/train math/evaluate cic/train cic/merge cic/evaluate publish",
        ),
    ],
)
def test_which_steps(fields: dict[str, Any], quantization: str | None, names: str) -> None:
    expected = ["math/prepare", "cic/prepare", *names.split()]
    assert list(line(fields, quantization=quantization)) == expected


def test_without_publication_the_last_adapter_is_not_merged() -> None:
    fields = two("LoRA", "LoRA")
    del fields["publish"]
    assert [name for name in line(fields) if name.startswith("cic")] == [
        "cic/prepare",
        "cic/train",
        "cic/evaluate",
    ]


def test_a_merged_stage_starts_from_merged_weights() -> None:
    steps = line(two("LoRA", "LoRA"))
    assert steps["math/train"].weights == BASE
    assert steps["math/merge"].weights == Weights("math", None, "math/train")
    assert steps["math/merge"].inputs == ("math/train",)
    assert steps["cic/train"].weights == Weights("math", "math/merge")
    assert steps["cic/train"].inputs == ("cic/prepare", "math/merge")
    assert steps["cic/merge"].inputs == ("math/merge", "cic/train")
    assert steps["publish"].inputs == ("cic/merge", "math/evaluate", "cic/evaluate")


def test_a_chain_of_continued_adapters_keeps_what_lies_below() -> None:
    chain = [
        stage("full", method="Full"),
        stage("fresh", method="LoRA", evaluate=gates()),
        stage("more", method="LoRA", handoff="ContinueAdapter", evaluate=gates()),
        stage("most", method="QLoRA", handoff="ContinueAdapter"),
    ]
    steps = line(spec(*chain))
    assert steps["fresh/train"].weights == Weights("full", "full/train")
    assert steps["more/train"].weights == Weights("fresh", "full/train", "fresh/train")
    assert steps["most/train"].weights == Weights("more", "full/train", "more/train")
    assert steps["most/merge"].inputs == ("full/train", "most/train")
    assert steps["more/evaluate"].weights == Weights("more", "full/train", "more/train")
    assert steps["more/evaluate"].compare == (BASE, Weights("fresh", "full/train", "fresh/train"))


def test_what_a_step_leaves_is_its_own_model() -> None:
    steps = line(two("Full", "LoRA"))
    assert steps["math/train"].model == Weights("math", "math/train")
    assert steps["cic/train"].model == Weights("cic", "math/train", "cic/train")
    assert steps["cic/merge"].model == Weights("cic", "cic/merge")
    assert steps["cic/evaluate"].model == Weights("cic", "cic/merge")


def test_the_first_stage_is_compared_with_the_base_alone() -> None:
    steps = line(two("Full", "Full"))
    assert steps["math/evaluate"].compare == (BASE,)
    assert steps["cic/evaluate"].compare == (BASE, Weights("math", "math/train"))


@pytest.mark.parametrize(
    ("artifact", "quantization", "method", "published"),
    [
        ("Auto", None, "LoRA", "Merged"),
        ("Auto", "nf4", "LoRA", "Adapter"),
        ("Auto", "nf4", "Full", "Merged"),
        ("Merged", "nf4", "LoRA", "Merged"),
        ("Adapter", None, "LoRA", "Adapter"),
    ],
)
def test_what_is_published(
    artifact: str, quantization: str | None, method: str, published: str
) -> None:
    fields = spec(
        stage("one", method=method), publish={"repository": "owner/x", "artifact": artifact}
    )
    publish = line(fields, quantization=quantization)["publish"]
    assert isinstance(publish.payload, PublishPayload)
    assert publish.payload.artifact == published


def test_merges_tells_what_holds_whatever_the_base() -> None:
    assert merges(stack(two("LoRA", "LoRA")).spec, 0)
    assert not merges(stack(two("LoRA", "LoRA")).spec, 1)
    assert merges(stack(two("LoRA", "LoRA", artifact="Merged")).spec, 1)
    assert not merges(stack(two("LoRA", "LoRA", "ContinueAdapter")).spec, 0)
    assert not merges(stack(two("Full", "LoRA")).spec, 0)


def test_one_suite_is_asked_once_by_its_most_demanding_gate() -> None:
    asked = [
        {"suite": "json", "minimum": "0.99"},
        {"suite": "json", "maximumDrop": "0.1", "samples": 8},
    ]
    payload = line(spec(stage("one", evaluate=asked)))["one/evaluate"].payload
    assert isinstance(payload, EvaluatePayload)
    assert [(suite.suite, suite.samples) for suite in payload.suites] == [("json", 800)]


# --- digests


def changed(before: dict[str, Any], edit: Any) -> set[str]:
    """Names of the steps whose digests an edit changes."""
    after = copy.deepcopy(before)
    edit(after)
    old, new = line(before), line(after)
    assert list(old) == list(new)
    return {name for name in old if old[name].digest != new[name].digest}


@pytest.mark.parametrize(
    ("edit", "steps"),
    [
        (
            lambda s: s["stages"][1].update(hyperparameters={"learningRate": "3e-6"}),
            {"cic/train", "cic/merge", "cic/evaluate", "publish"},
        ),
        (
            lambda s: s["stages"][1].update(lora={"baseDtype": "FP8"}),
            {"cic/train", "cic/merge", "cic/evaluate", "publish"},
        ),
        (lambda s: s["stages"][1]["evaluate"][0].update(minimum="0.6"), set()),
        (lambda s: s["stages"][1].update(onGateFailure="Warn"), set()),
        (lambda s: s.update(compute={"gpus": 8}), set()),
        (lambda s: s["stages"][1]["evaluate"][0].update(samples=128), {"cic/evaluate", "publish"}),
        (
            lambda s: s["stages"][0]["evaluate"][0].update(samples=128),
            {"math/evaluate", "publish"},
        ),
        (lambda s: s["publish"].update(repository="owner/y"), {"publish"}),
        (
            lambda s: s["stages"][1]["data"][0].update(revision="v2"),
            {"cic/prepare", "cic/train", "cic/merge", "cic/evaluate", "publish"},
        ),
    ],
)
def test_an_edit_changes_only_what_depends_on_it(edit: Any, steps: set[str]) -> None:
    assert changed(two("LoRA", "LoRA"), edit) == steps


def test_a_change_of_the_base_changes_everything() -> None:
    before = two("LoRA", "LoRA")
    assert changed(before, lambda s: s["base"].update(revision="v2")) == set(line(before))


@given(specs())
@settings(max_examples=100, deadline=None)
def test_a_further_stage_keeps_what_was_done(fields: dict[str, Any]) -> None:
    """All but whether the former last stage is merged, and so what of it is evaluated."""
    longer = copy.deepcopy(fields)
    longer["stages"].append(stage("z", method="Full"))
    longer.get("publish", {}).pop("artifact", None)
    old, new = line(fields), line(longer)
    last = fields["stages"][-1]["name"]
    for name, step in old.items():
        if name == "publish":
            continue
        was_merged, is_merged = f"{last}/merge" in old, f"{last}/merge" in new
        if name == f"{last}/merge" and not is_merged:
            continue
        if name == f"{last}/evaluate" and was_merged != is_merged:
            continue
        assert new[name].digest == step.digest, name


@given(specs())
@settings(max_examples=100, deadline=None)
def test_recipes_tell_prepare_the_same_digests(fields: dict[str, Any]) -> None:
    steps = line(fields)
    known = {
        name: prepare_result(step.digest).artifact
        for name, step in steps.items()
        if step.kind is StepKind.PREPARE
    }
    for recipe in recipes(list(steps.values())):
        inputs = [known[name] for name in recipe.inputs]
        known[recipe.name] = step_digest(recipe.kind, recipe.payload, inputs)
        assert known[recipe.name] == steps[recipe.name].digest


@given(specs())
@settings(max_examples=100, deadline=None)
def test_every_line_is_in_order(fields: dict[str, Any]) -> None:
    steps = list(line(fields).values())
    names = [step.name for step in steps]
    assert len(set(names)) == len(names)
    assert all(len(step.digest) == 64 and kind_of(step.name) is step.kind for step in steps)
    for before, step in itertools.pairwise(steps):
        assert before.kind is StepKind.PREPARE or step.kind is not StepKind.PREPARE
    for index, step in enumerate(steps):
        used = {*step.inputs, *step.weights.steps}
        assert used <= set(names[:index])


def test_digests_wait_for_what_prepare_resolves() -> None:
    steps = {step.name: step for step in expand(stack(two("LoRA", "LoRA")).spec, {})}
    assert all(bool(s.digest) == (s.kind is StepKind.PREPARE) for s in steps.values())
    first = {"math/prepare": prepare_result("d")}
    known = {s.name for s in expand(stack(two("LoRA", "LoRA")).spec, first) if s.digest}
    assert known == {"math/prepare", "cic/prepare", "math/train", "math/merge", "math/evaluate"}
