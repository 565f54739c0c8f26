"""The learning rate of every step, computed from the step's number alone."""

from __future__ import annotations

import math
from typing import Literal

Shape = Literal["cosine", "linear", "constant"]


def learning_rate(
    step: int, total: int, *, peak: float, shape: Shape, warmup_ratio: float
) -> float:
    """The learning rate of one step.

    Warm-up rises linearly to `peak`, which its last step has; then the shape falls towards zero,
    which the step after the last would have. No step has a rate of zero.

    Args:
        step: From 0.
        total: Steps of the stage.
        peak: Highest rate.
        shape: `cosine`, `linear` or `constant` after the warm-up.
        warmup_ratio: Share of `total` that warms up, rounded up to whole steps.
    """
    warmup = math.ceil(total * warmup_ratio)
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    if shape == "cosine":
        return peak * (1 + math.cos(math.pi * done)) / 2
    if shape == "linear":
        return peak * (1 - done)
    return peak
