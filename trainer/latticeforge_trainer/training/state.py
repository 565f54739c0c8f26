"""All that a run resumes from, beside weights and optimizer, in one visible document."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import Field

from latticeforge_trainer.artifacts import write_atomically
from latticeforge_trainer.contract import Contract, PhaseTimes


class StepRecord(Contract):
    """One line of the loss history."""

    step: int
    """Optimizer steps done, this one included."""
    loss: float
    """Mean over the learned tokens of the step's whole batch, before its update."""
    learning_rate: float
    grad_norm: float
    """Before clipping."""
    validation_loss: float | None = None
    """Mean over the learned tokens held out, after the update; None: not measured."""
    tokens: int
    """Real tokens of this step."""
    seconds: float
    """Of this step, checkpoints aside."""
    flops: int | None = None
    """Model FLOPs of this step, over all processes; None for an unknown architecture."""
    seconds_by_phase: PhaseTimes | None = None
    """Of the first process; `checkpoint` is that before this step."""


class TrainState(Contract):
    """Where training stands.

    There is no generator state: data order and dropout follow from seed and step. There is no
    learning rate: the schedule follows from the step.
    """

    world: int
    """Processes that wrote it."""
    zero_stage: int
    precision: str
    history: list[StepRecord] = Field(default_factory=list)
    """Every step so far."""

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return len(self.history)

    @property
    def tokens(self) -> int:
        """Real tokens trained on."""
        return sum(record.tokens for record in self.history)

    @property
    def seconds(self) -> float:
        """Seconds spent in steps that count."""
        return sum(record.seconds for record in self.history)


class LossLog:
    """`losses.jsonl`: one line per step, each step once.

    Args:
        path: The file.
        history: What a resumed run has behind it; later lines of a killed attempt are dropped.
    """

    def __init__(self, path: Path, history: list[StepRecord]) -> None:
        write_atomically(path, "".join(map(_line, history)).encode())
        self._file = path.open("a", buffering=1)

    def append(self, record: StepRecord) -> None:
        """Add the line of a finished step."""
        self._file.write(_line(record))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_losses(path: Path) -> list[dict[str, Any]]:
    """The lines of a loss history."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def _line(record: StepRecord) -> str:
    return json.dumps(record.to_json()) + "\n"
