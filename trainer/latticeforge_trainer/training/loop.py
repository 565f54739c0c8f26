"""The training loop: visible, short, and the same for every method and every ZeRO stage.

    for every step:  forward and backward over micro-batches → update → settle the step before

The host never waits for the step that it has just handed to the device: what a step's loss and
norm say is read, recorded and acted on while the next one computes. Before anything is kept (a
checkpoint, the result), the step that it is of has been settled too.

The loss is the mean over the learned tokens of the step's whole batch. Its denominator is known
before the first forward, so neither loss nor update depends on how the batch is cut into
micro-batches and processes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import NoReturn, Protocol

import torch
from torch import distributed

from latticeforge_trainer.contract import TrainPayload
from latticeforge_trainer.errors import Interrupted, NumericalError
from latticeforge_trainer.estimate.duration import checkpoint_interval
from latticeforge_trainer.training.batches import BatchPlan, PackedSequences
from latticeforge_trainer.training.checkpoints import Checkpoints
from latticeforge_trainer.training.engine import Engine
from latticeforge_trainer.training.meters import Yardstick
from latticeforge_trainer.training.prefetch import StepBatches, StepMaker, prefetched
from latticeforge_trainer.training.process import StopSignal, World, barrier, seed_step
from latticeforge_trainer.training.readback import Readback
from latticeforge_trainer.training.schedule import learning_rate, warmup_steps
from latticeforge_trainer.training.state import StepRecord, TrainState
from latticeforge_trainer.training.stopwatch import StepTimes, Stopwatch
from latticeforge_trainer.training.validation import Validation


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
    """At least; more where training would wait for checkpoints too much of its time."""


@dataclass(frozen=True)
class Handed:
    """A step that was handed to the device, to be settled later."""

    step: int
    """From 0."""
    tokens: int
    flops: int | None
    rate: float
    times: StepTimes
    results: Readback
    """Loss, how many processes want to stop, whether the first wants a checkpoint, norm."""
    validation: Readback | None = None
    """The loss on what is held out, after this step."""


@dataclass
class Training:
    """One attempt at one stage, ready to run."""

    engine: Engine
    data: PackedSequences
    payload: TrainPayload
    plan: BatchPlan
    world: World
    state: TrainState
    policy: CheckpointPolicy
    checkpoints: Checkpoints
    stop: StopSignal
    yardstick: Yardstick
    validation: Validation | None = None
    hooks: list[Hook] = field(default_factory=list)
    clock: Callable[[], float] = time.monotonic

    def run(self) -> None:
        """Train to the last step.

        Raises:
            Interrupted: SIGTERM; a checkpoint of the last finished step is written.
            NumericalError: Loss or gradients are NaN or infinite; no checkpoint has seen them.
            UserError: The disk is full.
        """
        self.engine.loss.train()
        self._handed: Handed | None = None
        self._stop_agreed = self._save_agreed = False
        self._saved_step, self._saved_time = self.state.step, self.clock()
        self._stall = 0.0
        self._stopwatch = Stopwatch.on(self.engine.device)
        make = StepMaker(self.data, self.plan, self.engine.device, self.yardstick.flops)
        steps = prefetched(make, range(self.state.step, self.plan.steps))
        try:
            with closing(steps):
                while (batches := self._next(steps)) is not None:
                    self._step(batches)
            self._settle()
            if self._stop_agreed:
                self._save_and_stop()
            self.checkpoints.finish()
        finally:
            self.checkpoints.close()
            for hook in self.hooks:
                hook.close()

    def _next(self, steps: Iterator[StepBatches]) -> StepBatches | None:
        with self._stopwatch.phase("data"):
            batches = next(steps, None)
            if batches is not None:
                batches.claim()
        return batches

    def _step(self, batches: StepBatches) -> None:
        share = self._forward_backward(batches)
        if share is None:
            self._save_and_stop()
        with self._stopwatch.phase("checkpoint"):
            self._stall += self.checkpoints.before_update()
        rate = self._learning_rate(batches.step)
        with self._stopwatch.phase("optimizer"):
            norm = self.engine.update(rate)
        results = self._results(share, norm)
        times = self._stopwatch.finish_step()
        self._settle()
        self._handed = Handed(batches.step, batches.tokens, batches.flops, rate, times, results)
        self._validate()
        if self._stop_agreed:
            self._save_and_stop()
        if self._is_due(batches.step + 1):
            self._save()

    def _forward_backward(self, batches: StepBatches) -> torch.Tensor | None:
        """Accumulate the gradients of one step.

        Returns:
            This process's share of the mean loss; None when a process that trains alone was asked
            to stop: its weights are still those of the step before.
        """
        seed_step(self.payload.seed, batches.step, self.world.rank)
        total = torch.zeros((), device=self.engine.device)
        for number, batch in enumerate(batches.micro_batches, 1):
            if self.stop.raised and self.world.size == 1:
                return None
            with self._stopwatch.phase("forward"):
                share = self.engine.forward(batch, batches.denominator)
            with self._stopwatch.phase("backward"):
                self.engine.backward(share, last=number == len(batches.micro_batches))
            total += share.detach()
        return total

    def _learning_rate(self, step: int) -> float:
        return learning_rate(
            step,
            self.plan.steps,
            peak=self.payload.learning_rate,
            shape=self.payload.schedule,
            warmup=warmup_steps(
                self.plan.steps, self.payload.warmup_ratio, self.payload.warmup_steps
            ),
            floor=self.payload.min_learning_rate_ratio or 0.0,
        )

    def _validate(self) -> None:
        """Measure the loss on what is held out, if that is due after the step handed over last."""
        handed = self._handed
        if self.validation and handed and handed.step + 1 in self.validation.after:
            with self._stopwatch.phase("validation"):
                measured = Readback(self.validation.measure(self.engine))
            self._handed = replace(handed, validation=measured)

    def _results(self, share: torch.Tensor, norm: torch.Tensor) -> Readback:
        """Add up the loss and what the processes want, and send for it together with the norm."""
        sums = torch.zeros(3, dtype=torch.double, device=share.device)
        # Filled in, not built from a list: that would be copied from here, and waited for.
        sums[0].copy_(share)
        sums[1].fill_(self.stop.raised or self.checkpoints.failed)
        sums[2].fill_(self.world.is_first and self._is_overdue())
        if self.world.size > 1:
            distributed.all_reduce(sums)
        return Readback(torch.cat([sums, norm.double().reshape(1)]))

    def _settle(self) -> None:
        """Read, check and record the step that was handed over last."""
        handed, self._handed = self._handed, None
        if handed is None:
            return
        loss, stop, save, norm = handed.results.read()
        validation_loss = handed.validation.read()[0] if handed.validation else None
        if not all(map(math.isfinite, (loss, norm, validation_loss or 0.0))):
            self.checkpoints.finish()  # what is being written is of a step that was good
            raise NumericalError(self._not_finite(handed, loss, norm))
        # Every process reads the same sums, so all of them stop and save at the same step.
        self._stop_agreed, self._save_agreed = stop > 0, save > 0
        record = StepRecord(
            step=handed.step + 1,
            loss=loss,
            learning_rate=handed.rate,
            grad_norm=norm,
            validation_loss=validation_loss,
            tokens=handed.tokens,
            seconds=handed.times.total(),
            flops=handed.flops,
            seconds_by_phase=handed.times.by_phase(),
        )
        self.state.history.append(record)
        self.checkpoints.prepare()  # the step was good, so the optimizer's states are there
        for hook in self.hooks:
            hook.step_done(record, self.checkpoints.committed)

    def _is_overdue(self) -> bool:
        interval = checkpoint_interval(self.policy.every_seconds, self._stall)
        passed = self.clock() - self._saved_time
        return passed >= interval and not self.checkpoints.is_writing

    def _is_due(self, done: int) -> bool:
        if done == self.plan.steps:
            return False  # the result follows at once
        every = self.policy.every_steps
        return self._save_agreed or (every is not None and done % every == 0)

    def _save(self) -> None:
        """Settle the last step, so that what is saved is known to be good, and save."""
        self._settle()
        if self.state.step > self._saved_step:
            started = self.clock()
            with self._stopwatch.phase("checkpoint"):
                self.checkpoints.save(self.state)
            self._stall = self.clock() - started
        self._saved_step, self._saved_time = self.state.step, self.clock()
        self._save_agreed = False

    def _save_and_stop(self) -> NoReturn:
        self._save()
        self.checkpoints.finish()
        barrier(self.world)  # the end of one process makes the launcher end the others
        raise Interrupted(
            f"stopped after step {self.state.step} of {self.plan.steps}, and will go on from there"
        )

    def _not_finite(self, handed: Handed, loss: float, norm: float) -> str:
        return (
            f"step {handed.step + 1} of {self.plan.steps}: loss {loss:g}, gradient norm {norm:g} "
            f"at learning rate {handed.rate:g}: lower learningRate, or look for broken samples; "
            f"the last good checkpoint is of step {self.checkpoints.committed or 0}"
        )
