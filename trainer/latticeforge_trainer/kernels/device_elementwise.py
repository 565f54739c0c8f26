"""Triton kernels between the products of a decoder layer.

They read and write rows at any distance, so that what a product needs beside its input (an
adapter's columns) lies behind it in the same rows, and what several layers put out in one product
need not be taken apart. See `kernels.device` for when this is imported.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from latticeforge_trainer.kernels.elementwise import Product


@triton.jit
def _rms_norm(
    x, weight, out, inverse, x_stride, out_stride, width, epsilon, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < width
    values = tl.load(x + row * x_stride + at, mask=inside, other=0.0).to(tl.float32)
    one_by = tl.rsqrt(tl.sum(values * values, axis=0) / width + epsilon)
    tl.store(inverse + row, one_by)
    normed = (values * one_by).to(out.dtype.element_ty).to(tl.float32)
    scaled = normed * tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * out_stride + at, scaled.to(out.dtype.element_ty), mask=inside)


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, epsilon: float, out: torch.Tensor, inverse: torch.Tensor
) -> None:
    """Write x / rms(x) * weight and 1 / rms(x)."""
    rows, width = x.shape
    block = triton.next_power_of_2(width)
    _rms_norm[(rows,)](
        x, weight, out, inverse, x.stride(0), out.stride(0), width, epsilon,
        BLOCK=block, num_warps=_warps(block),
    )  # fmt: skip


@triton.jit
def _rms_norm_backward(
    dy, x, weight, inverse, residual, dx, dweight,
    dy_stride, residual_stride, dx_stride, rows, width, each,
    HAS_RESIDUAL: tl.constexpr, WANT_WEIGHT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`each` rows: dx = residual + the norm's gradient; the weight's is summed over them."""
    program = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < width
    w = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for row in range(program * each, tl.minimum(program * each + each, rows)):
        one_by = tl.load(inverse + row)
        normed = tl.load(x + row * width + at, mask=inside, other=0.0).to(tl.float32) * one_by
        gradient = tl.load(dy + row * dy_stride + at, mask=inside, other=0.0).to(tl.float32)
        if WANT_WEIGHT:
            total += gradient * normed
        scaled = gradient * w
        mean = tl.sum(scaled * normed, axis=0) / width
        result = one_by * (scaled - normed * mean)
        if HAS_RESIDUAL:
            result += tl.load(residual + row * residual_stride + at, mask=inside, other=0.0)
        tl.store(dx + row * dx_stride + at, result.to(dx.dtype.element_ty), mask=inside)
    if WANT_WEIGHT:
        tl.store(dweight + program * width + at, total, mask=inside)


def rms_norm_backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    inverse: torch.Tensor,
    residual: torch.Tensor | None,
    dx: torch.Tensor,
    *,
    want_weight: bool,
) -> torch.Tensor | None:
    """Write dx; return the weight's gradient if wanted."""
    rows, width = x.shape
    block = triton.next_power_of_2(width)
    each = 1
    if want_weight:
        processors = torch.cuda.get_device_properties(x.device).multi_processor_count
        each = triton.cdiv(rows, 4 * processors)
    programs = triton.cdiv(rows, each)
    parts = x.new_empty(programs, width, dtype=torch.float32) if want_weight else None
    _rms_norm_backward[(programs,)](
        dy, x, weight, inverse, residual, dx, parts,
        dy.stride(0), 0 if residual is None else residual.stride(0), dx.stride(0),
        rows, width, each,
        HAS_RESIDUAL=residual is not None, WANT_WEIGHT=want_weight,
        BLOCK=block, num_warps=_warps(block),
    )  # fmt: skip
    return None if parts is None else parts.sum(0).to(weight.dtype)


@triton.jit
def _low_rank(
    left, right, left_stride, right_row, right_column, row, at, rows, columns, ranks,
    RANKS: tl.constexpr,
):  # fmt: skip
    """A tile of a product of low rank, in fp32."""
    r = tl.arange(0, RANKS)
    inside = r < ranks
    a = tl.load(
        left + row[:, None] * left_stride + r[None, :],
        mask=(row < rows)[:, None] & inside[None, :], other=0.0,
    )  # fmt: skip
    b = tl.load(
        right + r[:, None] * right_row + at[None, :].to(tl.int64) * right_column,
        mask=inside[:, None] & (at < columns)[None, :], other=0.0,
    )  # fmt: skip
    return tl.dot(a, b)


