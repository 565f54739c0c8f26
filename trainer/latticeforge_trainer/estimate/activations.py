"""What decoder layers keep for backward, in bytes, and which of it a given memory holds.

Of layers as `models.blocks` computes them. One number is `width` bytes, 2 in 16 bits.
"""

from __future__ import annotations

from dataclasses import dataclass

from latticeforge_trainer.contract import Recompute
from latticeforge_trainer.estimate.shapes import ModelShape

ADAPTER_COLUMNS = 64
"""Columns behind an operand for its adapters."""


@dataclass(frozen=True)
class LayerMemory:
    """Bytes per token of one decoder layer."""

    input: int
    """What is kept where the whole layer is computed again."""
    elementwise: int
    """What is kept where norms and the gated product are."""
    nothing: int
    """What is kept where nothing is."""
    passing: int
    """What exists besides while its backward runs."""


@dataclass(frozen=True)
class Choice:
    """What each decoder layer computes again, and the bytes that are left over."""

    modes: list[Recompute]
    spare: int


def layer_memory(shape: ModelShape, width: int = 2) -> LayerMemory:
    """What one of a model's layers keeps; with experts, about: it depends on where tokens go."""
    hidden, inner, attention = shape.hidden, shape.gated_width, shape.attention_width
    qkv = attention + 2 * shape.kv_heads * shape.head_dim
    small = 4 * shape.heads + 8 + 4 * ADAPTER_COLUMNS * width  # log-sum-exps, 1 / rms, x Aᵀ
    # The layer's input and that of its second half; q, k, v; attention's output; gate and up.
    kept = (2 * hidden + qkv + attention + 2 * inner) * width + small
    if shape.head_norms:  # q and k before their norms, and as rotated; 1 / rms
        normed_heads = shape.heads + shape.kv_heads
        kept += normed_heads * (2 * shape.head_dim * width + 4)
    again = (2 * hidden + inner + 3 * ADAPTER_COLUMNS) * width
    return LayerMemory(
        input=hidden * width,
        elementwise=kept,
        nothing=kept + again,
        # The gradients of product, gate and up, the product again; of input and output, the norm.
        passing=(4 * inner + 4 * hidden + 4 * ADAPTER_COLUMNS) * width,
    )


def choose(memory: LayerMemory, layers: int, tokens: int, budget: int, *, most: bool) -> Choice:
    """The modes that compute the least again within a budget.

    Where even whole layers do not fit, inputs go to the host; that is the last resort, so it is
    what comes out however small the budget is.

    Args:
        memory: Of one layer.
        layers: How many.
        tokens: Of a micro-batch.
        budget: Bytes for all of them.
        most: Whether spare memory is for keeping everything, or left over.
    """
    of_input, of_elementwise = memory.input * tokens, memory.elementwise * tokens
    left = budget - memory.passing * tokens
    if left >= layers * of_elementwise:
        left -= layers * of_elementwise
        more = (memory.nothing - memory.elementwise) * tokens
        whole = min(layers, left // more) if most else 0
        return Choice(
            _modes(layers, whole, Recompute.NOTHING, Recompute.ELEMENTWISE), left - whole * more
        )
    left -= of_elementwise  # of the layer that is computed again
    if left >= layers * of_input:
        left -= layers * of_input
        kept = left // (of_elementwise - of_input)
        return Choice(_modes(layers, kept, Recompute.ELEMENTWISE, Recompute.LAYERS), 0)
    on_device = max(0, left // of_input)
    return Choice(_modes(layers, on_device, Recompute.LAYERS, Recompute.OFFLOAD), 0)


def _modes(layers: int, last: int, better: Recompute, other: Recompute) -> list[Recompute]:
    """The last layers have the better mode: what they keep is needed first, and freed first."""
    return [other] * (layers - last) + [better] * last
