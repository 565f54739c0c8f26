"""The linear layers of a decoder layer, in the groups that `models.linears` multiplies at once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from latticeforge_trainer.contract import LoRASettings
from latticeforge_trainer.estimate.base_model import BaseModel
from latticeforge_trainer.estimate.shapes import ModelShape

FUSED = frozenset({"llama", "mistral", "qwen2", "qwen3"})
"""Architectures whose layers run as `models.blocks`, if their gate is SiLU."""


def is_fused(model: BaseModel) -> bool:
    """Whether decoder layers run as `models.blocks`."""
    return model.architecture in FUSED and model.activation == "silu"


@dataclass(frozen=True)
class Group:
    """Linear layers with one input."""

    names: tuple[str, ...]
    inputs: int
    widths: tuple[int, ...]
    """Outputs of each."""

    @property
    def outputs(self) -> int:
        """Of all of them."""
        return sum(self.widths)

    @property
    def parameters(self) -> int:
        """Their weights."""
        return self.inputs * self.outputs

    def adapted(self, lora: LoRASettings | None) -> tuple[int, ...]:
        """The outputs of those that have an adapter."""
        if lora is None:
            return ()
        wanted = lora.target_modules
        pairs = zip(self.names, self.widths, strict=True)
        return tuple(width for name, width in pairs if wanted is None or name in wanted)

    def adapter_parameters(self, lora: LoRASettings | None) -> int:
        """Parameters of their adapters."""
        if lora is None:
            return 0
        return sum(lora.rank * (self.inputs + width) for width in self.adapted(lora))

    def columns(self, lora: LoRASettings | None, alignment: int) -> int:
        """Columns behind an operand for the adapters."""
        ranks = lora.rank * len(self.adapted(lora)) if lora else 0
        return -(-ranks // alignment) * alignment

    def widened(self, columns: int) -> int:
        """Numbers in the matrix of weights and adapters together."""
        return (self.outputs + columns) * (self.inputs + columns)


@lru_cache(maxsize=64)
def groups_of(model: BaseModel) -> tuple[Group, ...]:
    """The groups of one of a model's layers; experts are no linear layers and in none."""
    shape = model.shape
    width, kv_width = shape.attention_width, shape.kv_heads * shape.head_dim
    inner = shape.shared_width if shape.sparse_layers else shape.intermediate
    if model.architecture == "phi3":
        groups = [
            Group(("qkv_proj",), shape.hidden, (width + 2 * kv_width,)),
            Group(("o_proj",), width, (shape.hidden,)),
            Group(("gate_up_proj",), shape.hidden, (2 * inner,)),
        ]
    else:
        groups = [
            Group(("q_proj", "k_proj", "v_proj"), shape.hidden, (width, kv_width, kv_width)),
            Group(("o_proj",), width, (shape.hidden,)),
            Group(("gate_proj", "up_proj"), shape.hidden, (inner, inner)),
        ]
    groups.append(Group(("down_proj",), inner, (shape.hidden,)))
    apart = groups if is_fused(model) else [part for group in groups for part in _apart(group)]
    return tuple(group for group in apart if group.parameters)


def _apart(group: Group) -> list[Group]:
    """Layers that transformers calls one by one."""
    pairs = zip(group.names, group.widths, strict=True)
    return [Group((name,), group.inputs, (width,)) for name, width in pairs]


def adapter_parameters(model: BaseModel, lora: LoRASettings | None) -> int:
    """Parameters of an adapter on every layer."""
    of_layer = sum(group.adapter_parameters(lora) for group in groups_of(model))
    return model.shape.layers * of_layer


def unadapted_parameters(shape: ModelShape) -> int:
    """Weights of experts and routers, which are no linear layers: they stay in 16 bits."""
    experts = 3 * shape.hidden * shape.experts * shape.expert_width
    gates = shape.hidden * (shape.experts + (1 if shape.shared_width else 0))
    return shape.sparse_layers * (experts + gates)
