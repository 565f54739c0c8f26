"""The tensors that safetensors files hold, and where, read from their headers alone."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from latticeforge_trainer.errors import UserError

MAXIMUM_HEADER = 100_000_000
"""Bytes; the format's own limit."""

_PREFIX = 8
"""Bytes before the header, which hold its length."""

_NF4_PARTS = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map")
_NF4_STATE = ".quant_state."


class TensorInfo(NamedTuple):
    """One tensor: its type as safetensors names it, such as `BF16`, and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def is_float(self) -> bool:
        """Whether it holds floating-point numbers."""
        return self.dtype.startswith(("F", "BF"))


class StoredTensor(NamedTuple):
    """One tensor's place: `size` bytes of a file from `start`."""

    path: Path
    info: TensorInfo
    start: int
    size: int

    def part(self, first: int, last: int) -> StoredTensor:
        """The numbers from `first` to `last` of the flattened tensor."""
        width = self.size // max(1, math.prod(self.info.shape))
        info = TensorInfo(self.info.dtype, (last - first,))
        return StoredTensor(self.path, info, self.start + first * width, (last - first) * width)


Header = Mapping[str, TensorInfo]
"""Tensors by name."""


def read_header(path: Path) -> Header:
    """The tensors of a file.

    Raises:
        UserError: It is no safetensors file.
    """
    return {name: tensor.info for name, tensor in _entries(path)}


def locate_tensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a file, and where in it they lie.

    Raises:
        UserError: It is no safetensors file, or shorter than its header says.
    """
    tensors, size = dict(_entries(path)), path.stat().st_size
    for name, tensor in tensors.items():
        if tensor.start + tensor.size > size:
            raise UserError(f"{path} ends before {name} does: bring it again, it is incomplete")
    return tensors


def _entries(path: Path) -> Iterator[tuple[str, StoredTensor]]:
    try:
        header = header_bytes(path)
        for name, entry in json.loads(header).items():
            if name == "__metadata__":
                continue
            first, last = entry["data_offsets"]
            info = TensorInfo(entry["dtype"], tuple(entry["shape"]))
            yield name, StoredTensor(path, info, _PREFIX + len(header) + first, last - first)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: no valid safetensors file") from error


def header_bytes(path: Path) -> bytes:
    """The JSON of a file's header.

    Raises:
        ValueError: It is too short, or its header too long.
    """
    with path.open("rb") as file:
        prefix = file.read(_PREFIX)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == _PREFIX else MAXIMUM_HEADER + 1
        if length > MAXIMUM_HEADER:
            raise ValueError(f"{path}: no safetensors header")
        return file.read(length)


def count_parameters(header: Header) -> int:
    """Parameters of a model: numbers that training could change.

    NF4 weights are stored two to a byte, beside their scales, which are not parameters.
    """
    packed, total = nf4_weights(header), 0
    for name, tensor in header.items():
        size = math.prod(tensor.shape)
        if name in packed:
            total += 2 * size
        elif tensor.is_float and not name.endswith((*_NF4_PARTS, "rotary_emb.inv_freq")):
            total += size
    return total


def nf4_weights(names: Iterable[str]) -> set[str]:
    """Those of a file's tensors that are weights in NF4: they lie beside their scales."""
    return {name.partition(_NF4_STATE)[0] for name in names if _NF4_STATE in name}


def nf4_weight_of(name: str) -> str:
    """The weight that a tensor of an NF4 weight belongs to: itself, or what it is a scale of."""
    for part in (*_NF4_PARTS, _NF4_STATE):
        whole, found, _ = name.partition(part)
        if found:
            return whole
    return name


def integer_share(header: Header) -> float:
    """Share of all stored bytes-worth of numbers that are integers: quantized weights."""
    sizes = {True: 0, False: 0}
    for tensor in header.values():
        sizes[tensor.is_float] += math.prod(tensor.shape)
    return sizes[False] / max(1, sum(sizes.values()))
