"""Copies training state to the host and writes it as safetensors, while training goes on.

The layout of a file is decided before anything is copied, so host memory holds the file's body: it
is written and hashed as it stands, without a second copy and without holding Python's lock.

That memory is page-locked, which is slow to get and fast to copy into, and is used again. It is got
in small pieces, across whose borders tensors and files lie: no kernel is launched while the driver
locks one.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from latticeforge_trainer.artifacts import FileEntry
from latticeforge_trainer.estimate.buckets import SNAPSHOT_PIECE
from latticeforge_trainer.training.buckets import in_buckets

FILES = "training-state"
"""What the files' names start with."""

CGROUP = Path("/sys/fs/cgroup")

SHARD_BYTES = 4 * 2**30
"""Size of a file."""

CHUNK = 16 * 2**20
"""Bytes written and hashed at a time."""

Memory = list[torch.Tensor]
"""Bytes on the host, one after another in the parts of pieces that they lie in."""

DTYPES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
}
"""What safetensors calls the types that occur in training state."""


class Shard:
    """The tensors of one file, and where they lie in it.

    Args:
        tensors: What is written, by name.

    Attributes:
        nbytes: Of the file's body.
    """

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        # Larger types first keeps every tensor aligned to its own.
        ordered = sorted(tensors.items(), key=lambda item: -item[1].itemsize)
        self._tensors: list[tuple[torch.Tensor, int]] = []
        self._layout: dict[str, Any] = {}
        self.nbytes = 0
        for name, tensor in ordered:
            self._tensors.append((tensor, self.nbytes))
            end = self.nbytes + tensor.nbytes
            self._layout[name] = {
                "dtype": DTYPES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [self.nbytes, end],
            }
            self.nbytes = end

    def copy_to(self, memory: Memory) -> None:
        """Start copying the tensors into `nbytes` bytes on the host."""
        for tensor, start in self._tensors:
            parts = _span(memory, start, tensor.nbytes)
            # One that is not contiguous is put in order where it is, as `copy_` would do itself.
            source = tensor.contiguous().flatten().view(torch.uint8)
            pieces = torch.split(source, [len(part) for part in parts])
            for part, piece in zip(parts, pieces, strict=True):
                part.copy_(piece, non_blocking=True)

    def write(self, memory: Memory, path: Path) -> FileEntry:
        """Write the bytes that were copied as the file, and make it reach the disk."""
        header = json.dumps(self._layout).encode()
        header += b" " * (-len(header) % 8)
        chunks: list[bytes | memoryview] = [len(header).to_bytes(8, "little"), header]
        for part in memory:
            chunks += [chunk.numpy().data for chunk in torch.split(part, CHUNK)]
        digest = hashlib.sha256()
        with path.open("wb") as file:
            for chunk in chunks:
                file.write(chunk)
                digest.update(chunk)
            file.flush()
            os.fsync(file.fileno())
        return FileEntry(size=8 + len(header) + self.nbytes, sha256=digest.hexdigest())


def in_shards(tensors: dict[str, torch.Tensor]) -> list[Shard]:
    """Tensors in files of at most `SHARD_BYTES`, or of one tensor."""
    parts = in_buckets(tensors.items(), lambda item: item[1].nbytes, SHARD_BYTES)
    return [Shard(dict(part)) for part in parts]


