"""How much the trainer holds at a time where it works in pieces; it runs with what stands here.

Counts of numbers, not bytes, where nothing else is said.
"""

from __future__ import annotations

LOGITS_AT_ONCE = 2**29
"""Logits of the loss: 1 GiB in 16 bits."""

UPDATE_BUCKET = 100_000_000
"""Parameters that ZeRO 0 updates, which bounds the fp32 copies of their 16-bit gradients to 0.4 GB
(or to one parameter's, if that is larger)."""

PLAIN_REDUCE_BUCKET = 50_000_000
"""Gradients that ZeRO 0 sums over processes: enough to fill the links, and 0.2 GB."""

REDUCE_BUCKET = 100_000_000
"""Gradients that DeepSpeed reduces: 0.2 GB fill the links for a millisecond, against microseconds
of latency. The default is five times that."""

ALL_REDUCE = 500_000_000
"""Gradients that DeepSpeed's ZeRO 1 sums over processes: its own constant."""

SUB_GROUP = 500_000_000
"""Parameters that ZeRO-3 updates: the default of 1e9 costs 4 GB of transients, and each update 4 ms
beside its bytes."""

PREFETCH_BUCKET = 100_000_000
"""Weights that ZeRO-3 gathers ahead of their use: one large matrix, or attention's four, which
takes about as long as computing with the one before. Half of that, the default, would let the
matrix units wait after every small one."""

LIVE = 1_000_000_000
"""Weights that ZeRO-3 leaves gathered where they are soon used again: DeepSpeed's default."""

SNAPSHOT_PIECE = 256 * 2**20
"""Bytes of host memory that are page-locked at a time for training state; torch rounds up to a
power of two."""
