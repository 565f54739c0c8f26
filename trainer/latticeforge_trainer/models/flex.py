"""Flex attention within packed documents: compiled once, for scores that no other kernel makes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import torch
from torch.nn.attention import flex_attention

from latticeforge_trainer.models.documents import Boundaries, Options

BLOCK = 128
"""Tokens of a block that is computed or skipped as a whole."""


def attend_flex(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, b: Boundaries, options: Options
) -> torch.Tensor:
    """Flex attention, compiled on CUDA: slower, but it takes a soft-cap."""
    flex: Any = _compiled_flex() if q.is_cuda else flex_attention.flex_attention
    out: torch.Tensor = flex(
        *(part.transpose(0, 1)[None] for part in (q, k, v)),
        score_mod=_capped(options.softcap),
        block_mask=block_mask(b, options.window),
        scale=options.scale,
        enable_gqa=True,
    )  # [1, heads, tokens, dim]
    return out[0].transpose(0, 1)


@cache
def _compiled_flex() -> Any:
    return torch.compile(flex_attention.flex_attention, dynamic=False)


@cache
def _capped(softcap: float | None) -> Callable[..., torch.Tensor] | None:
    """One function per soft-cap: another function is compiled again."""
    if softcap is None:
        return None
    return lambda score, *_: softcap * torch.tanh(score / softcap)


@lru_cache(maxsize=2)  # a micro-batch's layers differ at most in whether they have a window
def block_mask(b: Boundaries, window: int | None) -> Any:
    """Which blocks a block of queries sees: from its first token's first key to itself."""
    tokens = sum(b.lengths)
    index = torch.arange(tokens, device=b.cumulative.device, dtype=torch.int32)
    first = b.cumulative[torch.searchsorted(b.cumulative, index, right=True) - 1]
    if window is not None:
        first = torch.maximum(first, index - window + 1)
    blocks = -(-tokens // BLOCK)
    block = torch.arange(blocks, device=index.device, dtype=torch.int32)
    lowest = first[::BLOCK] // BLOCK
    count = block - lowest + 1
    # Behind the `count` first, indices are not read, but must be in range.
    indices = (lowest[:, None] + block).remainder(blocks)

    def visible(_batch: Any, _head: Any, query: Any, key: Any) -> Any:
        return (key <= query) & (key >= first[query])

    return flex_attention.BlockMask.from_kv_blocks(
        count[None, None],
        indices[None, None].contiguous(),
        BLOCK_SIZE=BLOCK,
        mask_mod=visible,
        seq_lengths=(tokens, tokens),
    )
