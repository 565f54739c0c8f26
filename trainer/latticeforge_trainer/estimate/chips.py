"""What a GPU has and can do at most, by the name that its driver or its pool gives it.

Dense bf16 matrix products, from NVIDIA's data sheet of each, which prints twice as much where it
counts sparsity in (H100 SXM: 1,979). Power caps and clocks make it less; no product reaches it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from latticeforge_trainer.estimate.errors import EstimateError

_TERA = 1e12

PEAKS: tuple[tuple[set[str], float], ...] = (
    ({"GB200"}, 2500),
    ({"B200"}, 2250),
    ({"GH200"}, 989),
    ({"H200", "NVL"}, 836),
    ({"H200"}, 989),
    ({"H100", "NVL"}, 835),
    ({"H100", "PCIE"}, 756),
    ({"H100"}, 989),
    ({"A100"}, 312),
    ({"A40"}, 150),
    ({"A30"}, 165),
    ({"A10"}, 125),
    ({"L40S"}, 362),
    ({"L4"}, 121),
)
"""Words of a device's name → TFLOP/s; the first entry whose words are all there holds."""


_PARTS = {"MIG", "GRID"}


def peak_flops(device: str) -> float | None:
    """The dense bf16 peak of a GPU in FLOP/s.

    Args:
        device: Its name, such as `NVIDIA H100 80GB HBM3`.

    Returns:
        None for one that is not known, and for a part of one (MIG, vGPU).
    """
    words = set(re.split(r"[^A-Z0-9]+", device.upper()))
    if words & _PARTS:
        return None
    return next((peak * _TERA for needed, peak in PEAKS if needed <= words), None)


@dataclass(frozen=True)
class Chip:
    """A GPU as a pool offers it; rates are data-sheet figures, in one direction."""

    name: str
    memory_bytes: int
    """All of it, as the driver reports it to `torch.cuda.mem_get_info`."""
    peak_flops: float
    """Dense bf16 products, FLOP/s."""
    fp8_flops: float | None
    """Dense FP8 products, FLOP/s; None: it has none."""
    memory_bandwidth: float
    """Bytes/s."""
    link_bandwidth: float
    """To the other GPUs of its node, bytes/s."""
    host_bandwidth: float
    """To host memory, bytes/s."""
    network_bandwidth: float
    """To GPUs of other nodes, bytes/s: its share of the node's network cards."""


def _gib(size: float) -> int:
    return int(size * 2**30)


CHIPS = {
    chip.name: chip
    for chip in (
        # Memory: what torch says on one (139.8 of 140.4 GiB; 79.1 and 44.4 in its out-of-memory
        # messages). Links: NVLink 4 and 3, PCIe 5 and 4 with 16 lanes. Networks: one 400, 200 or
        # 100 Gb/s card for each GPU, as in DGX H100, DGX A100 and OVX.
        Chip("H200", _gib(139.8), 989e12, 1979e12, 4.8e12, 450e9, 64e9, 50e9),
        Chip("H100", _gib(79.1), 989e12, 1979e12, 3.35e12, 450e9, 64e9, 50e9),
        Chip("A100", _gib(79.1), 312e12, None, 2.04e12, 300e9, 32e9, 25e9),
        Chip("L40S", _gib(44.4), 362e12, 733e12, 0.864e12, 32e9, 32e9, 12.5e9),
    )
}
"""By the name that a GPUPool gives them: SXM modules, the A100 with 80 GB."""


def chip(accelerator: str) -> Chip:
    """A GPU by the name that a pool gives it.

    Raises:
        EstimateError: It is not known.
    """
    if accelerator not in CHIPS:
        raise EstimateError(
            f"accelerator {accelerator} is not known, only {', '.join(CHIPS)}: "
            "its memory and speed cannot be predicted"
        )
    return CHIPS[accelerator]
