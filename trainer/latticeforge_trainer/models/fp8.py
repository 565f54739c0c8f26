"""A frozen linear layer whose weight is held in FP8: half the memory of 16 bits, faster products.

Lossy, so nobody gets it without asking (`lora.baseDtype: FP8`); docs/performance.md has what it
does to the loss.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import nn

from latticeforge_trainer.kernels import fp8


class Fp8Linear(nn.Linear):
    """y = x Wᵀ + b with W in E4M3 and one scale per output.

    A subclass of `nn.Linear`, so that whoever looks for linear layers finds it. The weight is held
    as bytes, so that nobody takes it for a number type to cast others to, or casts it.
    """

    weight_scale: torch.Tensor
    """fp32 [out, 1]."""

    @property
    def e4m3(self) -> torch.Tensor:
        """The weight as numbers, to be multiplied by `weight_scale`: [out, in]."""
        return self.weight.data.view(fp8.E4M3)

    @classmethod
    def from_weight(cls, weight: torch.Tensor, bias: torch.Tensor | None) -> Self:
        """Quantize a 16-bit weight [out, in]."""
        outputs, inputs = weight.shape
        layer = cls(inputs, outputs, bias=bias is not None, device="meta", dtype=weight.dtype)
        quantized, scale = fp8.quantize_rows(weight)
        layer.weight = nn.Parameter(quantized.view(torch.uint8), requires_grad=False)
        layer.register_buffer("weight_scale", scale, persistent=False)
        if bias is not None:
            layer.bias = nn.Parameter(bias, requires_grad=False)
        return layer

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  (nn.Linear's name)
        """Without gradients; training goes through `models.linears`."""
        rows, scale = fp8.quantize_rows(input.flatten(0, -2))
        y = fp8.product(rows, scale, self.e4m3, self.weight_scale, input.dtype)
        y = y.view(*input.shape[:-1], -1)
        return y if self.bias is None else y + self.bias
