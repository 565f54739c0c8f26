"""The GPUPool that stands for this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections import Counter
from typing import Any

from latticeforge_operator.api import API_VERSION
from latticeforge_operator.api.pool import Accelerator

POOL_NAME = "local"

_QUERY = ("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
_QUERY_SECONDS = 20


def gpu_names() -> list[str]:
    """Model names of this machine's NVIDIA GPUs, in order; empty when it has none."""
    if shutil.which(_QUERY[0]) is None:
        return []
    answer = subprocess.run(
        _QUERY, capture_output=True, text=True, timeout=_QUERY_SECONDS, check=False
    )
    return answer.stdout.splitlines() if answer.returncode == 0 else []


def host_memory_bytes() -> int:
    """This machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def local_pool(gpus: list[str], memory_bytes: int, name: str = POOL_NAME) -> dict[str, Any]:
    """The pool of a machine with these GPUs; CPU when it has none that is known.

    Args:
        gpus: Model names, as nvidia-smi gives them.
        memory_bytes: The machine's memory.
        name: What the stack's file calls it.
    """
    kinds = Counter(kind for gpu in gpus if (kind := _accelerator(gpu)) is not None)
    accelerator, count = kinds.most_common(1)[0] if kinds else (Accelerator.CPU, 0)
    return {
        "apiVersion": API_VERSION,
        "kind": "GPUPool",
        "metadata": {"name": name},
        "spec": {
            "accelerator": accelerator.value,
            "gpusPerNode": count,
            "pricePerGPUHour": "0",
            "hostMemory": f"{memory_bytes >> 20}Mi",
        },
    }


def _accelerator(name: str) -> Accelerator | None:
    words = name.replace("-", " ").split()
    return next((kind for kind in Accelerator if kind.value in words), None)
