"""Where a step's time goes, measured without making host and GPU wait for each other.

    stopwatch = Stopwatch.on(device)
    for step in ...:
        with stopwatch.phase("data"): ...
        for micro_batch in ...:                    # phases add up within a step
            with stopwatch.phase("forward"): ...
            with stopwatch.phase("backward"): ...
        with stopwatch.phase("optimizer"): ...
        times = stopwatch.finish_step()            # the next step begins here
        # one step later, when the GPU has the next step to do:
        record = StepRecord(..., seconds=times.total(), seconds_by_phase=times.by_phase())

On a GPU the marks are CUDA events in its stream of work. A phase is then the time that the GPU
needed from one mark to the next: kernels in `forward` however early the host launched them, and in
`data` only how long the GPU had nothing to do, which is what slow data costs. On a CPU they are
readings of the clock. Checkpoints and validation come after a step's end and so count to the next.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self

import torch

from latticeforge_trainer.contract import PhaseTimes

Phase = Literal["data", "forward", "backward", "optimizer", "checkpoint", "validation"]


class Timer(Protocol):
    """Puts marks where the work is done, and tells the time between them."""

    def mark(self) -> Any:
        """A mark at this point of the work."""

    def between(self, start: Any, end: Any) -> float:
        """Seconds from one mark to another, waiting until the work has come to both."""


@dataclass(frozen=True)
class HostTimer:
    """Marks are readings of a clock.

    Args:
        clock: Monotonic seconds.
    """

    clock: Callable[[], float] = time.perf_counter

    def mark(self) -> float:
        """Now."""
        return self.clock()

    def between(self, start: float, end: float) -> float:
        """Their difference."""
        return end - start


class CudaTimer:
    """Marks are events in the current stream of the current GPU."""

    def mark(self) -> Any:
        """An event behind all work that the stream has been given."""
        make: Any = torch.cuda.Event  # untyped
        event = make(enable_timing=True)
        event.record()
        return event

    def between(self, start: Any, end: Any) -> float:
        """As the GPU's own clock has it; waits until the GPU has come to the end."""
        end.synchronize()
        milliseconds: float = start.elapsed_time(end)
        return milliseconds / 1000


@dataclass(frozen=True)
class StepTimes:
    """The marks of one finished step; asking for seconds may wait for the step's end."""

    timer: Timer
    start: Any
    end: Any
    phases: dict[Phase, list[tuple[Any, Any]]]

    def seconds(self) -> dict[Phase, float]:
        """Seconds in each phase that there was."""
        return {
            name: sum(self.timer.between(start, end) for start, end in marks)
            for name, marks in self.phases.items()
        }

    def by_phase(self) -> PhaseTimes:
        """The same, as records hold it."""
        return PhaseTimes(**self.seconds())

    def total(self) -> float:
        """Seconds from the end of the step before to the end of this one.

        Checkpoints and validation are left out: they are no part of a step.
        """
        return self.timer.between(self.start, self.end) - self.by_phase().aside


class Stopwatch:
    """Measures steps, one after the other, from when it is made.

    Args:
        timer: Where marks are put.
    """

    def __init__(self, timer: Timer) -> None:
        self._timer = timer
        self._begin(timer.mark())

    @classmethod
    def on(cls, device: torch.device) -> Self:
        """For work on a device; a GPU must be the current one."""
        return cls(CudaTimer() if device.type == "cuda" else HostTimer())

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """Count the block to a phase; phases do not nest."""
        start = self._timer.mark()
        yield
        self._phases[name].append((start, self._timer.mark()))

    def finish_step(self) -> StepTimes:
        """End the step and begin the next."""
        end = self._timer.mark()
        times = StepTimes(self._timer, self._start, end, dict(self._phases))
        self._begin(end)
        return times

    def _begin(self, start: Any) -> None:
        self._start = start
        self._phases: defaultdict[Phase, list[tuple[Any, Any]]] = defaultdict(list)
