"""Several configs as one stack, and what Axolotl has no key for."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.axolotl.imports import FULL, LORA, stack_of

from latticeforge_operator.axolotl.lines import Verdict
from latticeforge_operator.axolotl.settings import ConfigError
from latticeforge_operator.axolotl.stack import Stack, stage_names

FIRST = {**LORA, "output_dir": "./outputs/first", "hub_model_id": "me/first"}


def spec_of(*configs: dict[str, Any], **options: Any) -> dict[str, Any]:
    spec: dict[str, Any] = stack_of(*configs, **options).manifest["spec"]
    return spec


def verdict(stack: Stack, stage: int, key: str) -> Verdict:
    [line] = [line for line in stack.configs[stage].lines if line.key == key]
    return line.verdict


@pytest.mark.parametrize(
    "base",
    ["./outputs/first", "./outputs/first/", "./outputs/first/merged", "me/first", "owner/model"],
)
def test_a_later_stage_starts_from_the_one_before(base: str) -> None:
    spec = spec_of(FIRST, {**FULL, "base_model": base})
    assert spec["base"] == {"model": "owner/model"}
    assert [stage["method"] for stage in spec["stages"]] == ["LoRA", "Full"]
    assert "handoff" not in spec["stages"][1]


def test_a_stage_from_elsewhere_is_refused() -> None:
    with pytest.raises(ConfigError, match="other/model is neither what one leaves"):
        stack_of(FIRST, {**FULL, "base_model": "other/model"})


def test_an_adapter_is_trained_on() -> None:
    later = {**LORA, "lora_model_dir": "./outputs/first"}
    assert spec_of(FIRST, later)["stages"][1]["handoff"] == "ContinueAdapter"


def test_an_adapter_from_elsewhere_is_not() -> None:
    stack = stack_of(FIRST, {**LORA, "lora_model_dir": "./elsewhere"})
    assert verdict(stack, 1, "lora_model_dir") is Verdict.UNSUPPORTED
    assert "handoff" not in stack.manifest["spec"]["stages"][1]


def test_only_the_last_result_is_published() -> None:
    stack = stack_of(FIRST, {**FULL, "hub_model_id": "me/second"})
    assert stack.manifest["spec"]["publish"] == {
        "repository": "me/second",
        "tokenSecret": {"name": "hf-token"},
    }
    assert verdict(stack, 0, "hub_model_id") is Verdict.IGNORED
    assert stack.manifest["metadata"]["name"] == "second"


@pytest.mark.parametrize(
    ("configs", "artifact"),
    [
        ([LORA], "Adapter"),
        ([FULL], None),
        ([FIRST, LORA], None),
        ([FIRST, {**LORA, "lora_model_dir": "me/first"}], "Adapter"),
        ([FULL, LORA], None),
    ],
    ids=["LoRA", "Full", "merged between", "continued", "over a Full stage"],
)
def test_an_adapter_is_published_where_axolotl_pushes_one(
    configs: list[dict[str, Any]], artifact: str | None
) -> None:
    last = {**configs[-1], "hub_model_id": "me/result"}
    assert spec_of(*configs[:-1], last)["publish"].get("artifact") == artifact


def test_a_stack_has_one_tokenizer() -> None:
    chatml = {"chat_template": "chatml"}
    same = stack_of({**FIRST, **chatml}, {**FULL, **chatml})
    assert verdict(same, 1, "chat_template") is Verdict.MAPPED
    other = stack_of(FIRST, {**FULL, **chatml})
    assert verdict(other, 1, "chat_template") is Verdict.UNSUPPORTED
    assert "chatTemplate" not in other.manifest["spec"]["base"]


def test_options_stand_in_the_spec() -> None:
    spec = spec_of(LORA, gpus=8, pool="h200", storage="2Ti", budget="60")
    assert spec["compute"] == {"pool": "h200", "gpus": 8}
    assert spec["storage"] == {"size": "2Ti"}
    assert spec["budget"] == {"limit": "60"}
    plain = spec_of(LORA)
    assert set(plain) == {"base", "stages", "storage"}


def test_two_keys_of_one_field_must_agree() -> None:
    with pytest.raises(ConfigError, match="contradicts model_revision"):
        stack_of({**LORA, "model_revision": "a", "revision_of_model": "b"})


def test_fields_say_where_they_come_from() -> None:
    notes = stack_of(LORA).notes
    stage = ("spec", "stages", 0)
    assert notes[*stage, "lora", "rank"] == "lora_r"
    assert notes[*stage, "data", 0, "source"] == "datasets[0].path"
    assert notes[*stage, "hyperparameters", "epochs"] == "num_epochs: Axolotl's default"


@pytest.mark.parametrize(
    ("stems", "names"),
    [
        (["config_72b_math_stacked"], ["config-72b-math-stacked"]),
        (["lora", "lora", "LoRA"], ["lora", "lora-2", "lora-3"]),
        (["lora-2", "lora", "lora"], ["lora-2", "lora", "lora-3"]),
        (["___", "x" * 80], ["stage", "x" * 36]),
    ],
)
def test_stages_are_named_after_files(stems: list[str], names: list[str]) -> None:
    assert stage_names(stems) == names
