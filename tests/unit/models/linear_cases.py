"""Grouped linear layers in every format, and the formula that they stand for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from tests.fixtures.fast_paths import in_fp8, in_nf4, relative_error
from torch import nn

from latticeforge_trainer.kernels import fp8
from latticeforge_trainer.models.linears import (
    Concatenated,
    Fp8Group,
    Group,
    Nf4Group,
    apply,
    group_of,
)


@dataclass
class Case:
    """Layers and what stands beside them in the formula."""

    modules: list[Any]
    weights: list[torch.Tensor]
    """Exact; the layers' own where those are trained."""
    scale: float = 1.0

    @property
    def dtype(self) -> torch.dtype:
        return self.weights[0].dtype


@dataclass
class Kind:
    """A way that weights are held, and the group that computes it."""

    group: type[Group]
    convert: Callable[[nn.Linear], tuple[nn.Linear, torch.Tensor]]
    dtype: torch.dtype = torch.float64
    inputs: tuple[int, ...] = (5, 24, 64)
    made_in: torch.dtype = torch.float64
    """Of what is converted."""
    adapters: bool = True
    """Whether it must have one."""


def trained(layer: nn.Linear) -> tuple[nn.Linear, torch.Tensor]:
    return layer, layer.weight


def frozen(layer: nn.Linear) -> tuple[nn.Linear, torch.Tensor]:
    layer.weight.requires_grad_(False)
    return layer, layer.weight.detach().clone()


KINDS = {
    "trained": Kind(Group, trained, adapters=False),
    "frozen": Kind(Concatenated, frozen),
    "partitioned": Kind(Group, frozen),
    "NF4": Kind(Nf4Group, in_nf4, inputs=(64, 128), made_in=torch.float32),
    "NF4, unpacked": Kind(Nf4Group, in_nf4, inputs=(64, 128), made_in=torch.float32),
    "FP8": Kind(Fp8Group, in_fp8, torch.float32, inputs=(16, 48), made_in=torch.float32),
}


def make_case(
    kind: Kind,
    *,
    inputs: int = 64,
    outputs: tuple[int, ...] = (12, 5, 7),
    adapted: tuple[bool, ...] = (True, True, True),
    rank: int = 3,
    biases: tuple[bool, ...] = (False, False, False),
    dropout: float = 0.0,
    stabilized: bool = False,
) -> Case:
    layers, weights = nn.ModuleDict(), []
    for number, (size, biased) in enumerate(zip(outputs, biases, strict=True)):
        layer, weight = kind.convert(nn.Linear(inputs, size, bias=biased, dtype=kind.made_in))
        weights.append(weight if weight.requires_grad else weight.to(kind.dtype))
        if biased:
            layer.bias.data = layer.bias.to(kind.dtype)
        layers[f"layer{number}"] = layer
    targets = [f"layer{n}" for n, wanted in enumerate(adapted) if wanted]
    if not targets:
        return Case(list(layers.values()), weights)
    bias = {name: p.requires_grad for name, p in layers.named_parameters()}
    config = LoraConfig(
        r=rank, lora_alpha=6, lora_dropout=dropout, use_rslora=stabilized, target_modules=targets
    )
    inject_adapter_in_model(config, layers)
    for name, parameter in layers.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn_like(parameter, dtype=kind.dtype)
        else:  # injection freezes all
            parameter.requires_grad_(bias[name.replace(".base_layer", "")])
    return Case(list(layers.values()), weights, 6 / (rank**0.5 if stabilized else rank))


class Rounded(torch.autograd.Function):
    """The product of an FP8 base: operands rounded by rows, each way."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, e4m3: torch.Tensor, scales: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(e4m3, scales)
        q, scale = fp8.quantize_rows(x)
        return (q.float() * scale) @ (e4m3.float() * scales).t()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        e4m3, scales = ctx.saved_tensors
        q, scale = fp8.quantize_rows(gradients[0], scales.flatten())
        return (q.float() * scale) @ e4m3.float(), None, None


def formula(case: Case, x: torch.Tensor, kept: torch.Tensor | float = 1.0) -> torch.Tensor:
    """X Wᵀ + b + s (kept x) Aᵀ Bᵀ, layer by layer."""
    layers = [getattr(module, "base_layer", module) for module in case.modules]
    if all(hasattr(layer, "weight_scale") for layer in layers):
        product: Any = Rounded.apply
        e4m3 = torch.cat([layer.weight.data for layer in layers]).view(fp8.E4M3)
        y = product(x, e4m3, torch.cat([layer.weight_scale for layer in layers]))
    else:
        y = x @ torch.cat(case.weights).t()
    parts = []
    sizes = [layer.out_features for layer in layers]
    for module, layer, part in zip(case.modules, layers, y.split(sizes, 1), strict=True):
        whole = part if layer.bias is None else part + layer.bias
        if module is not layer:
            a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
            whole = whole + case.scale * (x * kept) @ a.t() @ b.t()
        parts.append(whole)
    return torch.cat(parts, 1)


def prepared(case: Case, name: str) -> Group:
    """The group of a case's layers, which must be of the kind's type."""
    if name == "partitioned":  # ZeRO-3 owns such weights, so nothing may move them
        for module in case.modules:
            getattr(module, "base_layer", module).weight.ds_id = 0
    group = group_of(case.modules)
    assert type(group) is KINDS[name].group
    if name == "NF4, unpacked":
        assert isinstance(group, Nf4Group)
        group.unpack(case.dtype)
    return group


def leaves(case: Case) -> list[torch.Tensor]:
    return [p for module in case.modules for p in module.parameters() if p.requires_grad]


def assert_alike(case: Case, group: Group, x: torch.Tensor) -> None:
    """Output and all gradients are the formula's."""
    dy = torch.randn(len(x), group.outputs, dtype=x.dtype)
    wanted = [x, *leaves(case)] if x.requires_grad else leaves(case)
    results = [
        [y, *(torch.autograd.grad(y, wanted, dy) if wanted else ())]
        for y in (apply(x, group), formula(case, x))
    ]
    limit = 1e-9 if x.dtype is torch.float64 else 1e-5
    for found, expected in zip(*results, strict=True):
        assert found.shape == expected.shape
        assert relative_error(found, expected) < limit
