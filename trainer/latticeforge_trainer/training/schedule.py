"""The learning rate of every step, computed from the step's number alone."""

from __future__ import annotations

import math
from typing import Literal

Shape = Literal["cosine", "linear", "constant"]


def warmup_steps(total: int, ratio: float, steps: int | None) -> int:
    """Steps that warm up: as many as are asked for, or else a share of all, rounded up."""
    return math.ceil(total * ratio) if steps is None else steps


def learning_rate(
    step: int, total: int, *, peak: float, shape: Shape, warmup: int, floor: float = 0.0
) -> float:
    """The learning rate of one step.

    Warm-up rises linearly to `peak`, which its last step has; then the shape falls towards the
    floor, which the step after the last would have. No step has a rate of zero.

    Args:
        step: From 0.
        total: Steps of the stage.
        peak: Highest rate.
        shape: `cosine`, `linear` or `constant` after the warm-up.
        warmup: Steps that warm up.
        floor: Where the shape ends, as a share of `peak`.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    left = {"cosine": (1 + math.cos(math.pi * done)) / 2, "linear": 1 - done, "constant": 1.0}
    return peak * (floor + (1 - floor) * left[shape])
