"""The tensors that safetensors files hold, read from their headers alone."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from latticeforge_trainer.errors import UserError

MAXIMUM_HEADER = 100_000_000
"""Bytes; the format's own limit."""

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


Header = Mapping[str, TensorInfo]
"""Tensors by name."""


def read_header(path: Path) -> Header:
    """The tensors of a file.

    Raises:
        UserError: It is no safetensors file.
    """
    try:
        header = json.loads(header_bytes(path))
        return {
            name: TensorInfo(entry["dtype"], tuple(entry["shape"]))
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: no valid safetensors file") from error


def header_bytes(path: Path) -> bytes:
    """The JSON of a file's header.

    Raises:
        ValueError: It is too short, or its header too long.
    """
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else MAXIMUM_HEADER + 1
        if length > MAXIMUM_HEADER:
            raise ValueError(f"{path}: no safetensors header")
        return file.read(length)


def count_parameters(header: Header) -> int:
    """Parameters of a model: numbers that training could change.

    NF4 weights are stored two to a byte, beside their scales, which are not parameters.
    """
    packed = {name.partition(_NF4_STATE)[0] for name in header if _NF4_STATE in name}
    total = 0
    for name, tensor in header.items():
        size = math.prod(tensor.shape)
        if name in packed:
            total += 2 * size
        elif tensor.is_float and not name.endswith((*_NF4_PARTS, "rotary_emb.inv_freq")):
            total += size
    return total


def integer_share(header: Header) -> float:
    """Share of all stored bytes-worth of numbers that are integers: quantized weights."""
    sizes = {True: 0, False: 0}
    for tensor in header.values():
        sizes[tensor.is_float] += math.prod(tensor.shape)
    return sizes[False] / max(1, sum(sizes.values()))
