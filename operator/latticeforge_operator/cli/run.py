"""`latticeforge run`: one file on this machine, from start to a published model.

The stack runs through the same API, operator and trainer as on a cluster; this command only starts
them, applies the file, shows what happens, and stops everything in order.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import time
from contextlib import suppress
from pathlib import Path

from rich.console import Console, Group

from latticeforge_operator.api.status import Phase
from latticeforge_operator.cli import machine, provision
from latticeforge_operator.cli.access import Access
from latticeforge_operator.cli.display import Display, open_console, open_display
from latticeforge_operator.cli.errors import CommandError
from latticeforge_operator.cli.follow import read_stack
from latticeforge_operator.cli.local import LocalCluster, apply_all, local_cluster
from latticeforge_operator.cli.outcome import EXIT_INTERRUPTED, exit_code, tell_end
from latticeforge_operator.cli.stackfile import StackFile, load_stack
from latticeforge_operator.cli.stackview import StackView

REFRESH_SECONDS = 0.25
SUSPEND_SECONDS = 120
"""How long a checkpoint may take after Ctrl-C before everything is stopped without it."""


def run_stack(path: Path, workdir: Path, namespace: str | None) -> int:
    """Run the stack in a file; returns the exit code.

    Args:
        path: The YAML file.
        workdir: The folder that is the stack's storage volume.
        namespace: Overrules the namespace in the file.

    Raises:
        CommandError: The file is not valid, its token is not set, or the folder is in use.
    """
    file = load_stack(path, namespace)
    _require_token(file)
    folder = workdir.resolve()
    state = folder / ".latticeforge"
    state.mkdir(parents=True, exist_ok=True)
    run = _Run(file, folder, open_console())
    code = asyncio.run(run.main(state))
    if code == EXIT_INTERRUPTED:
        again = shlex.join(["latticeforge", "run", str(path), "--workdir", str(workdir)])
        run.console.print(f"To continue: {again}", highlight=False, soft_wrap=True)
    return code


def _require_token(file: StackFile) -> None:
    key = provision.token_key(file.training)
    if key is not None and not os.environ.get("HF_TOKEN"):
        raise CommandError(
            f"spec.publish.tokenSecret names the Secret {key[0]}, which is made from the "
            "environment variable HF_TOKEN, and that is not set; export HF_TOKEN=hf_… first"
        )


class _Run:
    """One run of one file.

    Args:
        file: What to run.
        folder: The storage volume.
        console: Where to show it.
    """

    def __init__(self, file: StackFile, folder: Path, console: Console) -> None:
        self._file, self._folder, self.console = file, folder, console
        self._path, self._manifest = provision.stack(file.manifest)
        self._interrupts = 0
        self._interrupted = asyncio.Event()
        self._local: LocalCluster | None = None

    async def main(self, state: Path) -> int:
        """Start everything, follow the stack to its end, stop everything."""
        loop = asyncio.get_running_loop()
        main = asyncio.current_task(loop)
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._interrupt, main)
        try:
            return await self._main(state)
        except asyncio.CancelledError:
            self.console.print("Stopped at once; what was not checkpointed is lost.")
            return EXIT_INTERRUPTED

    async def _main(self, state: Path) -> int:
        with open_display(self.console) as display:
            display.tell(f"starting a cluster on this machine, in {state}")
            async with local_cluster(
                state, self._file.training.namespace, display.tell
            ) as self._local:
                await self._apply(self._local.access)
                display.tell(f"for kubectl: export KUBECONFIG={self._local.kubeconfig}")
                view = await self._follow(self._local, display)
                # Read before the cluster, and the logs with it, are gone.
                end = Group(display.closing(view), await tell_end(self._local.access, view))
        self.console.print(end, crop=False)
        return EXIT_INTERRUPTED if self._interrupts and not _ended(view) else exit_code(view)

    def _interrupt(self, main: asyncio.Task[object] | None) -> None:
        self._interrupts += 1
        self._interrupted.set()
        if self._interrupts > 1 and main is not None:
            if self._local is not None:
                self._local.at_once = True
            main.cancel()

    async def _apply(self, access: Access) -> None:
        name = self._file.training.spec.compute.pool or machine.POOL_NAME
        pool = machine.local_pool(machine.gpu_names(), machine.host_memory_bytes(), name)
        await apply_all(access, provision.surroundings(self._file, self._folder, pool, os.environ))
        await access.apply(self._path, self._manifest)

    async def _follow(self, local: LocalCluster, display: Display) -> StackView:
        """Show the stack until it ends, or until it is suspended after an interrupt."""
        deadline: float | None = None
        while True:
            view = await read_stack(local.access, self._path)
            display.update(view)
            if view.ended or (deadline is not None and time.monotonic() > deadline):
                return view
            if local.operator.gave_up:
                raise CommandError(
                    f"the operator cannot run; its last words: {local.operator.tail()}"
                )
            if self._interrupts and deadline is None:
                deadline = time.monotonic() + SUSPEND_SECONDS
                display.tell("checkpointing; press Ctrl-C again to stop at once")
                await local.access.apply(self._path, provision.suspended(self._manifest))
            await self._pause(awake=deadline is not None)

    async def _pause(self, *, awake: bool) -> None:
        """Wait for the next look; an interrupt ends the wait."""
        if awake:
            await asyncio.sleep(REFRESH_SECONDS)
            return
        with suppress(TimeoutError):
            await asyncio.wait_for(self._interrupted.wait(), REFRESH_SECONDS)


def _ended(view: StackView) -> bool:
    """Whether the stack ended by itself, although it was asked to stop."""
    return view.ended and view.status.phase is not Phase.SUSPENDED
