"""The training loop: visible, short, and the same for every method and every ZeRO stage.

    for every step:  forward and backward over micro-batches → update → agree → record → checkpoint

The loss is the mean over the learned tokens of the step's whole batch. Its denominator is known
before the first forward, so neither loss nor update depends on how the batch is cut into
micro-batches and processes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol

import torch
from deepspeed import comm

from latticeforge_trainer.contract import TrainPayload
from latticeforge_trainer.errors import Interrupted, NumericalError
from latticeforge_trainer.training.batches import (
    BatchPlan,
    PackedSequences,
    count_targets,
    make_micro_batch,
)
from latticeforge_trainer.training.engine import set_learning_rate, update
from latticeforge_trainer.training.process import StopSignal, World, seed_step
from latticeforge_trainer.training.schedule import learning_rate
from latticeforge_trainer.training.state import StepRecord, TrainState


class Hook(Protocol):
    """What happens beside training, on the first process only."""

    def step_done(self, record: StepRecord, checkpoint_step: int | None) -> None:
        """A step is done; `checkpoint_step` is the last that survives a kill."""

    def close(self) -> None:
        """Training ends, well or not."""


@dataclass(frozen=True)
class CheckpointPolicy:
    """When to checkpoint."""

    every_steps: int | None
    every_seconds: float


@dataclass
class Training:
    """One attempt at one stage, ready to run."""

    engine: Any
    data: PackedSequences
    payload: TrainPayload
    plan: BatchPlan
    world: World
    state: TrainState
    policy: CheckpointPolicy
    save: Callable[[Any, TrainState], None]
    """Writes a checkpoint; a collective."""
    stop: StopSignal
    hooks: list[Hook] = field(default_factory=list)
    clock: Callable[[], float] = time.monotonic

    def run(self) -> None:
        """Train to the last step.

        Raises:
            Interrupted: SIGTERM; a checkpoint of the last finished step is written.
            NumericalError: Loss or gradients are NaN or infinite; no checkpoint has seen them.
        """
        self.engine.train()
        self._saved_step, self._saved_time = self.state.step or None, self.clock()
        try:
            for step in range(self.state.step, self.plan.steps):
                started = self.clock()
                share = self._forward_backward(step)
                if share is None:
                    self._save_and_stop()
                rate = self._learning_rate(step)
                set_learning_rate(self.engine, rate)
                norm = update(self.engine)
                loss, stop, due = self._agree(share, self._is_due(step + 1))
                if not (math.isfinite(loss) and math.isfinite(norm)):
                    raise NumericalError(self._not_finite(step, loss, norm, rate))
                record = StepRecord(
                    step=step + 1,
                    loss=loss,
                    learning_rate=rate,
                    grad_norm=norm,
                    tokens=int(self.data.lengths[self.plan.step_indices(step)].sum()),
                    seconds=self.clock() - started,
                )
                self.state.history.append(record)
                if due and not stop:
                    self._save()
                for hook in self.hooks:
                    hook.step_done(record, self._saved_step)
                if stop:
                    self._save_and_stop()
        finally:
            for hook in self.hooks:
                hook.close()

    def _forward_backward(self, step: int) -> torch.Tensor | None:
        """Accumulate the gradients of one step.

        Returns:
            This process's share of the mean loss; None when a process that trains alone was asked
            to stop: its weights are still those of the step before.
        """
        seed_step(self.payload.seed, step, self.world.rank)
        denominator = max(1, count_targets(self.data, self.plan.step_indices(step)))
        micro_batches = list(self.plan.micro_batches(step))
        share = torch.zeros((), device=self.engine.device)
        for number, indices in enumerate(micro_batches, 1):
            if self.stop.raised and self.world.size == 1:
                return None
            batch = make_micro_batch(self.data, indices).to(self.engine.device)
            self.engine.set_gradient_accumulation_boundary(number == len(micro_batches))
            loss = self.engine(batch) / denominator
            # DeepSpeed averages gradients over processes; the denominator already covers them all.
            self.engine.backward(loss * self.world.size, scale_wrt_gas=False)
            share += loss.detach()
        return share

    def _learning_rate(self, step: int) -> float:
        return learning_rate(
            step,
            self.plan.steps,
            peak=self.payload.learning_rate,
            shape=self.payload.schedule,
            warmup_ratio=self.payload.warmup_ratio,
        )

    def _is_due(self, done: int) -> bool:
        if done == self.plan.steps:
            return False  # the result follows at once
        every = self.policy.every_steps
        waited = self.clock() - self._saved_time
        return (every is not None and done % every == 0) or waited >= self.policy.every_seconds

    def _agree(self, share: torch.Tensor, due: bool) -> tuple[float, bool, bool]:
        """Add up the loss; stop if any process was asked to, checkpoint if the first says so."""
        flags = [float(self.stop.raised), float(due and self.world.is_first)]
        values = torch.cat([share.double()[None], share.new_tensor(flags).double()])
        if self.world.size > 1:
            comm.all_reduce(values)
        loss, stop, save = values.tolist()
        return loss, stop > 0, save > 0

    def _save(self) -> None:
        self.save(self.engine, self.state)
        self._saved_step, self._saved_time = self.state.step, self.clock()

    def _save_and_stop(self) -> NoReturn:
        self._save()
        raise Interrupted(
            f"stopped after step {self.state.step} of {self.plan.steps}, and will go on from there"
        )

    def _not_finite(self, step: int, loss: float, norm: float, rate: float) -> str:
        return (
            f"step {step + 1} of {self.plan.steps}: loss {loss:g}, gradient norm {norm:g} at "
            f"learning rate {rate:g}: lower learningRate, or look for broken samples; the last "
            f"good checkpoint is of step {self._saved_step or 0}"
        )
