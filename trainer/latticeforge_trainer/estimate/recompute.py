"""What `recompute: auto` chooses, for the trainer by what is free, for a plan by what will be.

Both go through `choose_modes`, so that a plan says what the trainer will do.
"""

from __future__ import annotations

from latticeforge_trainer.contract import Method, Recompute, Strategy, TrainPayload
from latticeforge_trainer.estimate.activations import Choice, choose, layer_memory
from latticeforge_trainer.estimate.buckets import LIVE, LOGITS_AT_ONCE, PREFETCH_BUCKET
from latticeforge_trainer.estimate.shapes import ModelShape
from latticeforge_trainer.estimate.states import bytes_to_come

MARGIN = 0.04
"""Share of the device's memory that is planned for nothing: fragments, libraries' own buffers."""

UNFUSED = 2
"""How many times as much a layer keeps that runs as transformers wrote it."""


def choose_modes(
    shape: ModelShape,
    payload: TrainPayload,
    strategy: Strategy,
    *,
    tokens: int,
    at_hand: int,
    trained: int,
    accumulates: bool,
    fused: bool,
    plain_head: bool,
) -> Choice:
    """What each decoder layer computes again.

    Args:
        shape: The model's.
        payload: How it is trained.
        strategy: On what.
        tokens: Of a micro-batch.
        at_hand: Bytes that can still be allocated once weights and optimizer are there.
        trained: Parameters that are trained.
        accumulates: Whether a step has several micro-batches, so that gradients of those before
            stand beside what a forward keeps.
        fused: Whether layers run as `models.blocks`.
        plain_head: Whether the loss is taken as `training.head` does.
    """
    if shape.sparse_layers:  # what they keep depends on where tokens go
        return Choice([Recompute.LAYERS] * shape.layers, 0)
    budget = at_hand - bytes_to_come(payload, strategy, trained, accumulates=accumulates)
    full = payload.method is Method.FULL
    budget -= bytes_of_head(shape, tokens, trained=full, plain=plain_head)
    if strategy.zero_stage == 3:
        budget -= bytes_gathered(shape)
    rows = tokens if fused else tokens * UNFUSED
    most = payload.method is not Method.QLORA  # which has a better use for spare memory
    return choose(layer_memory(shape), shape.layers, rows, budget, most=most)


def margin(memory: int) -> int:
    """What of a device's memory is planned for nothing."""
    return int(MARGIN * memory)


def bytes_of_head(
    shape: ModelShape, tokens: int, *, trained: bool, plain: bool = True, width: int = 2
) -> int:
    """What the head and the loss take: their input and its gradient, logits, and dW if trained.

    Args:
        shape: The model's.
        tokens: Of a micro-batch.
        trained: Whether the head is.
        plain: Whether it is one whole matrix (`training.head`); else, with its weight in
            partitions or its logits capped, autograd takes the loss piece by piece.
        width: Bytes of a number.
    """
    logits = min(LOGITS_AT_ONCE, tokens * shape.vocabulary)
    hidden = 2 * tokens * shape.hidden * width
    if plain:
        gradient = (4 + width) * shape.vocabulary * shape.hidden if trained else 0
        return hidden + width * logits + gradient
    gradient = width * shape.vocabulary * shape.hidden if trained else 0
    return hidden + (width + 8) * logits + gradient  # and twice in 32 bits, for the softmax


def bytes_gathered(shape: ModelShape, width: int = 2) -> int:
    """What ZeRO-3 holds of others' weights at most: the head, layers soon used again, the next."""
    table = shape.vocabulary * shape.hidden
    layer = (shape.parameters - table) // shape.layers
    return width * (max(table, layer) + max(layer, min(LIVE, shape.parameters)) + PREFETCH_BUCKET)
