"""How much arithmetic training takes, by the convention that MFU is printed with.

A linear layer costs 2 FLOPs per weight and token forward, and as many again for each gradient that
backward takes: of its input, and of its weights unless they are frozen. Causal attention costs
6 · width · layers · length per token. Everything that is no model work (recomputation, the
adapter's own small products, padding, the optimizer) is left out, so that doing it costs MFU; so is
the gradient of a head that is trained beside an adapter.
"""

from __future__ import annotations

from collections.abc import Iterable

from latticeforge_trainer.contract import Method
from latticeforge_trainer.estimate.shapes import ModelShape

CONVENTION = (
    "MFU is the model's FLOP/s as a share of what the GPUs' data sheet gives for dense bf16. A "
    "token counts 6 FLOPs per parameter of the linear layers and the head (4 where an adapter is "
    "trained over frozen weights; of experts, those it goes through), and 6 · width · layers · "
    "length for causal attention within its document. Padding and what is computed a second time "
    "count nothing."
)
"""For whoever reads a figure: printed beside it."""

PER_WEIGHT = {Method.FULL: 6, Method.LORA: 4, Method.QLORA: 4}
"""FLOPs per weight and token, forward and backward."""


def training_flops(shape: ModelShape, method: Method, documents: Iterable[int]) -> int:
    """FLOPs of training on some documents once.

    Args:
        shape: The model's.
        method: How it is trained.
        documents: Tokens of each; attention does not leave a document.
    """
    return sum(
        PER_WEIGHT[method] * shape.linear_parameters * length + attention_flops(shape, length)
        for length in documents
    )


def attention_flops(shape: ModelShape, length: int) -> int:
    """FLOPs of attention in a document of so many tokens, forward and backward."""
    whole = shape.layers - shape.windowed_layers
    seen = whole * length**2 + shape.windowed_layers * _seen(length, shape.window)
    return 6 * shape.attention_width * seen


def _seen(length: int, window: int | None) -> int:
    """Twice the area under the causal diagonal, as far as a window reaches."""
    beyond = 0 if window is None else max(0, length - window)
    return length**2 - beyond**2
