"""What `recompute: auto` chooses, for the trainer by what is free, for a plan by what will be.

Both go through `choose_modes`, so that a plan says what the trainer will do.
"""

from __future__ import annotations

from latticeforge_trainer.contract import Method, Recompute
from latticeforge_trainer.estimate.activations import Choice, choose, layer_memory
from latticeforge_trainer.estimate.buckets import LIVE, LOGITS_AT_ONCE, PREFETCH_BUCKET
from latticeforge_trainer.estimate.linears import is_fused
from latticeforge_trainer.estimate.states import (
    all_gradients,
    bytes_to_come,
    in_update,
    later_states,
)
from latticeforge_trainer.estimate.terms import total
from latticeforge_trainer.estimate.training import Setup
from latticeforge_trainer.estimate.weights import placed_adapters

MARGIN = 0.04
"""Share of the device's memory that is planned for nothing: fragments, libraries' own buffers."""

UNFUSED = 2
"""How many times as much a layer keeps that runs as transformers wrote it."""


def choose_modes(setup: Setup, at_hand: int) -> Choice:
    """What each decoder layer computes again.

    Args:
        setup: What is trained, and how.
        at_hand: Bytes that can still be allocated once weights and optimizer are there.
    """
    shape = setup.model.shape
    if shape.sparse_layers:  # what they keep depends on where tokens go
        return Choice([Recompute.LAYERS] * shape.layers, 0)
    memory, rows = layer_memory(shape, setup.width), rows_kept(setup)
    budget = at_hand - bytes_to_come(setup) - total(placed_adapters(setup, 0))
    budget -= bytes_of_head(setup)
    if setup.strategy.zero_stage == 3:
        budget -= bytes_gathered(setup)
    most = setup.payload.method is not Method.QLORA  # which has a better use for spare memory
    choice = choose(memory, shape.layers, rows, budget, most=most)
    return Choice(choice.modes, max(0, min(choice.spare, _left_by_update(setup, at_hand))))


def _left_by_update(setup: Setup, at_hand: int) -> int:
    """Of what is kept for good, how much the update leaves room for; activations are gone then."""
    needed = total(later_states(setup)) + total(placed_adapters(setup, 0))
    return at_hand - needed - all_gradients(setup) - in_update(setup)


def rows_kept(setup: Setup) -> int:
    """Tokens of a micro-batch, or as many as come to what other layers than ours keep."""
    return setup.tokens * (1 if is_fused(setup.model) else UNFUSED)


def margin(memory: int) -> int:
    """What of a device's memory is planned for nothing."""
    return int(MARGIN * memory)


def bytes_of_head(setup: Setup) -> int:
    """What the head and the loss take: their input and its gradient, logits, and dW if trained.

    A piece of logits is there until the next one is; dW is summed in 32 bits, then rounded. Where
    the head is no whole matrix or its logits are capped, autograd takes the loss piece by piece,
    and the softmax twice in 32 bits.
    """
    shape, width = setup.model.shape, setup.width
    table = shape.vocabulary * shape.hidden if setup.trains_head else 0
    rows = min(setup.tokens, max(1, LOGITS_AT_ONCE // shape.vocabulary))
    logits = rows * shape.vocabulary
    hidden = 2 * setup.tokens * shape.hidden * width
    if setup.has_plain_head:
        following = min(setup.tokens - rows, rows) * shape.vocabulary
        summed = width * (logits + following) + 4 * table
        rounded = width * (logits + table) + 4 * table  # the last piece may be as large as any
        added = setup.accumulates and not setup.strategy.zero_stage
        passed_on = (2 * width + 4) * table if added else 0  # scaled, then in 32 bits
        return hidden + max(summed, rounded, passed_on)
    return hidden + (width + 8) * logits + width * table


def bytes_gathered(setup: Setup) -> int:
    """What ZeRO-3 holds of others' weights at most: the head, layers soon used again, the next."""
    shape = setup.model.shape
    table = shape.vocabulary * shape.hidden
    layer = (shape.parameters - table) // shape.layers
    live = max(layer, min(LIVE, shape.parameters))
    return setup.width * (max(table, layer) + live + PREFETCH_BUCKET)
