"""Triton kernels. Each is bound by memory: what counts is that every byte moves once.

Importing this needs Triton, so the modules beside it do so only when they are given CUDA tensors.
`TRITON_INTERPRET=1` runs them on the CPU, which is how the tests do.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

FP8_MAX = tl.constexpr(448.0)


@triton.jit
def _dequantize_nf4(
    packed, absmax, code2, absmax2, offset, code, out, blocks,
    COLUMNS: tl.constexpr, STRIDE: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """CHUNK blocks of 64 weights: nibbles → code x scale, where the scale itself is 8-bit."""
    block = tl.program_id(0).to(tl.int64) * CHUNK + tl.arange(0, CHUNK)
    inside = block < blocks
    quantized = tl.load(absmax + block, mask=inside, other=0)
    scale = tl.load(code2 + quantized.to(tl.int32)) * tl.load(absmax2 + block // 256, mask=inside)
    scale += tl.load(offset)
    byte = block[:, None] * 32 + tl.arange(0, 32)[None, :]
    nibbles = tl.load(packed + byte, mask=inside[:, None], other=0).to(tl.int32)
    high = tl.load(code + (nibbles >> 4)) * scale[:, None]
    low = tl.load(code + (nibbles & 15)) * scale[:, None]
    weights = tl.reshape(tl.join(high, low), (CHUNK, 64))
    first = block * 64  # a block lies within one row
    start = first // COLUMNS * STRIDE + first % COLUMNS
    start = tl.multiple_of(start, 8)  # so that 16 bytes are stored at a time
    at = start[:, None] + tl.arange(0, 64)[None, :]
    tl.store(out + at, weights.to(out.dtype.element_ty), mask=inside[:, None])


def dequantize_nf4(
    packed: torch.Tensor,
    absmax: torch.Tensor,
    code2: torch.Tensor,
    absmax2: torch.Tensor,
    offset: torch.Tensor,
    code: torch.Tensor,
    out: torch.Tensor,
) -> None:
    """Write `out` from NF4 blocks of 64 with doubly quantized scales (nested blocks of 256).

    `out` is [rows, columns], its rows anywhere; columns are a multiple of 64, their distance of 8.
    """
    blocks, chunk = out.numel() // 64, 64
    # bitsandbytes rounds the product of a scale before it adds the offset; fused, neither would.
    _dequantize_nf4[(triton.cdiv(blocks, chunk),)](
        packed, absmax, code2, absmax2, offset, code, out, blocks,
        COLUMNS=out.shape[1], STRIDE=out.stride(0), CHUNK=chunk, enable_fp_fusion=False,
    )  # fmt: skip


@triton.jit
def _quantize_rows(
    x, factor, out, scale, stride, rows, columns,
    HAS_FACTOR: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Some rows, read twice: for their largest values, and from the cache to be rounded."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = (row < rows)[:, None]
    largest = tl.zeros((ROWS,), tl.float32)
    for start in range(0, columns, BLOCK):
        at = start + tl.arange(0, BLOCK)
        values = _part(x, factor, row, at, stride, columns, inside, HAS_FACTOR)
        largest = tl.maximum(largest, tl.max(tl.abs(values), axis=1))
    largest = tl.where(largest > 0, largest, FP8_MAX)
    tl.store(scale + row, largest / FP8_MAX, mask=row < rows)
    by = FP8_MAX / largest[:, None]
    for start in range(0, columns, BLOCK):
        at = start + tl.arange(0, BLOCK)
        values = _part(x, factor, row, at, stride, columns, inside, HAS_FACTOR)
        scaled = tl.minimum(tl.maximum(values * by, -FP8_MAX), FP8_MAX)
        target = out + row[:, None] * columns + at[None, :]
        kind = out.dtype.element_ty
        tl.store(target, scaled.to(kind), mask=inside & (at < columns)[None, :])


@triton.jit
def _part(x, factor, row, at, stride, columns, inside, HAS_FACTOR: tl.constexpr):
    here = x + row[:, None] * stride + at[None, :]
    values = tl.load(here, mask=inside & (at < columns)[None, :], other=0.0).to(tl.float32)
    if HAS_FACTOR:
        values *= tl.load(factor + at, mask=at < columns, other=0.0)[None, :]
    return values


def quantize_rows(
    x: torch.Tensor, factor: torch.Tensor | None, out: torch.Tensor, scale: torch.Tensor
) -> None:
    """Write x * factor as FP8 rows and one fp32 scale per row."""
    rows, columns = x.shape
    # Rows share what they are multiplied by: it is twice as large as a row itself.
    together, block = (
        (1, min(8192, triton.next_power_of_2(columns))) if factor is None else (4, 2048)
    )
    _quantize_rows[(triton.cdiv(rows, together),)](
        x, factor, out, scale, x.stride(0), rows, columns,
        HAS_FACTOR=factor is not None, ROWS=together, BLOCK=block,
        num_warps=max(4, together * block // 1024),
    )  # fmt: skip


@triton.jit
def _transpose_bytes(x, out, rows, columns, TILE: tl.constexpr):
    row = tl.program_id(0) * TILE + tl.arange(0, TILE)
    column = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    tile = tl.load(x + row.to(tl.int64)[:, None] * columns + column[None, :], mask=inside)
    target = out + column.to(tl.int64)[:, None] * rows + row[None, :]
    tl.store(target, tl.trans(tile), mask=tl.trans(inside))


def transpose_bytes(x: torch.Tensor, out: torch.Tensor) -> None:
    """Write the transpose of a matrix of one-byte elements."""
    rows, columns = x.shape
    tile = 128
    grid = (triton.cdiv(rows, tile), triton.cdiv(columns, tile))
    _transpose_bytes[grid](
        x.view(torch.uint8), out.view(torch.uint8), rows, columns, TILE=tile, num_warps=8
    )


@triton.jit
def _cross_entropy(logits, targets, losses, columns, BLOCK: tl.constexpr):
    """One row: the loss, and softmax - onehot over the logits."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * columns
    target = tl.load(targets + row)
    picked = tl.load(logits + target).to(tl.float32)
    largest, total = -float("inf"), 0.0
    for start in range(0, columns, BLOCK):
        at = start + tl.arange(0, BLOCK)
        values = tl.load(logits + at, mask=at < columns, other=-float("inf")).to(tl.float32)
        higher = tl.maximum(largest, tl.max(values, axis=0))
        total = total * tl.exp(largest - higher) + tl.sum(tl.exp(values - higher), axis=0)
        largest = higher
    normalizer = largest + tl.log(total)
    tl.store(losses + row, normalizer - picked)
    for start in range(0, columns, BLOCK):
        at = start + tl.arange(0, BLOCK)
        values = tl.load(logits + at, mask=at < columns, other=-float("inf")).to(tl.float32)
        slope = tl.exp(values - normalizer) - tl.where(at == target, 1.0, 0.0)
        tl.store(logits + at, slope.to(logits.dtype.element_ty), mask=at < columns)


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor, losses: torch.Tensor) -> None:
    """Write each row's loss, and turn the logits [rows, vocabulary] into their gradient."""
    rows, columns = logits.shape
    if rows:
        block = min(16384, triton.next_power_of_2(columns))
        _cross_entropy[(rows,)](logits, targets, losses, columns, BLOCK=block, num_warps=16)
