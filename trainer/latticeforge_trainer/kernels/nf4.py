"""NF4 weights as bitsandbytes stores them (arXiv:2305.14314), turned back into 16 bits.

Blocks of 64 weights, each weight one of 16 values, each block one scale; the scales are themselves
8-bit, in blocks of 256 ("double quantization"): 4.127 bits per weight.
"""

from __future__ import annotations

from typing import Any

import torch

BLOCK, NESTED_BLOCK = 64, 256


def dequantize(packed: torch.Tensor, state: Any, out: torch.Tensor) -> None:
    """Write the weight in 16 bits, bit for bit what bitsandbytes' own kernel gives.

    Args:
        packed: uint8, two weights to a byte.
        state: bitsandbytes' `QuantState` of it.
        out: [out, in]; rows may lie at any distance.
    """
    if packed.is_cuda and _is_usual(state) and out.dtype is state.dtype:
        from latticeforge_trainer.kernels import device  # noqa: PLC0415  (Triton)

        nested = state.state2
        device.dequantize_nf4(
            packed, state.absmax, nested.code, nested.absmax, state.offset, state.code, out
        )
        return
    from bitsandbytes.functional import dequantize_4bit  # noqa: PLC0415  (a second)

    out.copy_(dequantize_4bit(packed, state))


def _is_usual(state: Any) -> bool:
    """Whether it is quantized as the kernel knows: twice, in whole blocks of a row."""
    return bool(
        state.nested
        and state.quant_type == "nf4"
        and state.blocksize == BLOCK
        and state.state2.blocksize == NESTED_BLOCK
        and state.shape[1] % BLOCK == 0
    )
