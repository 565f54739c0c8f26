"""A shape counts what transformers builds, and what the makers of known models published."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.unit.estimate.known import MODELS
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from latticeforge_trainer.estimate.shapes import FAMILIES, ModelShape, model_shape

QWEN_72B, QWEN_7B, QWEN_HALF_B = (MODELS[f"Qwen2.5-{size}"] for size in ("72B", "7B", "0.5B"))
LLAMA_8B, MIXTRAL = MODELS["Llama-3.1-8B"], MODELS["Mixtral-8x7B"]
QWEN_30B_A3B = MODELS["Qwen3-30B-A3B"]


def shape(config: dict[str, Any]) -> ModelShape:
    found = model_shape(config)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("config", "parameters", "linear"),
    [
        (QWEN_72B, 72_706_203_648, 71_458_357_248),
        (QWEN_7B, 7_615_616_512, 7_070_285_824),
        (QWEN_HALF_B, 494_032_768, 493_961_216),
        (LLAMA_8B, 8_030_261_248, 7_504_658_432),
        (MIXTRAL, 46_702_792_704, 12_748_587_008),
        (QWEN_30B_A3B, 30_532_122_624, 3_041_656_832),
    ],
    ids=["Qwen2.5-72B", "Qwen2.5-7B", "Qwen2.5-0.5B", "Llama-3.1-8B", "Mixtral-8x7B", "Qwen3-30B"],
)
def test_known_models_have_their_published_size(
    config: dict[str, Any], parameters: int, linear: int
) -> None:
    assert shape(config).parameters == parameters
    assert shape(config).linear_parameters == linear


SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((kind, {}) for kind in FAMILIES),
    ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    ("mistral", {"head_dim": 20, "sliding_window": None}),
    ("qwen3", {"attention_bias": True}),
    ("mixtral", {"num_local_experts": 5, "num_experts_per_tok": 3}),
    ("qwen2_moe", EXPERTS | {"shared_expert_intermediate_size": 32}),
    ("qwen2_moe", EXPERTS | {"qkv_bias": False, "mlp_only_layers": [1, 2]}),
    ("qwen3_moe", EXPERTS | {"decoder_sparse_step": 2}),
]


def built(kind: str, fields: dict[str, Any]) -> tuple[Any, nn.Module]:
    config = AutoConfig.for_model(kind, **SMALL, **fields)
    make: Any = AutoModelForCausalLM.from_config  # untyped
    with torch.device("meta"):
        return config, make(config)


@pytest.mark.parametrize(("kind", "fields"), VARIANTS)
def test_it_counts_what_transformers_builds(kind: str, fields: dict[str, Any]) -> None:
    config, model = built(kind, fields)
    assert shape(config.to_dict()).parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("kind", [kind for kind, family in FAMILIES.items() if not family.experts])
def test_a_token_meets_every_linear_layer_of_a_dense_model(kind: str) -> None:
    config, model = built(kind, {})
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    assert shape(config.to_dict()).linear_parameters == linear


@pytest.mark.parametrize(
    ("kind", "fields", "windowed"),
    [
        ("mistral", {"sliding_window": 8}, 7),
        ("mistral", {"sliding_window": None}, 0),
        ("gemma2", {"sliding_window": 8}, 4),
        ("gemma3_text", {"sliding_window": 8}, 6),
        ("qwen2", {"sliding_window": 8, "use_sliding_window": False}, 0),
        ("qwen2", {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 3}, 4),
    ],
)
def test_layers_with_a_window_are_told_from_the_others(
    kind: str, fields: dict[str, Any], windowed: int
) -> None:
    whole = built(kind, fields)[0].to_dict()
    assert shape(whole).windowed_layers == windowed
    if not fields.get("use_sliding_window"):  # as older files have it, without a kind per layer
        plain = {name: value for name, value in whole.items() if name != "layer_types"}
        assert shape(plain).windowed_layers == windowed


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"model_type": "mamba", **SMALL},
        {name: value for name, value in LLAMA_8B.items() if name != "intermediate_size"},
        {name: value for name, value in MIXTRAL.items() if name != "num_experts_per_tok"},
    ],
)
def test_what_is_not_known_has_no_shape(config: dict[str, Any]) -> None:
    assert model_shape(config) is None


def test_of_a_model_that_also_sees_its_text_part_counts() -> None:
    assert model_shape({"model_type": "seer", "text_config": LLAMA_8B}) == shape(LLAMA_8B)
