"""The part of a `config.json` that sizes follow from: a kilobyte, which travels in reports.

A config may hold thousands of entries (names of modules, labels, token ids) that say nothing here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SIZE_FIELDS = frozenset(
    {
        "architectures",
        "attention_bias",
        "decoder_sparse_step",
        "dtype",
        "final_logit_softcapping",
        "head_dim",
        "hidden_act",
        "hidden_activation",
        "hidden_size",
        "intermediate_size",
        "layer_types",
        "max_position_embeddings",
        "mlp_bias",
        "mlp_only_layers",
        "model_type",
        "moe_intermediate_size",
        "num_attention_heads",
        "num_experts",
        "num_experts_per_tok",
        "num_hidden_layers",
        "num_key_value_heads",
        "num_local_experts",
        "qkv_bias",
        "shared_expert_intermediate_size",
        "sliding_window",
        "tie_word_embeddings",
        "torch_dtype",
        "use_sliding_window",
        "vocab_size",
    }
)
"""All that `estimate` reads, beside the two that are objects themselves."""

_TEXT, _QUANTIZATION = "text_config", "quantization_config"


def size_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a model's config that its sizes follow from; it is read like the whole."""
    kept = {name: value for name, value in config.items() if name in SIZE_FIELDS}
    if isinstance(text := config.get(_TEXT), Mapping):
        kept[_TEXT] = size_fields(text)
    if isinstance(quantization := config.get(_QUANTIZATION), Mapping):
        kept[_QUANTIZATION] = _scalars(quantization)
    return kept


def _scalars(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without lists and objects: of a quantization, names of the modules that it spares."""
    return {k: v for k, v in values.items() if isinstance(v, str | int | float | bool)}
