"""What is held for each parameter that is trained: masters, moments, DeepSpeed's buffers."""

from __future__ import annotations

from latticeforge_trainer.contract import Offload
from latticeforge_trainer.estimate.terms import Term, present
from latticeforge_trainer.estimate.training import Run

BUCKET = 100_000_000
"""Numbers in one of DeepSpeed's buckets, as `training.deepspeed_config` sets them."""


def standing_states(run: Run) -> tuple[Term, ...]:
    """What is there before the first step."""
    trained, stage = run.trained, run.strategy.zero_stage
    share = 1 / run.world if stage else 1.0
    if stage == 0:
        masters = 0 if run.is_full and run.payload.optimizer_states == "int8" else 4 * trained
        return present(Term("32-bit weights", masters, f"{trained:,} x 4 B"))
    own = int(trained * share)
    on_gpu = run.strategy.offload is Offload.NONE
    adapters = 0 if run.is_full else run.width * trained
    return present(
        Term("adapters", adapters, f"{trained:,} x {run.width} B"),
        Term("32-bit weights", 4 * own if on_gpu else 0, f"{own:,} x 4 B"),
        Term("moments", _moments(run, own) if on_gpu else 0, f"of {own:,}"),
        Term("gradients of this process", 4 * own if stage > 1 else 0, f"{own:,} x 4 B"),
        Term("reduction buckets", 4 * min(trained, BUCKET), "two of 16-bit gradients"),
        Term("gathered weights", _gathered(run), "two layers, the embedding"),
    )


def later_states(run: Run) -> tuple[Term, ...]:
    """What the first step makes, and keeps."""
    if run.strategy.zero_stage:
        return ()
    return present(Term("moments", _moments(run, run.trained), f"of {run.trained:,}"))


def _moments(run: Run, count: int) -> int:
    return 8 * count if run.payload.optimizer_states == "fp32" else int(4.125 * count)


def _gathered(run: Run) -> int:
    if run.strategy.zero_stage < 3:
        return 0
    shape = run.model.shape
    layer = (run.model.parameters.attention + run.model.parameters.mlp) // shape.layers
    return run.width * (2 * layer + shape.vocabulary * shape.hidden)
