"""The head and the loss as one step of autograd, on learned tokens only.

Logits are the largest tensor of a step: 8,192 tokens of a vocabulary of 152k are 2.5 GB in 16 bits.
They exist one piece at a time, and each piece becomes its own gradient at once, so that backward
has nothing left to multiply: two products with the head instead of three.
"""

from __future__ import annotations

from typing import Any

import torch

from latticeforge_trainer.estimate.buckets import LOGITS_AT_ONCE
from latticeforge_trainer.kernels.cross_entropy import loss_and_gradient_


class LinearCrossEntropy(torch.autograd.Function):
    """The sum over rows of -log softmax(hidden Wᵀ)[target]."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor
    ) -> torch.Tensor:
        """[targets, hidden], [vocabulary, hidden], int64 [targets] → fp32 scalar."""
        want_hidden, want_weight, _ = ctx.needs_input_grad
        dhidden = torch.empty_like(hidden) if want_hidden else None
        dweight = torch.zeros_like(weight, dtype=torch.float32) if want_weight else None
        total = hidden.new_zeros((), dtype=torch.float32)
        rows = max(1, LOGITS_AT_ONCE // len(weight))
        for start in range(0, len(hidden), rows):
            piece = slice(start, start + rows)
            logits = hidden[piece] @ weight.t()
            total += loss_and_gradient_(logits, targets[piece]).sum()
            if dhidden is not None:
                torch.mm(logits, weight, out=dhidden[piece])
            if dweight is not None:
                _accumulate(dweight, logits, hidden[piece])
        ctx.save_for_backward(dhidden, None if dweight is None else dweight.to(weight.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """What forward has found, times the gradient of the sum, which stays in fp32."""
        dhidden, dweight = ctx.saved_tensors
        scale = gradients[0]
        return (
            None if dhidden is None else dhidden * scale,
            None if dweight is None else dweight * scale,
            None,
        )


def _accumulate(total: torch.Tensor, logits: torch.Tensor, hidden: torch.Tensor) -> None:
    """Add logitsᵀ hidden to a sum in fp32."""
    if total.is_cuda and logits.dtype is not torch.float32:
        torch.addmm(total, logits.t(), hidden, out_dtype=torch.float32, out=total)
    else:
        total += logits.t() @ hidden
