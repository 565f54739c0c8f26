"""Reads tensors from safetensors files onto a device, as fast as the disk and the bus give them.

    on a GPU:  file → page-locked buffer → the tensor → whoever consumes it, in several threads
    on a CPU:  the tensor is the file, mapped

To a GPU, plain reads of large chunks: copying out of a mapping takes two to three times as long,
because every page costs a fault. Each thread reads into a buffer of its own and copies from there
on a stream of its own. What has been read and not yet been taken is bounded, so a consumer that
quantizes holds a few tensors in 16 bits and never the model.

On a CPU nothing is copied, and what is only read can be taken back by the kernel at any time.
"""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Self

import torch

from latticeforge_trainer.errors import UserError
from latticeforge_trainer.models.headers import StoredTensor

THREADS = 8
"""Readers: a network disk or a RAID of NVMe needs several requests in flight."""

CHUNK = 32 * 2**20
"""Bytes of one read; larger ones gain nothing, and pin more memory."""

AHEAD = 2**30
"""Bytes that may be read before what came earlier is taken; a larger tensor goes alone."""

DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Types as safetensors names them."""

Report = Callable[[int, int], None]
"""Called with the bytes that are loaded and those that will be."""


@dataclass(frozen=True)
class Group:
    """Tensors that are needed together: those of one module, by their names in it."""

    module: str
    tensors: Mapping[str, StoredTensor]

    @cached_property
    def size(self) -> int:
        """Bytes of all of them."""
        return sum(tensor.size for tensor in self.tensors.values())


Loaded = dict[str, torch.Tensor]
"""The tensors of a group, in the types they are stored in."""


def stream(
    groups: Iterable[Group], device: torch.device, report: Report | None = None
) -> Iterator[tuple[Group, Loaded]]:
    """Read groups of tensors, in their order.

    Args:
        groups: What to read; best in the order of the files.
        device: Where to.
        report: Called after each group has been taken.

    Raises:
        UserError: A tensor has a type that is not known, or a file is cut short.
    """
    groups = list(groups)
    done, total = 0, sum(group.size for group in groups)
    with _source(device) as source:
        for reading in _read_ahead(groups, source):
            yield reading.group, reading.wait()
            done += reading.group.size
            if report is not None:
                report(done, total)


def _source(device: torch.device) -> _Mapped | _Readers:
    if device.type == "cpu":
        return _Mapped()
    return _Readers(
        torch.empty(0, device=device).device
    )  # which says which GPU, if `device` does not


def _read_ahead(groups: Iterable[Group], source: _Mapped | _Readers) -> Iterator[_Reading]:
    begun: deque[_Reading] = deque()
    ahead = 0
    for group in groups:
        while begun and ahead + group.size > AHEAD:
            ahead -= begun[0].group.size
            yield begun.popleft()
        begun.append(source.begin(group))
        ahead += group.size
    while begun:
        yield begun.popleft()


@dataclass(frozen=True)
class _Reading:
    """A group whose tensors have their memory, and are being filled."""

    group: Group
    tensors: Loaded
    chunks: list[Future[None]]

    def wait(self) -> Loaded:
        """Return when everything is there."""
        for chunk in self.chunks:
            chunk.result()
        return self.tensors


class _Mapped:
    """Files mapped into memory: writing to a tensor leaves its file as it is."""

    def __init__(self) -> None:
        self._files: dict[Path, torch.Tensor] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._files.clear()  # each tensor keeps its mapping

    def begin(self, group: Group) -> _Reading:
        """Find a group's tensors in their files."""
        return _Reading(group, {k: self._view(v) for k, v in group.tensors.items()}, [])

    def _view(self, stored: StoredTensor) -> torch.Tensor:
        if stored.path not in self._files:
            size = stored.path.stat().st_size
            content = torch.from_file(str(stored.path), shared=False, size=size, dtype=torch.uint8)
            self._files[stored.path] = content
        content = self._files[stored.path][stored.start : stored.start + stored.size]
        _check_size(content, stored)
        dtype = _dtype_of(stored)
        if stored.start % dtype.itemsize:  # the format asks for no alignment
            content = content.clone()
        return content.view(dtype).view(stored.info.shape)


class _Readers:
    """Threads that fill tensors from files.

    Args:
        device: Where the tensors are.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._files: dict[Path, int] = {}
        self._threads = ThreadPoolExecutor(THREADS, "weights")
        self._lanes = threading.local()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._threads.shutdown(cancel_futures=True)
        for file in self._files.values():
            os.close(file)

    def begin(self, group: Group) -> _Reading:
        """Give a group's tensors their memory and have it filled."""
        tensors, chunks = {}, []
        for name, stored in group.tensors.items():
            dtype = _dtype_of(stored)
            with torch.inference_mode(mode=False):  # which the threads are not in
                tensors[name] = torch.empty(stored.info.shape, dtype=dtype, device=self._device)
            chunks += self._fill(tensors[name], stored)
        return _Reading(group, tensors, chunks)

    def _fill(self, tensor: torch.Tensor, stored: StoredTensor) -> list[Future[None]]:
        target = tensor.view(-1).view(torch.uint8)
        _check_size(target, stored)
        file, lane = self._open(stored.path), _fill_directly
        if self._device.type == "cuda":
            # The memory may still be read by what was asked of the GPU before it was freed.
            free = torch.cuda.current_stream(self._device).record_event()
            lane = partial(self._fill_staged, free)
        return [
            self._threads.submit(lane, file, stored.start + first, target[first : first + CHUNK])
            for first in range(0, stored.size, CHUNK)
        ]

    def _fill_staged(
        self, free: torch.cuda.Event, file: int, start: int, target: torch.Tensor
    ) -> None:
        lane = self._lane()
        staged = lane.buffer[: len(target)]
        _fill_directly(file, start, staged)
        with torch.cuda.stream(lane.stream):
            lane.stream.wait_event(free)
            target.copy_(staged, non_blocking=True)
        lane.stream.synchronize()  # then the buffer is free again, and the tensor anybody's

    def _lane(self) -> _Lane:
        if not hasattr(self._lanes, "own"):
            # A thread starts on the first GPU, where page-locked memory would make a context.
            torch.cuda.set_device(self._device)
            self._lanes.own = _Lane(
                torch.cuda.Stream(self._device),
                torch.empty(CHUNK, dtype=torch.uint8, pin_memory=True),
            )
        own: _Lane = self._lanes.own
        return own

    def _open(self, path: Path) -> int:
        if path not in self._files:
            self._files[path] = os.open(path, os.O_RDONLY)
        return self._files[path]


@dataclass(frozen=True)
class _Lane:
    """What one thread needs to bring bytes onto a GPU."""

    stream: torch.cuda.Stream
    buffer: torch.Tensor


def _dtype_of(stored: StoredTensor) -> torch.dtype:
    dtype = DTYPES.get(stored.info.dtype)
    if dtype is None:
        raise UserError(f"{stored.path} holds {stored.info.dtype}, a type that is not known here")
    return dtype


def _check_size(content: torch.Tensor, stored: StoredTensor) -> None:
    size = math.prod(stored.info.shape) * _dtype_of(stored).itemsize
    if not size == len(content) == stored.size:
        raise UserError(
            f"{stored.path}: a tensor has {len(content)} bytes, not {size}: it is damaged"
        )


def _fill_directly(file: int, start: int, target: torch.Tensor) -> None:
    view = memoryview(target.numpy().data)
    while view:
        count = os.preadv(file, [view], start)
        if count == 0:
            raise UserError("a weight file ended while it was read: was it replaced?")
        view, start = view[count:], start + count
