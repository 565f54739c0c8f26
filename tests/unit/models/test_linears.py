"""Grouped linear layers with adapters, against autograd through the formula as it is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, inject_adapter_in_model
from tests.fixtures.fast_paths import in_fp8, in_nf4, relative_error
from torch import nn

from latticeforge_trainer.kernels import fp8
from latticeforge_trainer.kernels.elementwise import added
from latticeforge_trainer.models.blocks import Output, _with_room
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


@settings(max_examples=25)
@given(data=st.data())
@pytest.mark.parametrize("name", KINDS)
def test_a_group_computes_the_formula(name: str, data: st.DataObject) -> None:
    kind = KINDS[name]
    torch.manual_seed(data.draw(st.integers(0, 1000), "seed"))
    sizes = data.draw(st.lists(st.sampled_from([1, 5, 16, 40]), min_size=1, max_size=3), "sizes")
    flags = st.lists(st.booleans(), min_size=len(sizes), max_size=len(sizes)).map(tuple)
    adapted = data.draw(flags.filter(any) if kind.adapters else flags, "adapted")
    case = make_case(
        kind,
        inputs=data.draw(st.sampled_from(kind.inputs), "inputs"),
        outputs=tuple(sizes),
        adapted=adapted,
        rank=data.draw(st.sampled_from([1, 3, 16, 25]), "rank"),
        biases=data.draw(flags, "biases"),
        stabilized=data.draw(st.booleans(), "stabilized"),
    )
    group = prepared(case, name)
    tokens = data.draw(st.integers(1, 6), "tokens")
    x = torch.randn(tokens, group.inputs, dtype=kind.dtype)
    assert_alike(case, group, x.requires_grad_(data.draw(st.booleans(), "wanted")))


@pytest.mark.parametrize("name", ["NF4", "FP8"])
def test_a_quantized_base_needs_no_adapter(name: str) -> None:
    torch.manual_seed(0)
    kind = KINDS[name]
    case = make_case(kind, adapted=(False, False, False), biases=(True, True, True))
    x = torch.randn(4, 64, dtype=kind.dtype, requires_grad=True)
    assert_alike(case, prepared(case, name), x)


@pytest.mark.parametrize("name", KINDS)
def test_adapters_are_read_anew_in_every_step(name: str) -> None:
    torch.manual_seed(0)
    kind = KINDS[name]
    case = make_case(kind)
    group = prepared(case, name)
    x = torch.randn(4, 64, dtype=kind.dtype, requires_grad=True)
    assert_alike(case, group, x)
    with torch.no_grad():
        for parameter in leaves(case):
            parameter.add_(1)
    assert_alike(case, group, x)


def test_adapters_of_another_type_are_cast() -> None:
    torch.manual_seed(0)
    case = make_case(KINDS["frozen"])
    group = prepared(case, "frozen")
    x = torch.randn(4, 64, dtype=torch.float64, requires_grad=True)
    results = []
    for dtype, run in ((torch.float32, apply), (torch.float64, lambda x, _: formula(case, x))):
        for parameter in leaves(case):
            parameter.data = parameter.data.to(dtype)
        grads = torch.autograd.grad(run(x, group).square().sum(), [x, *leaves(case)])
        assert [g.dtype for g in grads] == [torch.float64, *[dtype] * 6]
        results.append(grads)
    assert all(relative_error(a, b) < 1e-6 for a, b in zip(*results, strict=True))


def test_leading_dimensions_are_kept() -> None:
    torch.manual_seed(0)
    group = prepared(make_case(KINDS["frozen"]), "frozen")
    x = torch.randn(2, 3, 64, dtype=torch.float64)
    y = apply(x, group)
    assert y.shape == (2, 3, group.outputs)
    assert torch.equal(y.flatten(0, 1), apply(x.flatten(0, 1), group))


def test_a_frozen_base_moves_but_stays_what_it_was() -> None:
    torch.manual_seed(0)
    case = make_case(KINDS["frozen"])
    group = prepared(case, "frozen")
    for layer, weight in zip(group.layers, case.weights, strict=True):
        assert torch.equal(layer.weight, weight)
    start = group.layers[0].weight.untyped_storage().data_ptr()
    assert {layer.weight.untyped_storage().data_ptr() for layer in group.layers} == {start}


@pytest.mark.parametrize("name", ["trained", "partitioned", "FP8"])
def test_what_is_left_for_late_is_what_is_missing(name: str) -> None:
    torch.manual_seed(0)
    kind = KINDS[name]
    group = prepared(make_case(kind), name)
    x = torch.randn(4, 64, dtype=kind.dtype)
    dy = torch.randn(4, group.outputs, dtype=kind.dtype)
    with torch.no_grad():
        (whole, kept), (early, kept_early) = group.forward(x), group.forward(x, late=True)
        back = group.backward_input(dy, kept)
        early_back = group.backward_input(dy, kept_early, late=True)
    for part, pending, sum_ in [
        (early, group.pending(kept_early), whole),
        (early_back, group.pending_back(kept_early), back),
    ]:
        assert pending is not None
        assert relative_error(part, sum_) > 0.1
        assert relative_error(added(part, pending), sum_) < 1e-5


@pytest.mark.parametrize("name", ["frozen", "NF4"])
def test_nothing_is_late_where_adapters_lie_inside_the_product(name: str) -> None:
    torch.manual_seed(0)
    group = prepared(make_case(KINDS[name]), name)
    x = group.as_input(torch.randn(4, 64, dtype=torch.float64))
    dy = group.as_gradient(torch.randn(4, group.outputs, dtype=torch.float64))
    with torch.no_grad():
        (late, kept), (whole, _) = group.forward(x, late=True), group.forward(x)
        dx = group.backward_input(dy, kept, late=True)
        assert torch.equal(late, whole)
        assert torch.equal(dx, group.backward_input(dy, kept))
    assert group.pending(kept) is None
    assert group.pending_back(kept) is None


# --- dropout ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_dropout_is_of_the_adapters_input_alone(name: str) -> None:
    torch.manual_seed(0)
    kind = KINDS[name]
    case = make_case(kind, dropout=0.4, biases=(True, False, True))
    group = prepared(case, name)
    x = torch.randn(50, 64, dtype=kind.dtype, requires_grad=True)
    dy = torch.randn(50, group.outputs, dtype=kind.dtype)
    torch.manual_seed(7)
    y = apply(x, group)
    torch.manual_seed(7)
    _, mask = torch.native_dropout(x, 0.4, train=True)
    expected = formula(case, x, mask / 0.6)
    assert 0.5 < mask.double().mean() < 0.7
    limit = 1e-7 if x.dtype is torch.float64 else 1e-5  # torch divides by a share in 32 bits
    assert relative_error(y, expected) < limit
    wanted = [x, *leaves(case)]
    grads = [torch.autograd.grad(value, wanted, dy) for value in (y, expected)]
    assert all(relative_error(a, b) < limit for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("name", KINDS)
def test_nothing_is_dropped_in_evaluation(name: str) -> None:
    torch.manual_seed(0)
    kind = KINDS[name]
    case = make_case(kind, dropout=0.4)
    group = prepared(case, name)
    for module in case.modules:
        module.eval()
    x = torch.randn(4, 64, dtype=kind.dtype, requires_grad=True)
    assert_alike(case, group, x)


def test_late_dropout_leaves_the_gradient_whole() -> None:
    """A dropped product is no product of low rank, so it cannot be left for later."""
    torch.manual_seed(0)
    group = prepared(make_case(KINDS["FP8"], dropout=0.4), "FP8")
    x, dy = torch.randn(4, 64), torch.randn(4, group.outputs)
    with torch.no_grad():
        _, kept = group.forward(x)
        whole = group.backward_input(dy, kept)
        assert torch.equal(group.backward_input(dy, kept, late=True), whole)
    assert group.pending_back(kept) is None


# --- gradients from elsewhere -----------------------------------------------------------------


def slices(group: Group) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Gradients that are parts of other tensors, with all of the tensor."""
    width, ranks = group.outputs, group.ranks
    wide = torch.randn(4, width + ranks + 5, dtype=torch.float64)
    yield wide[:, :width], wide
    yield wide[:, 5 : 5 + width], wide
    exact = torch.randn(4, width + ranks, dtype=torch.float64)
    yield exact[:, :width], exact
    yield exact[:, ranks:], exact
    rows = torch.randn(2, 2, width + ranks, dtype=torch.float64)
    yield rows.flatten(0, 1)[:, :width], rows
    flat = torch.randn(4 * (width + ranks), dtype=torch.float64)
    yield flat.view(4, width + ranks)[:, :width], flat
    yield flat[: 4 * width].view(4, width), flat
    scattered = torch.randn(width, 4, dtype=torch.float64)
    yield scattered.t(), scattered
    yield torch.randn((), dtype=torch.float64).expand(4, width), flat


