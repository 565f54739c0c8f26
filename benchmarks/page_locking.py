"""How long host memory takes to be page-locked, and kernels cannot be launched meanwhile.

    python -m benchmarks.page_locking

Once as torch does it by default, once as the trainer has it set (`training.process.ALLOCATION`). A
thread launches small kernels all the time; what counts is the longest time between two launches.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from itertools import pairwise

from latticeforge_trainer.training.process import ALLOCATION

MIB = 2**20
SIZES = [256 * MIB, 1024 * MIB, 2048 * MIB]
SETTING = "PYTORCH_ALLOC_CONF"


def main() -> None:
    """Measure both ways, each in a process of its own: torch reads the setting once."""
    if "--one" in sys.argv:
        measure()
        return
    for name, setting in (("torch's default", ""), ("as the trainer", ALLOCATION)):
        print(name, flush=True)
        environment = os.environ | {SETTING: setting}
        command = [sys.executable, "-m", "benchmarks.page_locking", "--one"]
        subprocess.run(command, check=True, env=environment)


def measure() -> None:
    """Lock memory of each size beside a thread that launches kernels."""
    import torch  # noqa: PLC0415  (after the setting)

    done, launches = threading.Event(), [time.monotonic()]
    numbers = torch.randn(1024, 1024, device="cuda")

    def launch() -> None:
        while not done.is_set():
            for _ in range(20):
                numbers.mul_(1.0)
            launches.append(time.monotonic())
            torch.cuda.synchronize()

    thread = threading.Thread(target=launch)
    thread.start()
    while len(launches) < 1000:  # compiled, and at its pace
        time.sleep(0.01)
    held = []
    for size in SIZES:
        started = time.monotonic()
        held.append(torch.empty(size, dtype=torch.uint8, pin_memory=True))
        ended = time.monotonic()
        seen = len(launches)
        while len(launches) < seen + 2:  # the gap may last until here
            time.sleep(0.001)
        during = [at for at in launches if at >= started - 0.01]
        longest = max(after - before for before, after in pairwise(during))
        print(f"{size // MIB:6} MiB {ended - started:.3f} s, none launched for {longest:.3f} s")
    done.set()
    thread.join()


if __name__ == "__main__":
    main()
