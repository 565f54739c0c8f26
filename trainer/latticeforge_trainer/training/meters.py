"""Hooks of the first process: the loss history on disk, and progress for whoever watches."""

from __future__ import annotations

from collections import deque

from latticeforge_trainer.contract import TrainMeters
from latticeforge_trainer.progress import Reporter
from latticeforge_trainer.training.state import LossLog, StepRecord

WINDOW = 20
"""Steps that throughput and the time left are averaged over."""


class LossHistory:
    """Writes each step's line of `losses.jsonl`."""

    def __init__(self, log: LossLog) -> None:
        self._log = log

    def step_done(self, record: StepRecord, checkpoint_step: int | None) -> None:  # noqa: ARG002  (the hook's signature)
        """Append the step's line."""
        self._log.append(record)

    def close(self) -> None:
        """Close the file."""
        self._log.close()


class ProgressMeter:
    """Reports loss, throughput and the time left.

    Args:
        reporter: Where reports go; it drops those that come too soon.
        total_steps: Steps of the stage.
    """

    def __init__(self, reporter: Reporter, total_steps: int) -> None:
        self._reporter, self._total = reporter, total_steps
        self._recent: deque[StepRecord] = deque(maxlen=WINDOW)

    def step_done(self, record: StepRecord, checkpoint_step: int | None) -> None:
        """Report the step."""
        self._recent.append(record)
        seconds = sum(r.seconds for r in self._recent)
        left = (self._total - record.step) * seconds / len(self._recent)
        meters = TrainMeters(
            step=record.step,
            total_steps=self._total,
            loss=record.loss,
            learning_rate=record.learning_rate,
            grad_norm=record.grad_norm,
            tokens_per_second=sum(r.tokens for r in self._recent) / max(seconds, 1e-9),
            checkpoint_step=checkpoint_step,
        )
        self._reporter.update(
            f"training: step {record.step} of {self._total}, loss {record.loss:.3f}",
            record.step / self._total,
            eta_seconds=left,
            train=meters,
        )

    def close(self) -> None:
        """Nothing to close."""
