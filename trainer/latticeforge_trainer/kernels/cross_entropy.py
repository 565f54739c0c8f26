"""Softmax cross-entropy that leaves its gradient where the logits were."""

from __future__ import annotations

import torch


def loss_and_gradient_(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Each row's -log p(target), in fp32; the logits become softmax - onehot, in their own type.

    Args:
        logits: [rows, vocabulary], contiguous; overwritten.
        targets: int64 [rows].
    """
    if logits.is_cuda:
        from latticeforge_trainer.kernels import device  # noqa: PLC0415  (Triton)

        losses = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
        device.cross_entropy(logits, targets, losses)
        return losses
    at = targets[:, None]
    normalizer = torch.logsumexp(logits.float(), dim=-1, keepdim=True)
    losses = (normalizer - logits.gather(1, at)).squeeze(1)
    slope = logits.float().sub_(normalizer).exp_()
    slope.scatter_add_(1, at, slope.new_full((len(targets), 1), -1.0))
    logits.copy_(slope)
    return losses
