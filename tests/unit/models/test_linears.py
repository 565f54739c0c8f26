"""Grouped linear layers with adapters, against autograd through the formula as it is written."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.fixtures.fast_paths import relative_error
from tests.unit.models.linear_cases import (
    KINDS,
    assert_alike,
    formula,
    leaves,
    make_case,
    prepared,
)

from latticeforge_trainer.kernels.elementwise import added
from latticeforge_trainer.models.linears import apply


@settings(max_examples=25)
@given(data=st.data())
@pytest.mark.parametrize("name", KINDS)
def test_a_group_computes_the_formula(name: str, data: st.DataObject) -> None:
    kind = KINDS[name]
    torch.manual_seed(data.draw(st.integers(0, 1000), "seed"))
    sizes = data.draw(st.lists(st.sampled_from([1, 5, 16, 40]), min_size=1, max_size=3), "sizes")
    flags = st.lists(st.booleans(), min_size=len(sizes), max_size=len(sizes)).map(tuple)
    adapted = data.draw(flags.filter(any) if kind.adapters else flags, "adapted")
    rank = data.draw(st.sampled_from([1, 3, 16, 25]), "rank")
    tokens = data.draw(st.integers(1, 6), "tokens")
    # One number between A and B may be what large terms leave when they cancel: 32 bits hold it to
    # five places or fewer, in whatever order they are added.
    assume(rank * tokens > 1 or kind.dtype is torch.float64)
    case = make_case(
        kind,
        inputs=data.draw(st.sampled_from(kind.inputs), "inputs"),
        outputs=tuple(sizes),
        adapted=adapted,
        rank=rank,
        biases=data.draw(flags, "biases"),
        stabilized=data.draw(st.booleans(), "stabilized"),
    )
    group = prepared(case, name)
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


@pytest.mark.parametrize("name", ["frozen", "FP8"])
def test_a_frozen_base_moves_but_stays_what_it_was(name: str) -> None:
    torch.manual_seed(0)
    case = make_case(KINDS[name])
    layers: list[Any] = prepared(case, name).layers
    for layer, weight in zip(layers, case.weights, strict=True):
        found = layer.e4m3.float() * layer.weight_scale if name == "FP8" else layer.weight
        assert torch.equal(found, weight)
    assert len({layer.weight.untyped_storage().data_ptr() for layer in layers}) == 1


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
