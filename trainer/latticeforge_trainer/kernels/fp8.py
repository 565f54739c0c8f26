"""Products in FP8 (E4M3) with one scale per row: lossy, about 3.8 % of a product's norm.

W [out, in] is stored as 8 bits and one scale per output. Forward multiplies rows of x by rows of W.
Backward sums over the outputs, so their scales cannot be taken out of the sum: they are multiplied
into the gradient before that is quantized.
"""

from __future__ import annotations

import torch

E4M3 = torch.float8_e4m3fn
LARGEST = 448.0


def quantize_rows(
    x: torch.Tensor, factor: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize `x * factor` by rows.

    Args:
        x: [rows, columns].
        factor: fp32 [columns].

    Returns:
        E4M3 [rows, columns], and fp32 [rows, 1] to multiply it by.
    """
    if x.is_cuda:
        from latticeforge_trainer.kernels import device  # noqa: PLC0415  (Triton)

        q = torch.empty(x.shape, dtype=E4M3, device=x.device)
        scale = torch.empty(len(x), 1, dtype=torch.float32, device=x.device)
        device.quantize_rows(x, factor, q, scale)
        return q, scale
    values = x.float() if factor is None else x.float() * factor
    largest = values.abs().amax(1, keepdim=True)
    largest = torch.where(largest > 0, largest, LARGEST)
    return (values * (LARGEST / largest)).clamp(-LARGEST, LARGEST).to(E4M3), largest / LARGEST


def transposed(q: torch.Tensor) -> torch.Tensor:
    """The transpose of an E4M3 matrix, contiguous."""
    if q.is_cuda:
        from latticeforge_trainer.kernels import device  # noqa: PLC0415  (Triton)

        out = torch.empty(q.shape[::-1], dtype=q.dtype, device=q.device)
        device.transpose_bytes(q, out)
        return out
    return q.t().contiguous()


def product(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:
    """(x * x_scale) (weight * weight_scale)ᵀ, summed in fp32.

    Args:
        x: E4M3 [rows, inner].
        x_scale: fp32 [rows, 1].
        weight: E4M3 [columns, inner].
        weight_scale: fp32 [columns, 1].
        dtype: Of the result [rows, columns].
    """
    if x.is_cuda:
        return torch._scaled_mm(  # noqa: SLF001  (torch's only FP8 product)
            x,
            weight.t(),
            scale_a=x_scale,
            scale_b=weight_scale.t(),
            out_dtype=dtype,
            use_fast_accum=True,
        )
    return ((x.float() * x_scale) @ (weight.float() * weight_scale).t()).to(dtype)
