"""A step's time is told by phase, on a clock of the host's or of the GPU's."""

from __future__ import annotations

import pytest
import torch

from latticeforge_trainer.contract import PhaseTimes
from latticeforge_trainer.training.stopwatch import HostTimer, Stopwatch


class Clock:
    """Seconds that pass when told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_phases_of_one_name_add_up_within_a_step() -> None:
    clock = Clock()
    stopwatch = Stopwatch(HostTimer(clock))
    for seconds in (1, 2):
        with stopwatch.phase("forward"):
            clock.now += seconds
        with stopwatch.phase("backward"):
            clock.now += 2 * seconds
        clock.now += 0.5
    times = stopwatch.finish_step()
    assert times.seconds() == {"forward": 3, "backward": 6}
    assert times.by_phase() == PhaseTimes(forward=3, backward=6)
    assert times.total() == 10


def test_a_step_begins_where_the_one_before_ended() -> None:
    clock = Clock()
    stopwatch = Stopwatch(HostTimer(clock))
    with stopwatch.phase("optimizer"):
        clock.now += 1
    first = stopwatch.finish_step()
    with stopwatch.phase("checkpoint"):
        clock.now += 8
    with stopwatch.phase("validation"):
        clock.now += 4
    with stopwatch.phase("data"):
        clock.now += 2
    clock.now += 1
    second = stopwatch.finish_step()
    clock.now += 50
    assert (first.seconds(), first.total()) == ({"optimizer": 1}, 1)
    assert second.seconds() == {"checkpoint": 8, "validation": 4, "data": 2}
    assert second.total() == 3  # checkpoints and validation aside
    assert stopwatch.finish_step().total() == 50


def test_a_phase_that_failed_is_not_counted() -> None:
    stopwatch = Stopwatch(HostTimer(Clock()))
    with pytest.raises(RuntimeError, match="lost"), stopwatch.phase("forward"):
        raise RuntimeError("lost")
    assert stopwatch.finish_step().seconds() == {}


class Gpu:
    """A stream of work: it comes to a mark when somebody waits for it, at the mark's own time."""

    def __init__(self) -> None:
        self.queued = 0.0  # milliseconds of work that the stream has been given
        self.waited: list[float] = []

    def event(self, enable_timing: bool = False) -> Event:
        assert enable_timing
        return Event(self)


class Event:
    def __init__(self, gpu: Gpu) -> None:
        self.gpu, self.at = gpu, -1.0

    def record(self) -> None:
        self.at = self.gpu.queued

    def synchronize(self) -> None:
        self.gpu.waited.append(self.at)

    def elapsed_time(self, end: Event) -> float:
        if end.at not in self.gpu.waited:
            raise RuntimeError("device not ready")
        return end.at - self.at


def test_on_a_gpu_nothing_waits_until_seconds_are_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu = Gpu()
    monkeypatch.setattr(torch.cuda, "Event", gpu.event)
    stopwatch = Stopwatch.on(torch.device("cuda", 0))
    with stopwatch.phase("forward"):
        gpu.queued += 250
    with stopwatch.phase("backward"):
        gpu.queued += 500
    times = stopwatch.finish_step()
    with stopwatch.phase("forward"):
        gpu.queued += 9000  # the next step is under way
    assert gpu.waited == []
    assert times.total() == 0.75
    assert times.seconds() == {"forward": 0.25, "backward": 0.5}
    assert max(gpu.waited) == 750


def test_the_device_decides_who_measures() -> None:
    stopwatch = Stopwatch.on(torch.device("cpu"))
    assert isinstance(stopwatch.finish_step().timer, HostTimer)
