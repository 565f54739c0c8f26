"""What `benchmarks.planner` measures: runs of our trainer, and each as the planner sees it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import count, takewhile
from typing import Any

from benchmarks.trainer import SHAPES, Run, train_config
from latticeforge_trainer.estimate.base_model import read_base_model
from latticeforge_trainer.estimate.chips import CHIPS, Chip
from latticeforge_trainer.estimate.memory import gpu_memory
from latticeforge_trainer.estimate.training import Run as PlannedRun

STEPS, WARM_UP = 5, 3

MATRIX: tuple[tuple[Any, ...], ...] = (
    # shape, method, micro-batch, sequence, recompute; moments, micro-batches of a step.
    # The most telling first, for the run may be cut off: all methods, shapes and modes early.
    ("7.6B", "LoRA", 4, 4096, "elementwise"),
    ("72.7B", "QLoRA", 1, 4096, "auto"),
    ("7.6B", "Full", 2, 4096, "layers"),
    ("7.6B", "FP8", 4, 4096, "nothing"),
    ("0.5B", "LoRA", 4, 4096, "nothing"),
    ("32.8B", "QLoRA", 2, 4096, "elementwise"),
    ("1.5B", "Full", 4, 4096, "elementwise", "fp32"),
    ("14.8B", "LoRA", 2, 4096, "elementwise"),
    ("72.7B", "FP8", 1, 2048, "elementwise"),
    ("7.6B", "LoRA", 1, 16384, "layers"),
    ("7.6B", "QLoRA", 2, 4096, "auto"),
    ("0.5B", "Full", 8, 2048, "nothing", "fp32"),
    ("14.8B", "QLoRA", 4, 4096, "layers"),
    ("7.6B", "Full", 1, 4096, "elementwise", "int8", 2),
    ("32.8B", "LoRA", 1, 4096, "elementwise"),
    ("1.5B", "LoRA", 8, 4096, "elementwise"),
    ("72.7B", "QLoRA", 1, 4096, "elementwise"),
    ("7.6B", "FP8", 2, 8192, "layers"),
    ("7.6B", "LoRA", 8, 2048, "auto"),
    ("1.5B", "QLoRA", 4, 4096, "nothing"),
    ("14.8B", "Full", 1, 4096, "layers"),
    ("7.6B", "Full", 1, 4096, "layers", "fp32"),
    ("32.8B", "FP8", 1, 4096, "nothing"),
    ("0.5B", "LoRA", 1, 4096, "elementwise"),
    ("7.6B", "QLoRA", 4, 2048, "elementwise"),
    ("72.7B", "QLoRA", 2, 4096, "layers"),
    ("14.8B", "FP8", 2, 4096, "nothing"),
    ("1.5B", "Full", 8, 4096, "layers"),
    ("7.6B", "LoRA", 2, 4096, "nothing", "fp32", 2),
    ("7.6B", "Full", 4, 4096, "auto"),
    ("14.8B", "QLoRA", 1, 8192, "elementwise"),
    ("0.5B", "QLoRA", 8, 4096, "layers"),
    ("32.8B", "QLoRA", 4, 2048, "layers"),
    ("1.5B", "FP8", 4, 8192, "auto"),
    ("14.8B", "LoRA", 1, 8192, "auto"),
    ("1.5B", "LoRA", 1, 32768, "elementwise"),
    ("7.6B", "FP8", 1, 4096, "elementwise"),
    ("7.6B", "LoRA", 1, 32768, "offload"),
    ("72.7B", "FP8", 1, 4096, "layers"),
    ("0.5B", "Full", 2, 4096, "auto", "int8"),
)

BOUNDARY: tuple[tuple[Any, ...], ...] = (
    # shape, method, sequence, recompute, moments
    ("7.6B", "LoRA", 4096, "nothing", "fp32"),
    ("1.5B", "Full", 4096, "elementwise", "fp32"),
    ("14.8B", "QLoRA", 4096, "elementwise", "fp32"),
    ("7.6B", "Full", 4096, "elementwise", "int8"),
    ("7.6B", "FP8", 8192, "elementwise", "fp32"),
    ("0.5B", "LoRA", 4096, "elementwise", "fp32"),
)


def matrix() -> list[Run]:
    """All runs, in the order in which they are made."""
    return [_run(*row) for row in MATRIX]


def boundary(chip: Chip) -> Iterator[Run]:
    """Of each of some configurations the largest micro-batch that should fit, and the next."""
    for shape, method, sequence, recompute, states in BOUNDARY:
        made = (
            _run(shape, method, size, sequence, recompute, states, prefix="boundary ", steps=2)
            for size in count(1)
        )
        fitting = list(takewhile(lambda run: gpu_memory(planned(run, chip)).fits, made))
        if fitting:
            last = fitting[-1]
            yield last
            yield _renamed(replace(last, micro_batch=last.micro_batch + 1), "boundary ")


def planned(run: Run, chip: Chip) -> PlannedRun:
    """A run as the planner sees it."""
    config = train_config(run)
    model = read_base_model(SHAPES[run.shape].config())
    return PlannedRun(model, config.payload, config.runtime.strategy, chip)


def chip_of(device: str) -> Chip:
    """The chip that a driver calls so.

    Raises:
        SystemExit: The planner does not know it.
    """
    for name, chip in CHIPS.items():
        if name in device.upper():
            return chip
    raise SystemExit(f"{device} is no GPU that the planner knows: {', '.join(CHIPS)}")


def _run(  # noqa: PLR0917  (the columns of the tables above)
    shape: str,
    method: str,
    micro_batch: int,
    sequence: int,
    recompute: str,
    states: str = "",
    accumulation: int = 1,
    *,
    prefix: str = "",
    steps: int = STEPS,
) -> Run:
    run = Run(
        "",
        "ours",
        shape,
        method,
        micro_batch,
        recompute,
        sequence,
        steps=steps,
        warm_up=WARM_UP if steps == STEPS else 1,
        states=states,
        accumulation=accumulation,
    )
    return _renamed(run, prefix)


def _renamed(run: Run, prefix: str) -> Run:
    """The run with what distinguishes it as its name."""
    size = f"{run.micro_batch} x {run.sequence}"
    if run.accumulation > 1:
        size += f", {run.accumulation} times"
    states = f" {run.optimizer_states}" if run.method == "Full" else ""
    return replace(run, row=f"{prefix}{run.shape} {run.method}{states} {size} {run.recompute}")
