"""RMSNorm, SwiGLU and rotary embeddings with their gradients, as plain functions of rows.

No autograd: the blocks that call them (`models.blocks`) decide what is kept for backward.
Intermediate arithmetic is fp32 and rounds where transformers does. Rows may lie at any distance.
"""

from __future__ import annotations

import torch
from torch.nn import functional


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, epsilon: float, out: torch.Tensor
) -> torch.Tensor:
    """Write x / rms(x) * weight.

    Args:
        x: [rows, width].
        weight: [width].
        epsilon: Added to the mean of squares.
        out: [rows, width].

    Returns:
        1 / rms(x) in fp32, [rows].
    """
    if x.is_cuda:
        from latticeforge_trainer.kernels import device_elementwise  # noqa: PLC0415  (Triton)

        inverse = torch.empty(len(x), dtype=torch.float32, device=x.device)
        device_elementwise.rms_norm(x, weight, epsilon, out, inverse)
        return inverse
    inverse = torch.rsqrt(x.float().square().mean(-1) + epsilon)
    out.copy_((x.float() * inverse[:, None]).to(x.dtype) * weight)
    return inverse


def rms_norm_backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    inverse: torch.Tensor,
    *,
    residual: torch.Tensor | None = None,
    want_weight: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The gradients of x and, if wanted, of the weight.

    Args:
        dy: Of the output, [rows, width].
        x: [rows, width], contiguous.
        weight: [width].
        inverse: From `rms_norm`.
        residual: Added to the gradient of x: what reaches it beside the norm, [rows, width].
        want_weight: Whether the weight is trained.
    """
    if x.is_cuda:
        from latticeforge_trainer.kernels import device_elementwise  # noqa: PLC0415  (Triton)

        dx = torch.empty_like(x)
        dweight = device_elementwise.rms_norm_backward(
            dy, x, weight, inverse, residual, dx, want_weight=want_weight
        )
        return dx, dweight
    normed = x.float() * inverse[:, None]
    scaled = dy.float() * weight.float()
    whole = inverse[:, None] * (scaled - normed * (scaled * normed).mean(-1, keepdim=True))
    if residual is not None:
        whole += residual
    dweight = (dy.float() * normed).sum(0).to(weight.dtype) if want_weight else None
    return whole.to(x.dtype), dweight


def swiglu(gate_up: torch.Tensor, out: torch.Tensor) -> None:
    """Write silu(gate) * up of [rows, 2 x inner] into [rows, inner]."""
    if gate_up.is_cuda:
        from latticeforge_trainer.kernels import device_elementwise  # noqa: PLC0415  (Triton)

        device_elementwise.swiglu(gate_up, out)
        return
    gate, up = gate_up.chunk(2, -1)
    out.copy_(functional.silu(gate.float()).to(gate.dtype) * up)


def swiglu_backward(
    gate_up: torch.Tensor, dy: torch.Tensor, out: torch.Tensor, product: torch.Tensor
) -> None:
    """Write the gradient of [rows, 2 x inner] into `out`, and silu(gate) * up into `product`."""
    if gate_up.is_cuda:
        from latticeforge_trainer.kernels import device_elementwise  # noqa: PLC0415  (Triton)

        device_elementwise.swiglu_backward(gate_up, dy, out, product)
        return
    gate, up = gate_up.float().chunk(2, -1)
    sigmoid = torch.sigmoid(gate)
    silu = gate * sigmoid
    dgate, dup = out.chunk(2, -1)
    dgate.copy_(dy.float() * up * (silu * (1 - sigmoid) + sigmoid))
    dup.copy_(dy.float() * silu)
    product.copy_(silu.to(gate_up.dtype) * up.to(gate_up.dtype))


def rotate(
    x: torch.Tensor,
    out: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    *,
    back: bool = False,
) -> None:
    """Write heads turned by their tokens' angles, or turned back, which is the gradient.

    Args:
        x: [tokens, heads, dim].
        out: As `x`; may be `x`.
        cos: [tokens, dim], or [n, dim] to be used again every n tokens; both halves alike.
        sin: As `cos`.
        back: Turn the other way.
    """
    if x.is_cuda:
        from latticeforge_trainer.kernels import device_elementwise  # noqa: PLC0415  (Triton)

        device_elementwise.rotate(x, out, cos, sin, back=back)
        return
    again = len(x) // len(cos)
    c, s = (angle.repeat(again, 1)[:, None] for angle in (cos, -sin if back else sin))
    first, second = x.chunk(2, -1)
    out.copy_(x * c + torch.cat((-second, first), -1) * s)
