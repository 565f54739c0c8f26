"""Configs that cannot be meant, or ask for another training, get one sentence each."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.axolotl.imports import FULL, LORA, stack_of

from latticeforge_operator.axolotl.datasets import ENTRY
from latticeforge_operator.axolotl.lines import Line
from latticeforge_operator.axolotl.registry import KEYS, lines_of, read_settings
from latticeforge_operator.axolotl.scope import OUT_OF_SCOPE
from latticeforge_operator.axolotl.settings import ConfigError
from latticeforge_operator.axolotl.stack import Config, Options, build_stack

QLORA = {**LORA, "adapter": "qlora", "load_in_4bit": True}

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({**LORA, "base_model": None}, "base_model: is missing"),
    ({**LORA, "datasets": []}, "datasets: is missing"),
    ({**LORA, "learning_rate": None}, "learning_rate: is missing"),
    ({**LORA, "lora_r": "many"}, "lora_r: must be a number, not 'many'"),
    ({**LORA, "lora_r": 0}, "lora_r: must be at least 1, not 0"),
    ({**LORA, "lora_r": 1.5}, "lora_r: must be a whole number from 0, not 1.5"),
    ({**LORA, "learning_rate": True}, "learning_rate: must be a number, not true"),
    ({**LORA, "learning_rate": "-1e-4"}, "learning_rate: must be more than 0, not '-1e-4'"),
    ({**LORA, "learning_rate": "nan"}, "learning_rate: must be a number, not 'nan'"),
    ({**LORA, "sample_packing": "yes"}, "sample_packing: must be true or false, not 'yes'"),
    ({**LORA, "base_model": ["a"]}, "base_model: must be text, not a list"),
    ({**LORA, "datasets": "owner/data"}, "datasets: must be a list, not 'owner/data'"),
    ({**LORA, "datasets": ["owner/data"]}, "datasets: must be a mapping, not 'owner/data'"),
    ({**LORA, "special_tokens": ["<s>"]}, "special_tokens: must be a mapping, not a list"),
    (
        {**LORA, "datasets": [{"type": "alpaca"}]},
        "datasets[0].path: is missing; name a data set or a file",
    ),
    (
        {**LORA, "datasets": [{"path": "a/b", "type": "chat_template", "roles": "user"}]},
        "datasets[0].roles: must be a mapping, not 'user'",
    ),
    (
        {**LORA, "excess_length_strategy": "wrap"},
        "excess_length_strategy: must be one of drop, truncate, raise, not 'wrap'",
    ),
    (
        {**FULL, "load_in_4bit": True},
        "load_in_4bit: a quantized base needs an adapter; add adapter: qlora, or remove it",
    ),
    (
        {**FULL, "load_in_8bit": True},
        "load_in_8bit: a quantized base needs an adapter; add adapter: qlora, or remove it",
    ),
    (
        {**LORA, "adapter": "qlora"},
        "load_in_4bit: adapter: qlora needs load_in_4bit: true; or write adapter: lora",
    ),
    (
        {**LORA, "adapter": "qlora", "load_in_8bit": True},
        "load_in_8bit: adapter: qlora needs load_in_4bit: true; or write adapter: lora",
    ),
    ({**QLORA, "load_in_8bit": True}, "load_in_8bit: contradicts load_in_4bit; keep one of them"),
    ({**LORA, "lora_r": None}, "lora_r: is missing; adapter: lora needs it"),
    (
        {**LORA, "lora_target_linear": False},
        "lora_target_linear: adapter: lora needs it, or lora_target_modules",
    ),
    (
        {**LORA, "batch_size": 8, "gradient_accumulation_steps": 4},
        "gradient_accumulation_steps: contradicts batch_size; keep one of them",
    ),
    (
        {**LORA, "warmup_steps": 10, "warmup_ratio": 0.1},
        "warmup_ratio: contradicts warmup_steps; keep one of them",
    ),
    (
        {**LORA, "val_set_size": 0.1, "test_datasets": [{"path": "a/b"}]},
        "test_datasets: contradicts val_set_size; keep one of them",
    ),
    (
        {**LORA, "deepspeed": "zero3.json", "fsdp": ["full_shard"]},
        "fsdp: contradicts deepspeed; keep one of them",
    ),
    (
        {**LORA, "chat_template": "jinja"},
        "chat_template: jinja needs the template in chat_template_jinja",
    ),
]


@pytest.mark.parametrize(("config", "sentence"), REFUSED, ids=lambda value: str(value)[:60])
def test_refused(config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        stack_of(config)
    assert str(caught.value) == sentence


@pytest.mark.parametrize("key", OUT_OF_SCOPE)
def test_other_trainings_are_said_in_one_sentence(key: str) -> None:
    with pytest.raises(ConfigError, match="out of scope; LatticeForge does supervised") as caught:
        stack_of({**LORA, key: "dpo"})
    assert str(caught.value).startswith(f"{key}: ")
    stack_of({**LORA, key: None})


def test_what_belongs_to_another_training_is_harmless_alone() -> None:
    stack_of({**LORA, "rl_beta": 0.1, "dpo_label_smoothing": 0.1, "kd_alpha": 0.5})


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=True, allow_infinity=True)
    | st.text(max_size=12)
    | st.sampled_from(["chat_template", "alpaca", "1e-4", "true", "a/b", "cosine", "s3://x"])
)
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "user", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)
ENTRIES = st.lists(
    st.dictionaries(st.sampled_from(sorted(ENTRY)), JSON, max_size=6).map(
        lambda entry: {"path": "a/b", "type": "chat_template", **entry}
    ),
    max_size=3,
)
FEW = st.dictionaries(st.sampled_from(sorted(KEYS)), JSON, max_size=4)


def sentence_or_lines(config: dict[str, Any]) -> str | list[Line]:
    try:
        settings = read_settings(config, gpus=2)
        lines = lines_of(config, settings)
        build_stack([Config("one", settings, lines)], Options(gpus=2))
    except ConfigError as error:
        return str(error)
    return lines


@given(FEW, ENTRIES)
def test_any_values_of_known_keys_give_lines_or_a_sentence(
    says: dict[str, Any], datasets: list[dict[str, Any]]
) -> None:
    config = {**LORA, "datasets": datasets, **says}
    result = sentence_or_lines(config)
    if isinstance(result, str):
        assert re.match(r"[a-z_]+[\w.\[\]]*: .+", result)
        return
    roots = {re.split(r"[.\[]", line.key)[0] for line in result if line.given}
    assert roots == set(config)
