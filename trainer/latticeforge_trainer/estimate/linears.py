"""The linear layers of a decoder layer, in the groups that `models.linears` multiplies at once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from latticeforge_trainer.contract import LoRASettings, TrainPayload
from latticeforge_trainer.estimate.base_model import BaseModel
from latticeforge_trainer.estimate.shapes import ModelShape

FUSED = frozenset({"llama", "mistral", "qwen2", "qwen3"})
"""Architectures whose layers run as `models.blocks`, if their gate is SiLU."""


ALIGNMENT = 16
"""Adapters' columns are padded to a multiple of this."""

CONCATENATED_ALIGNMENT = 64
"""The same where they lie in one matrix with the weights."""


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


@dataclass(frozen=True)
class Placed:
    """A group of so many layers, with room for adapters."""

    count: int
    group: Group
    columns: int
    """Behind an operand."""

    @property
    def layers(self) -> int:
        """Linear layers in all, each a matrix where it is not in one with its group."""
        return self.count * len(self.group.widths)

    @property
    def matrix(self) -> int:
        """Numbers in the matrix of weights and adapters together."""
        return self.group.widened(self.columns)

    @property
    def copies(self) -> int:
        """Numbers in the adapters' two halves, where they lie apart."""
        return self.columns * (self.group.inputs + self.group.outputs)


@lru_cache(maxsize=64)
def groups_of(model: BaseModel) -> tuple[tuple[int, Group], ...]:
    """The groups of a model's layers, each with how often it occurs; experts are in none."""
    shape = model.shape
    groups = [(shape.layers, group) for group in _attention(model)]
    groups += [(shape.dense_layers, group) for group in _gated(model, shape.intermediate)]
    groups += [(shape.sparse_layers, group) for group in _gated(model, shape.shared_width)]
    if not is_fused(model):  # transformers calls them one by one
        groups = [(count, part) for count, group in groups for part in _apart(group)]
    return tuple((count, group) for count, group in groups if count * group.parameters)


def _attention(model: BaseModel) -> list[Group]:
    shape = model.shape
    width, kv_width = shape.attention_width, shape.kv_heads * shape.head_dim
    output = Group(("o_proj",), width, (shape.hidden,))
    if model.architecture == "phi3":
        return [Group(("qkv_proj",), shape.hidden, (width + 2 * kv_width,)), output]
    names = ("q_proj", "k_proj", "v_proj")
    return [Group(names, shape.hidden, (width, kv_width, kv_width)), output]


def _gated(model: BaseModel, inner: int) -> list[Group]:
    hidden = model.shape.hidden
    down = Group(("down_proj",), inner, (hidden,))
    if model.architecture == "phi3":
        return [Group(("gate_up_proj",), hidden, (2 * inner,)), down]
    return [Group(("gate_proj", "up_proj"), hidden, (inner, inner)), down]


def _apart(group: Group) -> list[Group]:
    pairs = zip(group.names, group.widths, strict=True)
    return [Group((name,), group.inputs, (width,)) for name, width in pairs]


def adapter_parameters(model: BaseModel, lora: LoRASettings | None) -> int:
    """Parameters of an adapter on every layer, as PEFT makes it."""
    dense = sum(count * group.adapter_parameters(lora) for count, group in groups_of(model))
    if lora is None or lora.target_modules is not None:
        return dense
    return dense + model.shape.sparse_layers * _on_experts(model, lora.rank)


def table_parameters(model: BaseModel, lora: LoRASettings | None) -> int:
    """Parameters of embedding and head where they are trained beside an adapter; tied, of one."""
    asked = set(lora.modules_to_save or ()) if lora else set()
    shape = model.shape
    return min(len(asked), 2 - shape.tied) * shape.vocabulary * shape.hidden


def trained_parameters(model: BaseModel, payload: TrainPayload) -> int:
    """Parameters that a stage trains."""
    if not payload.method.is_adapter:
        return model.parameters.total
    return adapter_parameters(model, payload.lora) + table_parameters(model, payload.lora)


def _on_experts(model: BaseModel, rank: int) -> int:
    """What `all-linear` puts on experts and routers: every expert has a rank of its own.

    Gates and ups are one tensor, with twice the rank. PEFT leaves Qwen2-MoE's experts alone, but
    not the gate of the shared one.
    """
    shape = model.shape
    if model.architecture == "qwen2_moe":
        return rank * (shape.hidden + 1) if shape.shared_width else 0
    router = rank * (shape.hidden + shape.experts)
    ranks = rank * shape.experts
    gate_up = 2 * ranks * (shape.hidden + 2 * shape.expert_width)
    return router + gate_up + ranks * (shape.expert_width + shape.hidden)


def expert_parameters(shape: ModelShape) -> int:
    """Weights of experts and routers, which are no linear layers: they stay in 16 bits."""
    experts = 3 * shape.hidden * shape.experts * shape.expert_width
    gates = shape.hidden * (shape.experts + (1 if shape.shared_width else 0))
    return shape.sparse_layers * (experts + gates)
