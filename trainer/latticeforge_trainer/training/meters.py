"""Hooks of the first process: the loss history on disk, and progress for whoever watches.

What a step's work is measured with is a `Yardstick`. What it does not know it leaves out: a figure
that is there has been measured or counted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from latticeforge_trainer.contract import Method, PhaseTimes, TrainMeters, TrainResult
from latticeforge_trainer.estimate.chips import peak_flops
from latticeforge_trainer.estimate.flops import training_flops
from latticeforge_trainer.estimate.shapes import ModelShape, model_shape
from latticeforge_trainer.progress import Reporter
from latticeforge_trainer.training.batches import PackedSequences
from latticeforge_trainer.training.state import LossLog, StepRecord

WINDOW = 20
"""Steps that throughput and the time left are averaged over."""


@dataclass(frozen=True)
class Yardstick:
    """What work and memory are measured with.

    Attributes:
        shape: The model's; None for an unknown architecture.
        method: How it is trained.
        processes: Those that train together, each on a device of its own kind.
        device: The first one's.
    """

    shape: ModelShape | None
    method: Method
    processes: int
    device: torch.device

    @classmethod
    def of(cls, config: Any, method: Method, processes: int, device: torch.device) -> Yardstick:
        """For a model with this transformers config."""
        return cls(model_shape(config.to_dict()), method, processes, device)

    @property
    def gpu(self) -> str | None:
        """The GPU's name; None on a CPU."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else None

    @property
    def peak(self) -> float | None:
        """FLOP/s of all devices at most; None where their kind is not known."""
        peak = peak_flops(self.gpu or "")
        return None if peak is None else peak * self.processes

    def flops(self, data: PackedSequences, indices: Sequence[int]) -> int | None:
        """Model FLOPs of training on some sequences; reads them, so not for the critical path."""
        if self.shape is None:
            return None
        return training_flops(self.shape, self.method, document_lengths(data, indices))

    def speed(self, records: Iterable[StepRecord]) -> dict[str, Any]:
        """The fields of `contract.Speed` for some steps."""
        known = [(r.flops, r.seconds) for r in records if r.flops is not None and r.seconds > 0]
        fields: dict[str, Any] = {}
        if known:
            rate = sum(flops for flops, _ in known) / sum(seconds for _, seconds in known)
            fields["model_flops_per_second"] = rate
            fields["mfu"] = rate / self.peak if self.peak else None
        if self.device.type == "cuda":
            fields["peak_memory_allocated_bytes"] = torch.cuda.max_memory_allocated(self.device)
            fields["peak_memory_reserved_bytes"] = torch.cuda.max_memory_reserved(self.device)
        return fields


def document_lengths(data: PackedSequences, indices: Sequence[int]) -> list[int]:
    """Tokens of every document in some packed sequences, padding aside."""
    positions = data.batch(indices)["position_ids"]  # [rows, length]
    real = torch.from_numpy(data.lengths[list(indices)])[:, None]
    columns = torch.arange(positions.shape[1])
    flat = positions[columns < real]
    starts = (flat == 0).nonzero().squeeze(1)
    lengths: list[int] = starts.diff(append=torch.tensor([len(flat)])).tolist()
    return lengths


def seconds_by_phase(records: Iterable[StepRecord]) -> PhaseTimes | None:
    """The sum over the steps that were measured."""
    totals: dict[str, float] = {}
    for record in records:
        if record.seconds_by_phase is not None:
            for name, seconds in record.seconds_by_phase.model_dump(exclude_none=True).items():
                totals[name] = totals.get(name, 0.0) + seconds
    return PhaseTimes(**totals) if totals else None


def stage_result(history: Sequence[StepRecord], yardstick: Yardstick) -> TrainResult:
    """What is told of a finished stage."""
    tokens, seconds = sum(r.tokens for r in history), sum(r.seconds for r in history)
    return TrainResult(
        steps=len(history),
        tokens=tokens,
        first_loss=history[0].loss,
        final_loss=history[-1].loss,
        validation_loss=history[-1].validation_loss,
        seconds=seconds,
        tokens_per_second=tokens / max(seconds, 1e-9),
        seconds_by_phase=seconds_by_phase(history),
        processes=yardstick.processes,
        gpu=yardstick.gpu,
        **yardstick.speed(history),
    )


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
        yardstick: What its work is measured with.
    """

    def __init__(self, reporter: Reporter, total_steps: int, yardstick: Yardstick) -> None:
        self._reporter, self._total, self._yardstick = reporter, total_steps, yardstick
        self._recent: deque[StepRecord] = deque(maxlen=WINDOW)
        self._validation_loss: float | None = None

    def step_done(self, record: StepRecord, checkpoint_step: int | None) -> None:
        """Report the step."""
        self._recent.append(record)
        if record.validation_loss is not None:
            self._validation_loss = record.validation_loss
        seconds = sum(r.seconds for r in self._recent)
        phases = seconds_by_phase(self._recent)
        elapsed = seconds + (phases.aside if phases else 0.0)
        meters = TrainMeters(
            step=record.step,
            total_steps=self._total,
            loss=record.loss,
            validation_loss=self._validation_loss,
            learning_rate=record.learning_rate,
            grad_norm=record.grad_norm,
            tokens_per_second=sum(r.tokens for r in self._recent) / seconds if seconds else None,
            phases=_shares(phases, elapsed),
            checkpoint_step=checkpoint_step,
            **self._yardstick.speed(self._recent),
        )
        self._reporter.update(
            f"training: step {record.step} of {self._total}, loss {record.loss:.3f}",
            record.step / self._total,
            eta_seconds=(self._total - record.step) * elapsed / len(self._recent),
            train=meters,
        )

    def close(self) -> None:
        """Nothing to close."""


def _shares(phases: PhaseTimes | None, elapsed: float) -> PhaseTimes | None:
    if phases is None or not elapsed:
        return None
    return PhaseTimes(**{k: v / elapsed for k, v in phases.model_dump(exclude_none=True).items()})
