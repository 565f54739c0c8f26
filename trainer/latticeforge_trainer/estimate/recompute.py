"""What `recompute: auto` chooses: the trainer asks with what is free, the planner with what will be.

Both go through `choose_modes`, so that a plan says what the trainer will do.
"""

from __future__ import annotations

from latticeforge_trainer.contract import Method, Recompute, TrainPayload
from latticeforge_trainer.estimate.activations import Choice, choose, layer_memory
from latticeforge_trainer.estimate.shapes import ModelShape

MARGIN = 0.04
"""Share of the device's memory that is planned for nothing: fragments, libraries' own buffers."""

UNFUSED = 2
"""How many times as much a layer keeps that runs as transformers wrote it."""

LOGITS_AT_ONCE = 2**29
"""Logits held at a time: 1 GiB in 16 bits."""


def choose_modes(
    shape: ModelShape,
    payload: TrainPayload,
    *,
    tokens: int,
    at_hand: int,
    trained: int,
    accumulates: bool,
    fused: bool,
) -> Choice:
    """What each decoder layer computes again.

    Args:
        shape: The model's.
        payload: How it is trained.
        tokens: Of a micro-batch.
        at_hand: Bytes that can still be allocated once weights and optimizer are there.
        trained: Parameters that are trained.
        accumulates: Whether a step has several micro-batches, so that gradients of those before
            stand beside what a forward keeps.
        fused: Whether layers run as `models.blocks`.
    """
    if shape.sparse_layers:  # what they keep depends on where tokens go
        return Choice([Recompute.LAYERS] * shape.layers, 0)
    budget = at_hand - bytes_to_come(payload, trained, accumulates=accumulates)
    budget -= bytes_of_head(shape, tokens, trained=payload.method is Method.FULL)
    rows = tokens if fused else tokens * UNFUSED
    most = payload.method is not Method.QLORA  # which has a better use for spare memory
    return choose(layer_memory(shape), shape.layers, rows, budget, most=most)


def margin(memory: int) -> int:
    """What of a device's memory is planned for nothing."""
    return int(MARGIN * memory)


def bytes_to_come(payload: TrainPayload, trained: int, *, accumulates: bool) -> int:
    """What the first step will add for moments, and for gradients that are there in forward.

    With one micro-batch a step, a layer's gradients come as what it kept goes.
    """
    exact = payload.optimizer_states == "fp32"
    states = 8 if exact else 4.25  # two moments; or in 8 bits, with scales and the weights' rest
    return int(trained * (states + (4 if accumulates else 0)))


def bytes_of_head(shape: ModelShape, tokens: int, *, trained: bool) -> int:
    """What the head and the loss take: their input and its gradient, logits, and dW if trained."""
    gradient = 6 * shape.vocabulary * shape.hidden if trained else 0
    return 2 * (2 * tokens * shape.hidden + logits_at_once(shape, tokens)) + gradient


def logits_at_once(shape: ModelShape, tokens: int) -> int:
    """How many logits exist at a time."""
    return min(LOGITS_AT_ONCE, tokens * shape.vocabulary)