@pytest.mark.parametrize("name", ["trained", "frozen", "NF4"])
@pytest.mark.parametrize("adapted", [True, False])
@pytest.mark.parametrize("node", ["Linears", "Output"])
def test_nothing_is_written_behind_a_gradient_from_elsewhere(
    name: str, adapted: bool, node: str
) -> None:
    torch.manual_seed(0)
    kind = KINDS[name]
    case = make_case(kind, outputs=(64,), adapted=(adapted,), biases=(False,))
    group = group_of(case.modules)
    x = torch.randn(4, 64, dtype=torch.float64, requires_grad=True)
    run: Any = Output.apply
    for dy, whole in slices(group):
        before = whole.clone()
        y = apply(x, group) if node == "Linears" else run(x, group, *group.tensors)
        (dx,) = torch.autograd.grad(y, x, dy)
        assert torch.equal(whole, before)
        (expected,) = torch.autograd.grad(formula(case, x), x, dy)
        assert relative_error(dx, expected) < 1e-9


def test_a_gradient_made_for_its_group_is_not_copied() -> None:
    group = prepared(make_case(KINDS["frozen"]), "frozen")
    dy = group.gradient_buffer(torch.zeros(4, group.outputs, dtype=torch.float64))
    assert _with_room(dy, group) is dy
