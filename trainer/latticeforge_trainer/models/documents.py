"""What attention within packed documents is told: where they begin, and how scores are made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class Boundaries:
    """Where documents begin and end on the token axis; equal only to itself, so it can be a key.

    Attributes:
        cumulative: int32 [documents + 1], from 0 to the number of tokens, where attention computes.
        lengths: Of the documents, on the host: no kernel launch waits for the device.
    """

    cumulative: torch.Tensor
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, position_ids: torch.Tensor) -> Boundaries:
        """The documents of rows: one starts where the position is 0, and at each row's start.

        Args:
            position_ids: [rows, length], on the host.
        """
        first = position_ids == 0
        first[:, 0] = True
        starts = first.flatten().nonzero().squeeze(1)
        ends = torch.cat([starts[1:], starts.new_tensor([position_ids.numel()])])
        cumulative = torch.cat([starts, ends[-1:]]).to(torch.int32)
        return cls(cumulative, tuple((ends - starts).tolist()))

    @property
    def longest(self) -> int:
        """Tokens of the longest document."""
        return max(self.lengths)

    @property
    def equal(self) -> bool:
        """Whether all documents have one length, so that they form a batch without padding."""
        return len(set(self.lengths)) == 1

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Boundaries:
        """The same with its tensor changed, for instance on a device."""
        return Boundaries(change(self.cumulative), self.lengths)


@dataclass(frozen=True)
class Options:
    """How scores are made: `softcap * tanh(scale * q @ k / softcap)`, and who sees whom."""

    scale: float
    window: int | None = None
    """Tokens that a token sees, itself included; None: all before it in its document."""
    softcap: float | None = None


Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Boundaries, Options], torch.Tensor]
"""q [tokens, heads, dim], k and v [tokens, kv_heads, dim] to [tokens, heads, dim]."""