class HostBuffers:
    """Host memory that snapshots go to, as many shards at a time as it has room for.

    Args:
        device: Where they come from.
        processes: Those of this node that take snapshots at the same time.
    """

    def __init__(self, device: torch.device, processes: int = 1) -> None:
        self._processes = processes
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._pieces: list[torch.Tensor] = []

    @property
    def is_page_locked(self) -> bool:
        """Whether memory is slow to get, and so worth holding ahead."""
        return self._stream is not None

    def after_current_work(self) -> None:
        """Let copies start when the current stream is done with what it has been given so far."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream())

    def needed(self, shards: list[Shard]) -> int:
        """Bytes that copying shards would take, of which some may be held already."""
        return max(map(_nbytes, self._groups(shards)), default=0)

    def hold(self, nbytes: int, hurry: threading.Event) -> None:
        """Get bytes before they are needed.

        Args:
            nbytes: How many to hold in all.
            hurry: Ends it after the piece that is being locked; the next copies get the rest.
        """
        while self._held < nbytes and not hurry.is_set():
            self._add_piece(nbytes)

    def copies(self, shards: list[Shard]) -> Iterator[list[tuple[Shard, Memory]]]:
        """Shards with their bytes on the host, in groups; a group's bytes last until the next."""
        for group in self._groups(shards):
            copies = list(zip(group, self._memory(group), strict=True))
            with torch.cuda.stream(self._stream) if self._stream else nullcontext():
                for shard, memory in copies:
                    shard.copy_to(memory)
            if self._stream is not None:
                self._stream.synchronize()
            yield copies

    def _groups(self, shards: list[Shard]) -> list[list[Shard]]:
        # The loaders of coming batches, and whoever else is here, need some as well.
        room = self._held + host_memory_left() // (2 * self._processes)
        return in_buckets(shards, lambda shard: shard.nbytes, room)

    def _memory(self, group: list[Shard]) -> list[Memory]:
        """Room for each shard of a group, one behind the other."""
        nbytes = _nbytes(group)
        while self._held < nbytes:
            self._add_piece(nbytes)
        ends = accumulate(shard.nbytes for shard in group)
        return [
            _span(self._pieces, end - shard.nbytes, shard.nbytes)
            for shard, end in zip(group, ends, strict=True)
        ]

    @property
    def _held(self) -> int:
        return sum(map(len, self._pieces))

    def _add_piece(self, nbytes: int) -> None:
        """Hold more, up to some bytes in all."""
        size, pinned = min(SNAPSHOT_PIECE, nbytes - self._held), self._stream is not None
        self._pieces.append(torch.empty(size, dtype=torch.uint8, pin_memory=pinned))


def _nbytes(shards: list[Shard]) -> int:
    return sum(shard.nbytes for shard in shards)


def _span(memory: Memory, start: int, size: int) -> Memory:
    """The `size` bytes from `start` on."""
    parts = []
    for piece in memory:
        part = piece[start : start + size]
        start, size = max(0, start - len(piece)), size - len(part)
        if len(part):
            parts.append(part)
    return parts


def write_shards(
    shards: list[Shard], folder: Path, buffers: HostBuffers, copied: Callable[[], None]
) -> dict[str, FileEntry]:
    """Copy and write shards.

    Args:
        shards: What is written.
        folder: Where to; exists.
        buffers: Host memory to copy to.
        copied: Called once all copies are made, before the last of them are written.

    Returns:
        The files.
    """
    entries: dict[str, FileEntry] = {}
    left = len(shards)
    for group in buffers.copies(shards):
        left -= len(group)
        if not left:
            copied()
        for shard, memory in group:
            name = f"{FILES}-{len(entries) + 1:05d}.safetensors"
            entries[name] = shard.write(memory, folder / name)
    return entries


def read_shards(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors that `write_shards` wrote."""
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob(f"{FILES}-*.safetensors")):
        tensors |= load_file(path)
    return tensors


def host_memory_left() -> int:
    """Bytes that this process may still take, of the machine's and of its container's."""
    machine = dict(_figures(Path("/proc/meminfo"), ":"))
    left = machine["MemAvailable"] * 1024
    limit = CGROUP / "memory.max"
    if not limit.exists() or limit.read_text().strip() == "max":
        return left
    # Pages of files that were read once count as used, and go when memory is asked for.
    freeable = dict(_figures(CGROUP / "memory.stat", " "))["inactive_file"]
    used = int((CGROUP / "memory.current").read_text()) - freeable
    return min(left, int(limit.read_text()) - used)


def _figures(path: Path, separator: str) -> Iterator[tuple[str, int]]:
    for line in path.read_text().splitlines():
        name, _, value = line.partition(separator)
        yield name, int(value.split()[0])
