"""What is held for parameters that are trained, by ZeRO stage: masters, moments, gradients.

ZeRO 0 is `training.plain`; 1 to 3 are DeepSpeed's, as its source has them with the configuration of
`training.deepspeed_config`:

    stage   masters, moments    gradients between micro-batches     while weights are updated
    0       whole               whole                               + a bucket in 32 bits
    1       1 / processes       whole, 32 bits                      + this process's part again
    2       1 / processes       1 / processes, 32 bits              + the same again
    3       1 / processes       1 / processes, 32 bits, for good    + a sub-group's
"""

from __future__ import annotations

from latticeforge_trainer.contract import Offload, Strategy, TrainPayload
from latticeforge_trainer.estimate.buckets import (
    PLAIN_REDUCE_BUCKET,
    REDUCE_BUCKET,
    SUB_GROUP,
    UPDATE_BUCKET,
)
from latticeforge_trainer.estimate.terms import Term, present
from latticeforge_trainer.estimate.training import Run


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


def bytes_to_come(
    payload: TrainPayload, strategy: Strategy, trained: int, *, accumulates: bool
) -> int:
    """What the first step adds for moments, and for gradients that are there in forward.

    With one micro-batch a step, a layer's gradients come as what it kept goes.
    """
    gradients = 4 * trained if accumulates else 0
    if strategy.zero_stage == 0:
        return int(trained * moment_bytes(payload, masters=False)) + gradients
    if strategy.zero_stage == 3 or strategy.offload is not Offload.NONE:
        return gradients if strategy.zero_stage == 1 else 0
    processes = strategy.processes * strategy.nodes
    moments = int(trained / processes * moment_bytes(payload, masters=True))
    return moments + (gradients if strategy.zero_stage == 1 else gradients // processes)


def standing_states(run: Run) -> tuple[Term, ...]:
    """What is there before the first step, beside the base's weights."""
    trained, stage = run.trained, run.strategy.zero_stage
    if stage == 0:
        held = 0 if run.is_full and run.payload.optimizer_states == "int8" else 4
        name = "32-bit weights" if run.is_full else "adapters"
        return present(Term(name, held * trained, f"{trained:,} x {held} B"))
    own, offloads = _own(run), run.strategy.offload is not Offload.NONE
    return present(
        Term("adapters", 0 if run.is_full else run.width * trained, f"{trained:,} x {run.width} B"),
        Term("32-bit weights", 0 if offloads else 4 * own, f"{own:,} x 4 B"),
        Term("moments", _sharded_moments(run) if stage == 3 else 0, f"of {own:,}"),
        Term("gradients", 4 * own if stage == 3 and not offloads else 0, f"{own:,} x 4 B"),
        Term("reduction bucket", 2 * REDUCE_BUCKET if stage == 3 else 0, "of 16-bit gradients"),
    )


def later_states(run: Run) -> tuple[Term, ...]:
    """What the first step makes, and keeps."""
    if run.strategy.zero_stage == 3:
        return ()
    if run.strategy.zero_stage:
        return present(Term("moments", _sharded_moments(run), f"of {_own(run):,}"))
    each = moment_bytes(run.payload, masters=not run.is_full)
    return present(Term("moments", int(run.trained * each), f"{run.trained:,} x {each:.4g} B"))


def waiting_gradients(run: Run) -> int:
    """Gradients of the micro-batches before, while the next one runs forward."""
    if not run.accumulates or run.strategy.zero_stage == 3:
        return 0
    whole = run.strategy.zero_stage < 2
    if run.strategy.zero_stage and run.strategy.offload is not Offload.NONE and not whole:
        return 0
    return 4 * (run.trained if whole else _own(run))


def gradient_width(run: Run) -> float:
    """Bytes of gradients that backward leaves for each parameter it has passed."""
    stage = run.strategy.zero_stage
    if stage == 0:
        wide = not run.is_full or run.world > 1
        return 4 if wide else run.width
    if stage == 1:
        return 4
    return run.width / run.world if stage == 2 else 0


def reduction_buffers(run: Run) -> int:
    """What DeepSpeed gathers gradients in while backward runs."""
    stage, count = run.strategy.zero_stage, min(run.trained, REDUCE_BUCKET)
    if stage in {0, 3}:
        return 0
    return run.width * count * (2 if stage == 2 else 1)


def update_buffers(run: Run, largest: int) -> int:
    """What the update needs beside all gradients.

    Args:
        run: The run.
        largest: Parameters of the largest tensor that is trained.
    """
    stage = run.strategy.zero_stage
    if stage == 3:
        return 4 * min(SUB_GROUP, _own(run))
    if stage:
        return 0 if run.strategy.offload is not Offload.NONE else 4 * _own(run)
    summed = 4 * max(min(run.trained, PLAIN_REDUCE_BUCKET), largest) if run.world > 1 else 0
    if run.payload.optimizer_states == "int8" or gradient_width(run) == 4 or run.accumulates:
        return summed
    return 2 * max(min(run.trained, UPDATE_BUCKET), largest)


def _own(run: Run) -> int:
    return -(-run.trained // run.world)


def _sharded_moments(run: Run) -> int:
    if run.strategy.offload is not Offload.NONE:
        return 0
    return int(_own(run) * moment_bytes(run.payload, masters=True))
