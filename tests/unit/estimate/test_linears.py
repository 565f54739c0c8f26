"""Adapters, against what PEFT makes of transformers' models."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from latticeforge_trainer.contract import LoRASettings, Method, Table, TrainPayload
from latticeforge_trainer.estimate.base_model import read_base_model
from latticeforge_trainer.estimate.linears import (
    adapter_parameters,
    expert_parameters,
    groups_of,
    trained_parameters,
)
from latticeforge_trainer.estimate.shapes import FAMILIES
from latticeforge_trainer.models.adapters import add_adapter

SIZES = {
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
FIELDS: dict[str, dict[str, Any]] = {
    "qwen2_moe": EXPERTS | {"shared_expert_intermediate_size": 32},
    "qwen3_moe": EXPERTS,
}


def built(kind: str) -> tuple[dict[str, Any], Any]:
    config = AutoConfig.for_model(kind, **SIZES, **FIELDS.get(kind, {}))
    make: Any = AutoModelForCausalLM  # untyped
    return config.to_dict(), make.from_config(config)


@pytest.mark.filterwarnings("ignore:The following .* keys did not match")  # PEFT's own, for experts
@pytest.mark.parametrize(
    ("kind", "targets"),
    [
        *((kind, None) for kind in FAMILIES),
        *((kind, ["k_proj", "o_proj"]) for kind in FAMILIES if kind != "phi3"),
        ("phi3", ["qkv_proj"]),
    ],
)
def test_an_adapter_has_as_many_parameters_as_peft_gives_it(
    kind: str, targets: list[str] | None
) -> None:
    config, model = built(kind)
    settings = LoRASettings(rank=4, target_modules=targets)
    adapted: Any = add_adapter(model, settings)
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert adapter_parameters(read_base_model(config), settings) == trained


@pytest.mark.parametrize("tables", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"]])
@pytest.mark.parametrize("kind", ["llama", "gemma2", "mixtral"])
def test_tables_beside_it_are_counted_as_peft_trains_them(kind: str, tables: list[Table]) -> None:
    config, model = built(kind)
    settings = LoRASettings(rank=4, target_modules=["q_proj"], modules_to_save=tables)
    adapted: Any = add_adapter(model, settings)
    payload = TrainPayload(
        method=Method.LORA,
        lora=settings,
        learning_rate=1,
        sequence_length=1,
        global_batch_tokens=1,
    )
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert trained_parameters(read_base_model(config), payload) == trained


@pytest.mark.parametrize("kind", FAMILIES)
def test_linear_layers_experts_and_tables_are_all_matrices(kind: str) -> None:
    config, model = built(kind)
    known = read_base_model(config)
    linear = sum(count * group.parameters for count, group in groups_of(known))
    matrices = sum(p.numel() for p in model.parameters() if p.ndim > 1)
    tables = known.parameters.embedding + known.parameters.head
    assert linear + expert_parameters(known.shape) + tables == matrices


def test_room_for_adapters_is_padded_for_all_of_a_group() -> None:
    _, group = groups_of(read_base_model(built("qwen2")[0]))[0]
    assert group.names == ("q_proj", "k_proj", "v_proj")
    lora = LoRASettings(rank=30, target_modules=["q_proj", "v_proj"])
    assert (group.columns(lora, 16), group.columns(lora, 64), group.columns(None, 64)) == (
        64,
        64,
        0,
    )
    assert group.widened(64) == (48 + 24 + 24 + 64) * (48 + 64)
