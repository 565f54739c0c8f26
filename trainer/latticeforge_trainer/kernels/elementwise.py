"""RMSNorm, SwiGLU and rotary embeddings with their gradients, as plain functions of rows.

No autograd: the blocks that call them (`models.blocks`) decide what is kept for backward.
Intermediate arithmetic is fp32 and rounds where transformers does. Rows may lie at any distance.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional


@dataclass(frozen=True)
class Product:
    """A product of low rank that is still to be added to something."""

    left: torch.Tensor
    """[rows, rank]."""
    right: torch.Tensor
    """[rank, columns]."""


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
    dx: torch.Tensor,
    *,
    residual: torch.Tensor | None = None,
    want_weight: bool = False,
) -> torch.Tensor | None:
    """Write the gradient of x.

    Args:
        dy: Of the output, [rows, width].
        x: [rows, width], contiguous.
        weight: [width].
        inverse: From `rms_norm`.
        dx: Where to, [rows, width].
        residual: Added to the gradient of x: what reaches it beside the norm, [rows, width].
        want_weight: Whether the weight is trained.

    Returns:
        The gradient of the weight, if it is trained.
    """
    if x.is_cuda:
        from latticeforge_trainer.kernels import device_elementwise  # noqa: PLC0415  (Triton)

        return device_elementwise.rms_norm_backward(
            dy, x, weight, inverse, residual, dx, want_weight=want_weight
        )
    normed = x.float() * inverse[:, None]
    scaled = dy.float() * weight.float()
    whole = inverse[:, None] * (scaled - normed * (scaled * normed).mean(-1, keepdim=True))
    dx.copy_(whole if residual is None else whole + residual)
    return (dy.float() * normed).sum(0).to(weight.dtype) if want_weight else None


def swiglu(gate_up: torch.Tensor, out: torch.Tensor, pending: Product | None = None) -> None:
    """Write silu(gate) * up into [rows, inner].

    Args:
        gate_up: [rows, 2 x inner].
        out: [rows, inner].
        pending: To be added to `gate_up` first.
    """
    if gate_up.is_cuda:
        from latticeforge_trainer.kernels import device_elementwise  # noqa: PLC0415  (Triton)

        device_elementwise.swiglu(gate_up, out, pending)
        return
    gate, up = added(gate_up, pending).chunk(2, -1)
    out.copy_(functional.silu(gate.float()).to(gate.dtype) * up)


def swiglu_backward(
    gate_up: torch.Tensor,
    dy: torch.Tensor,
    out: torch.Tensor,
    product: torch.Tensor,
    *,
    pending: Product | None = None,
    pending_dy: Product | None = None,
) -> None:
    """Write the gradient of gate and up, and silu(gate) * up again.

    Args:
        gate_up: [rows, 2 x inner].
        dy: [rows, inner].
        out: The gradient, [rows, 2 x inner].
        product: silu(gate) * up, [rows, inner].
        pending: To be added to `gate_up` first.
        pending_dy: To be added to `dy` first.
    """
    if gate_up.is_cuda:
        from latticeforge_trainer.kernels import device_elementwise  # noqa: PLC0415  (Triton)

        device_elementwise.swiglu_backward(gate_up, dy, out, product, pending, pending_dy)
        return
    whole, dwhole = added(gate_up, pending), added(dy, pending_dy).float()
    gate, up = whole.float().chunk(2, -1)
    sigmoid = torch.sigmoid(gate)
    silu = gate * sigmoid
    dgate, dup = out.chunk(2, -1)
    dgate.copy_(dwhole * up * (silu * (1 - sigmoid) + sigmoid))
    dup.copy_(dwhole * silu)
    product.copy_(silu.to(whole.dtype) * up.to(whole.dtype))


def added(x: torch.Tensor, pending: Product | None) -> torch.Tensor:
    """The sum of a tensor and what is still to be added to it."""
    return x if pending is None else torch.addmm(x, pending.left, pending.right)


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
