"""The operator beside a one-machine cluster: a child process that is started again when it dies."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

STOP_SECONDS = 15
_MANY_DEATHS = 5
_TAIL_LINES = 20
_SOON_SECONDS = 10.0
PROGRESS_SECONDS = "1"
"""How often a step reports; the cluster is on this machine, so often."""


class OperatorProcess:
    """Keeps one operator running.

    Args:
        kubeconfig: Which cluster it serves.
        namespace: Which namespace it serves.
        log: Where its output goes.
        tell: Called with a sentence when it had to be started again.
    """

    def __init__(
        self, kubeconfig: Path, namespace: str, log: Path, tell: Callable[[str], None]
    ) -> None:
        self._kubeconfig, self._namespace, self._log, self._tell = kubeconfig, namespace, log, tell
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """Process ID, while it runs."""
        return self._process.pid if self._process else None

    @property
    def gave_up(self) -> bool:
        """Whether it died so often that it is not started again."""
        return self._keeper is not None and self._keeper.done()

    def tail(self) -> str:
        """The end of its log."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-_TAIL_LINES:])

    async def start(self) -> None:
        """Start it; returns before it is ready."""
        await self._spawn()
        self._keeper = asyncio.create_task(self._keep())

    async def aclose(self, *, at_once: bool = False) -> None:
        """End it: with SIGTERM and, after a while or at once, with SIGKILL."""
        if self._keeper is not None:
            self._keeper.cancel()
        process, self._process = self._process, None
        if process is None or process.returncode is not None:
            return
        if not at_once:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), STOP_SECONDS)
            except TimeoutError:
                pass  # killed below
            else:
                return
        process.kill()
        await process.wait()

    async def _spawn(self) -> None:
        with self._log.open("ab") as log:
            self._process = await _spawn(self._kubeconfig, self._namespace, log)

    async def _keep(self) -> None:
        deaths = 0
        while self._process is not None:
            started = time.monotonic()
            code = await self._process.wait()
            deaths = deaths + 1 if time.monotonic() - started < _SOON_SECONDS else 1
            if deaths == _MANY_DEATHS:
                return
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            self._tell(f"the operator ended with {how} and was started again; see {self._log}")
            await self._spawn()


async def _spawn(kubeconfig: Path, namespace: str, log: IO[bytes]) -> asyncio.subprocess.Process:
    """Start an operator whose standard input is tied to this process.

    It gets a session of its own: Ctrl-C is for the command line, which then stops everything in
    order.
    """
    environment = {
        "LATTICEFORGE_PROGRESS_INTERVAL": PROGRESS_SECONDS,
        **os.environ,
        "KUBECONFIG": str(kubeconfig),
    }
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "latticeforge_operator.cli.tethered",
        "latticeforge_operator.cluster",
        "--namespace",
        namespace,
        stdin=asyncio.subprocess.PIPE,
        stdout=log,
        stderr=log,
        env=environment,
        start_new_session=True,
    )
