"""The head and the loss in one, against whole logits in 64 bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.fixtures.fast_paths import relative_error
from torch.nn import functional

from latticeforge_trainer.kernels.cross_entropy import loss_and_gradient_
from latticeforge_trainer.training import head
from latticeforge_trainer.training.head import LinearCrossEntropy

VOCABULARY, WIDTH = 50, 16


def operands(rows: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, a head and targets."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(rows, WIDTH) * 2, torch.randn(VOCABULARY, WIDTH)
    return hidden.to(dtype), weight.to(dtype), torch.randint(0, VOCABULARY, (rows,))


def fused(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    node: Any = LinearCrossEntropy.apply  # untyped in torch
    loss: torch.Tensor = node(hidden, weight, targets)
    return loss


def whole(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(hidden @ weight.t(), targets, reduction="sum")


def gradients(run: Any, inputs: tuple[torch.Tensor, ...], scale: float) -> list[torch.Tensor]:
    """The loss, and its gradients by what is trained."""
    hidden, weight, targets = inputs
    loss = run(hidden, weight, targets)
    wanted = [tensor for tensor in (hidden, weight) if tensor.requires_grad]
    return [loss.detach(), *torch.autograd.grad(loss * scale, wanted)]


@pytest.mark.parametrize("rows_at_once", [1, 4, 13, 100])
@pytest.mark.parametrize("trained", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_loss_and_gradients_are_those_of_whole_logits(
    dtype: torch.dtype,
    limit: float,
    trained: tuple[bool, bool],
    rows_at_once: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(head, "LOGITS_AT_ONCE", rows_at_once * VOCABULARY + VOCABULARY - 1)
    results = []
    for run, kind in ((fused, dtype), (whole, torch.float64)):
        hidden, weight, targets = operands(13, dtype)
        hidden, weight = hidden.to(kind), weight.to(kind)
        hidden.requires_grad_(trained[0])
        weight.requires_grad_(trained[1])
        results.append(gradients(run, (hidden, weight, targets), 1 / 3))
    found, expected = results
    assert found[0].dtype is torch.float32
    assert all(tensor.dtype is dtype for tensor in found[1:])
    errors = [relative_error(a, b) for a, b in zip(found, expected, strict=True)]
    assert max(errors) < limit


def test_the_scale_of_the_loss_is_not_rounded_to_16_bits() -> None:
    """1 / tokens of a step is a factor of every gradient, and so of their norm."""
    inputs = operands(13, torch.bfloat16)
    for tensor in inputs[:2]:
        tensor.requires_grad_()
    _, *plain = gradients(fused, inputs, 1.0)
    _, *scaled = gradients(fused, inputs, 1 / 1.0038)
    for found, expected in zip(scaled, plain, strict=True):
        assert torch.equal(found, (expected.float() * torch.tensor(1 / 1.0038)).bfloat16())


def test_no_target_is_no_loss_and_no_gradient() -> None:
    hidden, weight, targets = operands(0, torch.float32)
    hidden.requires_grad_()
    weight.requires_grad_()
    loss, dhidden, dweight = gradients(fused, (hidden, weight, targets), 1.0)
    assert loss.item() == 0
    assert dhidden.shape == (0, WIDTH)
    assert torch.equal(dweight, torch.zeros_like(weight))


def test_logits_exist_one_piece_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "LOGITS_AT_ONCE", 4 * VOCABULARY)
    sizes = []

    def seen(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        sizes.append(len(logits))
        return loss_and_gradient_(logits, targets)

    monkeypatch.setattr(head, "loss_and_gradient_", seen)
    fused(*operands(13, torch.float32))
    assert sizes == [4, 4, 4, 1]


def test_a_tied_head_gets_both_of_its_gradients() -> None:
    torch.manual_seed(0)
    tokens, targets = torch.randint(0, VOCABULARY, (2, 9))
    results = []
    for run, dtype in ((fused, torch.float32), (whole, torch.float64)):
        torch.manual_seed(1)
        table = torch.randn(VOCABULARY, WIDTH).to(dtype).requires_grad_()
        loss = run(functional.embedding(tokens, table).tanh(), table, targets)
        results.append(torch.autograd.grad(loss, table)[0])
    assert relative_error(*results) < 1e-5


def test_targets_that_are_certain_or_hopeless_stay_finite() -> None:
    hidden = torch.tensor([[1e3], [1e3]], requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0]], requires_grad=True)
    loss, dhidden, _ = gradients(fused, (hidden, weight, torch.tensor([0, 1])), 1.0)
    assert loss.item() == 2000
    assert torch.equal(dhidden, torch.tensor([[0.0], [2.0]]))
