"""Run a module as `python -m` would, and end it with SIGTERM when the process that started it ends.

    python -m latticeforge_operator.cli.tethered MODULE [ARGUMENT ...]

The starter holds the other end of standard input; the kernel closes it however the starter dies, so
no operator is left behind by a `kill -9` of `latticeforge run`.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading


def _end_with_starter() -> None:
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_end_with_starter, daemon=True).start()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
