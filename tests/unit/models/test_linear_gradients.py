"""What stands between a group and a plain gradient: dropout, and memory that others still need."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tests.fixtures.fast_paths import relative_error
from tests.unit.models.linear_cases import (
    KINDS,
    assert_alike,
    formula,
    leaves,
    make_case,
    prepared,
)

from latticeforge_trainer.models.blocks import Output, _with_room
from latticeforge_trainer.models.linears import Group, apply, group_of


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
