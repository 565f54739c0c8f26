"""What the estimate's formulas leave open, fitted to measurements of this trainer.

Fitted on the rows of `docs/data/trainer.json` and the tables of `docs/performance.md` (one H200,
one and two H100) unless a constant says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

CONTEXT = 600 * 2**20
"""Bytes of a GPU outside torch's allocator: CUDA's context and kernels. Assumed."""

NCCL = 800 * 2**20
"""Bytes that NCCL takes besides where processes talk. Assumed."""

SAFETY = 0.01
"""Share of a GPU's memory that a plan leaves free."""

FRAGMENTS = {"bf16": 0.005, "nf4": 0.03, "fp8": 0.015, "full": 0.03}
"""Reserved beyond allocated memory, as a share of it, by what is trained over."""

PRODUCTS = 0.71
"""Share of a chip's dense peak that large products reach once it is at its power limit."""

ATTENTION = 0.355
"""Share of the dense peak that attention's model FLOPs are done at."""

TRAFFIC = 0.55
"""Share of the memory bandwidth that elementwise kernels reach."""

LAUNCH = 3e-3
"""Seconds in which the host launches a layer's kernels, forward and backward: a floor."""

LINKS = 0.75
"""Share of a link's rate that collectives reach. Assumed."""

EXPOSED = 0.2
"""Share of communication that computation does not hide. Assumed."""

HOST_ADAM = 1.0e9
"""Parameters that a node's processors update in a second, all together. Assumed."""


@dataclass(frozen=True)
class Rates:
    """Bytes per second of reading, writing and moving models, and what else is timed by them."""

    disk_read: float = 2e9
    disk_write: float = 1e9
    hub_download: float = 200e6
    hub_upload: float = 100e6
    merge: float = 0.3e9
    """Bytes of the merged model that are made in a second, on a CPU."""
    start: float = 45.0
    """Seconds from a pod's start until it reads weights: imports, processes, kernels."""
    generation_steps: float = 25.0
    """Tokens of one sequence that evaluation generates in a second."""


RATES = Rates()
"""Assumed, but for `start`, which CPU runs took."""
