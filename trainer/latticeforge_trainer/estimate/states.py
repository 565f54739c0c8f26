"""What is held for parameters that are trained, by ZeRO stage: masters, moments, gradients.

ZeRO 0 is `training.plain`; 1 to 3 are DeepSpeed's, as its source has them with the configuration of
`training.deepspeed_config`:

    stage   masters, moments    gradients between micro-batches     while weights are updated
    0       whole               whole                               + a bucket in 32 bits
    1       1 / processes       whole, 32 bits, for good            + all in 16 bits, to be summed
    2       1 / processes       1 / processes, 32 bits              + the same again
    3       1 / processes       1 / processes, 32 bits, for good    + a sub-group's

With the optimizer's states on the host ZeRO 1 is another of DeepSpeed's: its gradients are not for
good, and nothing is beside them.
"""

from __future__ import annotations

from latticeforge_trainer.contract import TrainPayload
from latticeforge_trainer.estimate.buckets import (
    ALL_REDUCE,
    PLAIN_REDUCE_BUCKET,
    REDUCE_BUCKET,
    SUB_GROUP,
    UPDATE_BUCKET,
)
from latticeforge_trainer.estimate.terms import Term, present, total
from latticeforge_trainer.estimate.training import Setup


def moment_bytes(payload: TrainPayload, *, masters: bool) -> float:
    """AdamW's states of a parameter, in bytes.

    Args:
        payload: In 32 or 8 bits.
        masters: Whether 32-bit weights are held beside 16-bit ones; in 8 bits they need not be,
            for the states then hold what 16 bits leave out.
    """
    if payload.optimizer_states == "fp32":
        return 8
    # Two moments, a 16-bit scale of each for 32 numbers, and the lower half of the weight.
    return 2.125 + (0 if masters else 2)


def bytes_to_come(setup: Setup) -> int:
    """What the first step adds for moments, and for gradients that are there in forward.

    With one micro-batch a step, a layer's gradients come as what it kept goes.
    """
    return total(later_states(setup)) + waiting_gradients(setup)


def standing_states(setup: Setup) -> tuple[Term, ...]:
    """What is there before the first step, beside the base's weights."""
    stage, weights = setup.strategy.zero_stage, setup.trained_weights
    adapters = setup.trained - weights
    if stage == 0:
        held = 0 if setup.payload.optimizer_states == "int8" else 4
        whose = "" if setup.is_full else ", of embedding and head"
        return present(
            Term("adapters", 4 * adapters, f"{adapters:,} x 4 B"),
            Term("32-bit weights", held * weights, f"{weights:,} x {held} B{whose}"),
        )
    width = setup.width  # of the adapters that are computed with
    own, offloads = _own(setup), setup.offloads
    return present(
        Term("adapters", width * adapters, f"{adapters:,} x {width} B"),
        Term("32-bit weights", 0 if offloads else 4 * own, f"{own:,} x 4 B"),
        Term("moments", _sharded_moments(setup) if stage == 3 else 0, f"of {own:,}"),
        _standing_gradients(setup),
        Term("reduction bucket", 2 * REDUCE_BUCKET if stage == 3 else 0, "of 16-bit gradients"),
    )


def _standing_gradients(setup: Setup) -> Term:
    count = 0
    if not setup.offloads:
        count = {1: setup.trained, 2: 0, 3: _own(setup)}[setup.strategy.zero_stage]
    return Term("gradients", 4 * count, f"{count:,} x 4 B")


def later_states(setup: Setup) -> tuple[Term, ...]:
    """What the first step makes, and keeps."""
    if setup.strategy.zero_stage == 3:
        return ()
    if setup.strategy.zero_stage:
        return present(Term("moments", _sharded_moments(setup), f"of {_own(setup):,}"))
    each = moment_bytes(setup.payload, masters=not setup.is_full)
    return present(Term("moments", int(setup.trained * each), f"{setup.trained:,} x {each:.4g} B"))


def waiting_gradients(setup: Setup) -> int:
    """Gradients of the micro-batches before, while the next one runs forward."""
    stage = setup.strategy.zero_stage
    if not setup.accumulates:
        return 0
    if stage == 0 or (stage == 1 and setup.offloads):
        return 4 * setup.trained
    return 4 * _own(setup) if stage == 2 and not setup.offloads else 0


def gradient_bytes(setup: Setup, tables: float, others: float) -> int:
    """Gradients that backward leaves of what it has passed, with one micro-batch a step.

    Args:
        setup: What is trained, and how.
        tables: Parameters passed of embedding and head.
        others: Those of layers: weights, or adapters, which ZeRO 0 trains in 32 bits.
    """
    stage = setup.strategy.zero_stage
    if stage == 0:
        width = 4 if setup.world > 1 else setup.width
        return int(width * tables + (width if setup.is_full else 4) * others)
    whole = 4 if setup.offloads else 0
    each = {1: whole, 2: setup.width / setup.world, 3: 0}[stage]
    return int(each * (tables + others))


def reduction_buffers(setup: Setup) -> int:
    """What DeepSpeed gathers gradients in while backward runs."""
    each = {1: 4 if setup.offloads else 0, 2: setup.width}.get(setup.strategy.zero_stage, 0)
    return each * min(setup.trained, REDUCE_BUCKET)


def all_gradients(setup: Setup) -> int:
    """Gradients of everything that is trained, when weights are updated."""
    tables = setup.trained_tables
    return waiting_gradients(setup) or gradient_bytes(setup, tables, setup.trained - tables)


def in_update(setup: Setup) -> int:
    """What the update needs beside all gradients."""
    shape = setup.model.shape
    table = shape.hidden * shape.vocabulary
    largest = table if setup.trained_tables else 0
    if setup.is_full:
        largest = max(largest, shape.hidden * shape.intermediate)
    return max(_update_buffers(setup, largest), _added(setup, table))


def _added(setup: Setup, table: int) -> int:
    """The embedding's gradient while it is added, before the update, to what is there of it."""
    if not setup.trains_embedding or setup.strategy.zero_stage:
        return 0
    if setup.accumulates:  # to that of the micro-batches before, in 32 bits
        return (4 + setup.width) * table
    return setup.width * table if setup.model.shape.tied else 0  # to that of the head


def _update_buffers(setup: Setup, largest: int) -> int:
    stage = setup.strategy.zero_stage
    if stage == 3:
        return 4 * min(SUB_GROUP, _own(setup))
    if setup.offloads:
        return 0
    if stage == 2:
        return 4 * _own(setup)
    if stage == 1:
        return _summed_at_once(setup)
    summed = 4 * max(min(setup.trained, PLAIN_REDUCE_BUCKET), largest) if setup.world > 1 else 0
    in_32_bits = setup.accumulates or setup.world > 1 or setup.width == 4
    if setup.payload.optimizer_states == "int8" or in_32_bits:
        return summed
    # A bucket in 32 bits in the place of 16, and the gradient that was made so last as it was.
    return 2 * max(min(setup.trained_weights, UPDATE_BUCKET), largest) + 2 * largest


def _own(setup: Setup) -> int:
    return -(-setup.trained // setup.world)


def _summed_at_once(setup: Setup) -> int:
    """ZeRO 1's gradients in 16 bits, and in 32 bits in one piece if one piece may hold them."""
    in_one_piece = setup.trained <= ALL_REDUCE
    return (setup.width + (4 if in_one_piece else 0)) * setup.trained


def _sharded_moments(setup: Setup) -> int:
    if setup.offloads:
        return 0
    return int(_own(setup) * moment_bytes(setup.payload, masters=True))
