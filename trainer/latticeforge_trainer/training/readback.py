"""Reads numbers off the device after the device has got that far, not before."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


class Readback:
    """Numbers on their way to the host; making it waits for nothing.

    Args:
        values: A vector on the device.
        clock: Seconds.
    """

    def __init__(self, values: torch.Tensor, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._arrived = clock()
        self._host = values
        self._event: torch.cuda.Event | None = None
        if values.is_cuda:
            self._host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._host.copy_(values, non_blocking=True)
            self._event = torch.cuda.Event(blocking=True)  # a spinning wait would take a core
            self._event.record()

    def read(self) -> tuple[list[float], float]:
        """The numbers, and when the device was done with what they depend on."""
        if self._event is not None:
            self._event.synchronize()
            self._arrived, self._event = self._clock(), None
        numbers: list[float] = self._host.tolist()
        return numbers, self._arrived
