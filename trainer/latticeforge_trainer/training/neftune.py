"""Noise on embeddings in training, which makes instruction-tuned models answer better.

N. Jain et al., "NEFTune: Noisy Embeddings Improve Instruction Finetuning", ICLR 2024: uniform noise
of up to alpha / sqrt(L d) on each of d components, L being the tokens of a row. As in the libraries
that offer it, a packed row counts as one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def add_noise(embeddings: nn.Module, alpha: float) -> None:
    """Add noise to what a module of embeddings gives, [rows, length, d], while it is trained.

    The generator that the loop seeds for each step draws it; without gradients there is none.
    """

    def noisy(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        if not torch.is_grad_enabled():
            return output
        _, length, size = output.shape
        bound = alpha / (length * size) ** 0.5
        return output + torch.empty_like(output).uniform_(-bound, bound)

    embeddings.register_forward_hook(noisy)
