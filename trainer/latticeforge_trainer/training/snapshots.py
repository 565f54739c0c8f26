"""Copies training state to the host and writes it as safetensors, while training goes on.

The layout of a file is decided before anything is copied, so a host buffer is the file's body: it
is written and hashed in pieces as it stands, without a second copy and without holding Python's
lock. Buffers are page-locked, which is slow to get and fast to copy into, and are used again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from latticeforge_trainer.artifacts import FileEntry
from latticeforge_trainer.training.buckets import in_buckets

FILES = "training-state"
"""What the files' names start with."""

CGROUP = Path("/sys/fs/cgroup")

SHARD_BYTES = 4 * 2**30
"""Size of a file: page-locked buffers come in powers of two."""

PIECE = 16 * 2**20
"""Bytes written and hashed at a time."""

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

    def copy_to(self, buffer: torch.Tensor) -> None:
        """Start copying the tensors into a buffer of bytes on the host."""
        for tensor, start in self._tensors:
            part = buffer[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            part.copy_(tensor, non_blocking=True)

    def write(self, buffer: torch.Tensor, path: Path) -> FileEntry:
        """Write a filled buffer as the file, and make it reach the disk."""
        header = json.dumps(self._layout).encode()
        header += b" " * (-len(header) % 8)
        body: memoryview = buffer.numpy()[: self.nbytes].data
        pieces: list[bytes | memoryview] = [len(header).to_bytes(8, "little"), header]
        pieces += [body[at : at + PIECE] for at in range(0, self.nbytes, PIECE)]
        digest = hashlib.sha256()
        with path.open("wb") as file:
            for piece in pieces:
                file.write(piece)
                digest.update(piece)
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
        self._kept: list[torch.Tensor] = []

    def after_current_work(self) -> None:
        """Let copies start when the current stream is done with what it has been given so far."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream())

    def copies(self, shards: list[Shard]) -> Iterator[list[tuple[Shard, torch.Tensor]]]:
        """Shards with their bytes on the host, in groups; a group's bytes last until the next."""
        for group in self._groups(shards):
            held = [self._buffer(slot, shard.nbytes) for slot, shard in enumerate(group)]
            with torch.cuda.stream(self._stream) if self._stream else nullcontext():
                for shard, buffer in zip(group, held, strict=True):
                    shard.copy_to(buffer)
            if self._stream is not None:
                self._stream.synchronize()
            yield list(zip(group, held, strict=True))

    def _groups(self, shards: list[Shard]) -> list[list[Shard]]:
        room = sum(buffer.nbytes for buffer in self._kept)
        # The loaders of coming batches, and whoever else is here, need some as well.
        room += host_memory_left() // (2 * self._processes)
        return in_buckets(shards, lambda shard: shard.nbytes, room)

    def _buffer(self, slot: int, nbytes: int) -> torch.Tensor:
        if slot == len(self._kept):
            self._kept.append(torch.empty(0, dtype=torch.uint8))
        if self._kept[slot].nbytes < nbytes:
            pinned = self._stream is not None
            self._kept[slot] = torch.empty(nbytes, dtype=torch.uint8, pin_memory=pinned)
        return self._kept[slot]


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
        for shard, buffer in group:
            name = f"{FILES}-{len(entries) + 1:05d}.safetensors"
            entries[name] = shard.write(buffer, folder / name)
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
