"""What a GPU can do at most, by the name that its driver gives it.

Dense bf16 matrix products, from NVIDIA's data sheet of each, which prints twice as much where it
counts sparsity in (H100 SXM: 1,979). Power caps and clocks make it less; no product reaches it.
"""

from __future__ import annotations

import re

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
