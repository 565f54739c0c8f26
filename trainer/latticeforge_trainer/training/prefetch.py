"""Makes the batches of coming steps while this one computes: read, cut, and on the device."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from latticeforge_trainer.training.batches import (
    BatchPlan,
    MicroBatch,
    PackedSequences,
    count_targets,
    make_micro_batch,
)

AHEAD = 2
"""Steps made in advance: one would do, unless a page has to come from a slow disk."""


@dataclass(frozen=True)
class StepBatches:
    """All that one process needs for one step.

    Attributes:
        step: From 0.
        denominator: Learned tokens of the step over all processes; at least 1.
        tokens: Real tokens of the step over all processes.
        flops: Model FLOPs of the step over all processes, if they are known.
        micro_batches: One for each forward pass, on the device.
        ready: When they have reached it; None on the CPU.
    """

    step: int
    denominator: int
    tokens: int
    flops: int | None
    micro_batches: list[MicroBatch]
    ready: torch.cuda.Event | None

    def claim(self) -> None:
        """Let the current stream use the micro-batches, without waiting here."""
        if self.ready is None:
            return
        stream = torch.cuda.current_stream()
        stream.wait_event(self.ready)

        def used(tensor: torch.Tensor) -> torch.Tensor:
            tensor.record_stream(stream)  # its memory is another stream's
            return tensor

        for batch in self.micro_batches:
            batch.map(used)


class StepMaker:
    """Makes a step's batches, copying them on a stream of its own.

    Args:
        data: The packed data.
        plan: How steps are cut.
        device: Where micro-batches go.
        count_flops: Of training on some sequences.
    """

    def __init__(
        self,
        data: PackedSequences,
        plan: BatchPlan,
        device: torch.device,
        count_flops: Callable[[PackedSequences, Sequence[int]], int | None],
    ) -> None:
        self._data, self._plan, self._device = data, plan, device
        self._count_flops = count_flops
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, step: int) -> StepBatches:
        """The batches of a step, which may still be on their way to the device."""
        indices = self._plan.step_indices(step)
        made = [make_micro_batch(self._data, part) for part in self._plan.micro_batches(step)]
        # From pageable memory: only the thread that prefetches waits for the copies.
        with torch.cuda.stream(self._stream) if self._stream else nullcontext():
            sent = [batch.to(self._device) for batch in made]
        return StepBatches(
            step=step,
            denominator=max(1, count_targets(self._data, indices)),
            tokens=int(self._data.lengths[indices].sum()),
            flops=self._count_flops(self._data, indices),
            micro_batches=sent,
            ready=self._stream.record_event() if self._stream else None,
        )


def prefetched(make: StepMaker, steps: Iterable[int]) -> Generator[StepBatches, None, None]:
    """Every step's batches in order, made by a thread that ends with this iterator.

    Raises:
        Exception: What making a step's batches raised, when it is that step's turn.
    """
    pending: deque[Future[StepBatches]] = deque()
    pool = ThreadPoolExecutor(1, thread_name_prefix="batches")
    try:
        for step in steps:
            pending.append(pool.submit(make, step))
            if len(pending) > AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