@triton.jit
def _swiglu(
    gate_up, out, stride, out_stride, rows, inner,
    left, right, left_stride, right_row, right_column, ranks,
    RANKS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    at = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (at < inner)[None, :]
    here = gate_up + row[:, None] * stride + at[None, :]
    gate = tl.load(here, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(here + inner, mask=inside, other=0.0).to(tl.float32)
    if RANKS:
        gate += _low_rank(
            left, right, left_stride, right_row, right_column, row, at, rows, inner, ranks, RANKS
        )
        up += _low_rank(
            left, right + inner * right_column, left_stride, right_row, right_column,
            row, at, rows, inner, ranks, RANKS,
        )  # fmt: skip
    kind = out.dtype.element_ty
    product = (gate * tl.sigmoid(gate)).to(kind).to(tl.float32) * up
    tl.store(out + row[:, None] * out_stride + at[None, :], product.to(kind), mask=inside)


def swiglu(gate_up: torch.Tensor, out: torch.Tensor, pending: Product | None) -> None:
    """Write silu(gate) * up of [rows, 2 x inner] into [rows, inner]."""
    rows, inner = out.shape
    tile = _tile(pending)
    _swiglu[_grid(rows, inner, tile)](
        gate_up, out, gate_up.stride(0), out.stride(0), rows, inner, *_operands(pending, out),
        RANKS=_padded(pending), **tile,
    )  # fmt: skip


@triton.jit
def _swiglu_backward(
    gate_up, dy, out, product, stride, dy_stride, out_stride, product_stride, rows, inner,
    left, right, left_stride, right_row, right_column, ranks,
    left2, right2, left2_stride, right2_row, right2_column, ranks2,
    RANKS: tl.constexpr, RANKS2: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    at = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (at < inner)[None, :]
    here = gate_up + row[:, None] * stride + at[None, :]
    gate = tl.load(here, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(here + inner, mask=inside, other=0.0).to(tl.float32)
    gradient = tl.load(dy + row[:, None] * dy_stride + at[None, :], mask=inside, other=0.0)
    gradient = gradient.to(tl.float32)
    if RANKS:
        gate += _low_rank(
            left, right, left_stride, right_row, right_column, row, at, rows, inner, ranks, RANKS
        )
        up += _low_rank(
            left, right + inner * right_column, left_stride, right_row, right_column,
            row, at, rows, inner, ranks, RANKS,
        )  # fmt: skip
    if RANKS2:
        gradient += _low_rank(
            left2, right2, left2_stride, right2_row, right2_column,
            row, at, rows, inner, ranks2, RANKS2,
        )  # fmt: skip
    sigmoid = tl.sigmoid(gate)
    silu = gate * sigmoid
    kind = out.dtype.element_ty
    target = out + row[:, None] * out_stride + at[None, :]
    dgate = gradient * up * (silu * (1 - sigmoid) + sigmoid)
    tl.store(target, dgate.to(kind), mask=inside)
    tl.store(target + inner, (gradient * silu).to(kind), mask=inside)
    again = silu.to(kind).to(tl.float32) * up
    tl.store(product + row[:, None] * product_stride + at[None, :], again.to(kind), mask=inside)


def swiglu_backward(
    gate_up: torch.Tensor,
    dy: torch.Tensor,
    out: torch.Tensor,
    product: torch.Tensor,
    pending: Product | None,
    pending_dy: Product | None,
) -> None:
    """Write the gradient of [rows, 2 x inner], and silu(gate) * up again."""
    rows, inner = dy.shape
    tile = _tile(pending or pending_dy)
    _swiglu_backward[_grid(rows, inner, tile)](
        gate_up, dy, out, product,
        gate_up.stride(0), dy.stride(0), out.stride(0), product.stride(0), rows, inner,
        *_operands(pending, out), *_operands(pending_dy, out),
        RANKS=_padded(pending), RANKS2=_padded(pending_dy), **tile,
    )  # fmt: skip


def _tile(pending: Product | None) -> dict[str, int]:
    """The part of the output that a program makes: a row's, or one fit for the tensor cores."""
    if pending is None:
        return {"ROWS": 1, "COLUMNS": 2048, "num_warps": 4}
    return {"ROWS": 64, "COLUMNS": 128, "num_warps": 4}


def _grid(rows: int, columns: int, tile: dict[str, int]) -> tuple[int, int]:
    return triton.cdiv(rows, tile["ROWS"]), triton.cdiv(columns, tile["COLUMNS"])


def _operands(pending: Product | None, unused: torch.Tensor) -> tuple[Any, ...]:
    """Pointers, strides and rank of what is still to be added."""
    if pending is None:
        return unused, unused, 0, 0, 0, 0
    left, right = pending.left, pending.right
    return left, right, left.stride(0), right.stride(0), right.stride(1), right.shape[0]


def _padded(pending: Product | None) -> int:
    """The rank as tensor cores take it; 0: nothing is to be added."""
    return 0 if pending is None else max(16, triton.next_power_of_2(pending.right.shape[0]))


@triton.jit
def _rotate(
    x, out, cos, sin, x_stride, x_head, out_stride, out_head, angles, heads,
    HALF: tl.constexpr, BACK: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """All heads of one token."""
    token = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, HALF)
    c = tl.load(cos + (token % angles) * 2 * HALF + at).to(tl.float32)[None, :]
    s = tl.load(sin + (token % angles) * 2 * HALF + at).to(tl.float32)[None, :]
    if BACK:
        s = -s
    head = tl.arange(0, HEADS)[:, None]
    inside = head < heads
    first = x + token * x_stride + head * x_head + at[None, :]
    a = tl.load(first, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(first + HALF, mask=inside, other=0.0).to(tl.float32)
    target = out + token * out_stride + head * out_head + at[None, :]
    kind = out.dtype.element_ty
    tl.store(target, (a * c - b * s).to(kind), mask=inside)
    tl.store(target + HALF, (b * c + a * s).to(kind), mask=inside)


def rotate(
    x: torch.Tensor, out: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, back: bool
) -> None:
    """Write [tokens, heads, dim] turned by its tokens' angles [angles, dim]; `out` may be `x`."""
    tokens, heads, dim = x.shape
    padded = triton.next_power_of_2(heads)
    _rotate[(tokens,)](
        x, out, cos, sin, x.stride(0), x.stride(1), out.stride(0), out.stride(1), len(cos), heads,
        HALF=dim // 2, BACK=back, HEADS=padded, num_warps=8 if padded * dim >= 8192 else 4,
    )  # fmt: skip


def _warps(block: int) -> int:
    return min(16, max(4, block // 512))
