"""Makes a transformers model attend within packed documents, whatever its architecture.

use_packed_attention(model)
model.get_decoder()(input_ids=…, position_ids=…, use_cache=False, boundaries=boundaries)

Transformers lets an attention function be registered and makes no mask for it; the boundaries reach
it as a keyword argument, which every layer hands on, also when it is computed again in backward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface

from latticeforge_trainer.errors import UserError
from latticeforge_trainer.models.attention import packed_attention
from latticeforge_trainer.models.documents import Boundaries

NAME = "latticeforge_packed"
"""Of our attention among those of transformers."""

KNOWN_LAYERS = {"full_attention", "sliding_attention"}
"""Whom a token sees in other kinds of layers is said by a mask, or by a state along the row."""

UNKNOWN_OPTIONS = ("s_aux", "position_bias")
"""What some architectures add to the scores."""


def use_packed_attention(model: Any) -> None:
    """Let all attention layers of a transformers model attend within packed documents.

    Raises:
        UserError: The architecture attends in a way of its own.
    """
    name = type(model).__name__
    config = model.config.get_text_config()
    unknown = set(getattr(config, "layer_types", None) or ()) - KNOWN_LAYERS
    if unknown:
        raise UserError(f"{name} has layers of {min(unknown)}, which packed samples would share")
    AttentionInterface.register(NAME, _attend)
    model.set_attn_implementation(NAME)
    if config._attn_implementation != NAME:  # noqa: SLF001  (the documented way to read it)
        raise UserError(f"{name} computes its attention itself, so packed samples would see it all")


def _attend(
    module: nn.Module,
    query: torch.Tensor,  # [rows, heads, length, dim]
    key: torch.Tensor,  # [rows, kv_heads, length, dim]
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    boundaries: Boundaries | None = None,
    scaling: float | None = None,
    softcap: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers' layers call it: to [rows, length, heads, dim], without weights."""
    reason = _refusal(module, attention_mask, boundaries, options)
    if boundaries is None or reason:
        raise UserError(f"{type(module).__name__} {reason}, which packed attention does not do")
    # One architecture has a window, but hands it to masks only.
    window = options.get("sliding_window") or getattr(module, "sliding_window", None)
    q, k, v = (part.transpose(1, 2).flatten(0, 1) for part in (query, key, value))
    out = packed_attention(
        q,
        k,
        v,
        boundaries,
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        window=window or None,
        softcap=softcap or None,
    )
    return out.view(query.shape[0], query.shape[2], *out.shape[1:]), None


def _refusal(
    module: nn.Module,
    attention_mask: torch.Tensor | None,
    boundaries: Boundaries | None,
    options: dict[str, Any],
) -> str | None:
    """What a layer asks for that cannot be given."""
    causal = options.get("is_causal")
    if boundaries is None:
        return "does not hand on where documents begin"
    if attention_mask is not None:
        return "brings a mask"
    if not (getattr(module, "is_causal", True) if causal is None else causal):
        return "lets tokens see those behind them"
    if options.get("dropout"):
        return "drops attention weights (attention_dropout)"
    extra = [name for name in UNKNOWN_OPTIONS if options.get(name) is not None]
    return f"adds {extra[0]} to its scores" if extra else None
