"""The sizes that a model's work and memory follow from, read from its `config.json`.

Counted as transformers builds each architecture, to the last parameter. An architecture that is not
in `FAMILIES` has no shape here: what depends on it is left out, never guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Family:
    """How an architecture departs from Llama without biases."""

    norms: int = 2
    """Norms of a layer over its whole width."""
    head_norms: bool = False
    """Whether queries and keys are normed head by head."""
    qkv_bias: bool = False
    """Whether queries, keys and values are biased, unless `qkv_bias` of the config says otherwise.
    `attention_bias` of a config stands for those and the output."""
    tied: bool = False
    """Whether the head shares the embedding, where the config does not say."""
    experts: tuple[str, ...] = ()
    """Config fields that may hold the number of experts; none: every layer is dense."""
    expert_width: str = "moe_intermediate_size"
    """Config field of an expert's width."""
    full_every: int = 0
    """One layer in so many sees the whole text, the others a window; 0: all are alike."""


FAMILIES: dict[str, Family] = {
    "llama": Family(),
    "mistral": Family(),
    "phi3": Family(),
    "qwen2": Family(qkv_bias=True),
    "qwen3": Family(head_norms=True),
    "gemma": Family(tied=True),
    "gemma2": Family(norms=4, tied=True, full_every=2),
    "gemma3_text": Family(norms=4, head_norms=True, tied=True, full_every=6),
    "mixtral": Family(experts=("num_local_experts",), expert_width="intermediate_size"),
    "qwen2_moe": Family(qkv_bias=True, experts=("num_experts", "num_local_experts")),
    "qwen3_moe": Family(head_norms=True, experts=("num_experts", "num_local_experts")),
}
"""By `model_type`."""


_ALWAYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)
_ROUTED = "num_experts_per_tok"

SIZES = (
    *_ALWAYS,
    _ROUTED,
    "num_key_value_heads",
    "head_dim",
    "num_experts",
    "num_local_experts",
    "moe_intermediate_size",
)
"""Config fields that are positive whole numbers, where they are given."""


@dataclass(frozen=True)
class ModelShape:
    """A decoder-only language model in numbers."""

    vocabulary: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    tied: bool
    """Whether the head shares the embedding's weights."""
    vectors: int
    """Parameters of norms and biases, over the whole model."""
    dense_layers: int
    intermediate: int
    """Width of a dense layer's gated product."""
    head_norms: bool = False
    """Whether queries and keys are normed head by head."""
    sparse_layers: int = 0
    """Layers with experts."""
    experts: int = 0
    active_experts: int = 0
    """Experts that one token goes through."""
    expert_width: int = 0
    shared_width: int = 0
    """Width of the expert that every token goes through; 0: there is none."""
    window: int | None = None
    """Tokens that a token of a windowed layer sees, itself included."""
    windowed_layers: int = 0

    @property
    def layers(self) -> int:
        """Decoder layers."""
        return self.dense_layers + self.sparse_layers

    @property
    def attention_width(self) -> int:
        """Width of all query heads together; the hidden size in most models, but not in all."""
        return self.heads * self.head_dim

    @property
    def gated_width(self) -> int:
        """Widest of the gated products that one token goes through in a layer, experts together."""
        sparse = self.active_experts * self.expert_width + self.shared_width
        return max(self.intermediate if self.dense_layers else 0, sparse)

    @property
    def parameters(self) -> int:
        """Every parameter, a tied head once."""
        tables = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return tables + self._matrices(self.experts) + self.vectors

    @property
    def linear_parameters(self) -> int:
        """Weights that one token is multiplied with: linear layers, active experts, the head."""
        return self._matrices(self.active_experts) + self.vocabulary * self.hidden

    @property
    def attention_parameters(self) -> int:
        """Weights of one layer's queries, keys, values and output."""
        return 2 * self.hidden * (self.attention_width + self.kv_heads * self.head_dim)

    def _matrices(self, experts: int) -> int:
        dense = 3 * self.hidden * self.intermediate
        sparse = 3 * self.hidden * (experts * self.expert_width + self.shared_width)
        gates = self.hidden * (self.experts + (1 if self.shared_width else 0))
        return (
            self.layers * self.attention_parameters
            + self.dense_layers * dense
            + self.sparse_layers * (sparse + gates)
        )


def model_shape(config: Mapping[str, Any]) -> ModelShape | None:
    """The shape that a config describes.

    Args:
        config: A model's `config.json`, or what transformers makes of it; of a model that also
            sees or hears, its text part counts.

    Returns:
        None when the architecture is not known here, or the config leaves sizes to the defaults of
        the library that reads it.
    """
    text = config.get("text_config", config)
    family = FAMILIES.get(text.get("model_type"))
    return None if family is None or missing_sizes(text) else _shape(text, family)


def missing_sizes(text: Mapping[str, Any]) -> list[str]:
    """Fields that a config of a known architecture leaves to the library that reads it."""
    family = FAMILIES.get(str(text.get("model_type")))
    if family is None:
        return []
    needed = [*_ALWAYS, *((family.expert_width, _ROUTED) if family.experts else ())]
    return [name for name in needed if text.get(name) is None]


def _shape(text: Mapping[str, Any], family: Family) -> ModelShape:
    hidden, layers = text["hidden_size"], text["num_hidden_layers"]
    heads = text["num_attention_heads"]
    kv_heads, head_dim = text.get("num_key_value_heads") or heads, _head_dim(text)
    experts = next((text[name] for name in family.experts if text.get(name)), 0)
    sparse = _sparse_layers(text) if experts else 0
    window = text.get("sliding_window") if text.get("use_sliding_window", True) else None
    return ModelShape(
        vocabulary=text["vocab_size"],
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        tied=text.get("tie_word_embeddings", family.tied),
        vectors=hidden + layers * _layer_vectors(text, family, (heads + 2 * kv_heads) * head_dim),
        dense_layers=layers - sparse,
        intermediate=text["intermediate_size"],
        head_norms=family.head_norms,
        sparse_layers=sparse,
        experts=experts,
        active_experts=text[_ROUTED] if experts else 0,
        expert_width=text[family.expert_width] if experts else 0,
        shared_width=text.get("shared_expert_intermediate_size", 0) if experts else 0,
        window=window,
        windowed_layers=_windowed_layers(text, family) if window else 0,
    )


def _head_dim(text: Mapping[str, Any]) -> int:
    size: int = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
    return size


def _layer_vectors(text: Mapping[str, Any], family: Family, qkv_width: int) -> int:
    """Parameters of a layer's norms and biases."""
    hidden: int = text["hidden_size"]
    everywhere = text.get("attention_bias", False)
    norms = family.norms * hidden + (2 * _head_dim(text) if family.head_norms else 0)
    qkv = qkv_width if everywhere or text.get("qkv_bias", family.qkv_bias) else 0
    output = hidden if everywhere else 0
    mlp = 2 * text["intermediate_size"] + hidden if text.get("mlp_bias") else 0
    return norms + qkv + output + mlp


def _sparse_layers(text: Mapping[str, Any]) -> int:
    dense, every = text.get("mlp_only_layers") or (), text.get("decoder_sparse_step", 1)
    layers = range(text["num_hidden_layers"])
    return sum(layer not in dense and (layer + 1) % every == 0 for layer in layers)


def _windowed_layers(text: Mapping[str, Any], family: Family) -> int:
    layers: int = text["num_hidden_layers"]
    kinds: list[str] | None = text.get("layer_types")
    if kinds is not None:
        return kinds.count("sliding_attention")
    return layers - (layers // family.full_every if family.full_every else 0)
