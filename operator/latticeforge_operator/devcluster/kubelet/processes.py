"""One container as a local process: started under a shim, ended, and swept up after a crash.

The container runs in its own session below `shim.py`, connected to this process by a socket. When
this process dies in whatever way, the socket closes and the shim kills the container. Only if the
shim was killed too is there something left for `sweep`, which knows the processes by pid and start
time from the records that `ContainerProcess.start` leaves beside each log.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

_SHIM = Path(__file__).with_name("shim.py")
_PSUTIL = Path(psutil.__file__).parent.parent
RECORD = "process.json"
# psutil derives start times from ticks of the kernel's clock.
_SAME_START_SECONDS = 0.1


class StartError(Exception):
    """The container's command could not be started."""

    exit_code = 128


@dataclass(frozen=True)
class Exit:
    """How a container ended: exit code as a shell shows it, and the signal if one killed it."""

    code: int
    signal: int | None = None


@dataclass(frozen=True)
class Launch:
    """What to run and where.

    Attributes:
        command: program and arguments; the program is looked up on the container's own PATH.
        environment: the container's whole environment.
        workdir: working directory.
        log: file that output is appended to; `process.json` is written beside it.
    """

    command: Sequence[str]
    environment: Mapping[str, str]
    workdir: Path
    log: Path


@dataclass(frozen=True)
class _Report:
    """What the shim says: that the container has started, could not be started, or has ended."""

    pid: int | None = None
    error: str = ""
    code: int | None = None
    signal: int | None = None


class ContainerProcess:
    """A running container; made by `start`."""

    def __init__(
        self, shim: subprocess.Popen[bytes], control: asyncio.StreamWriter, pid: int, record: Path
    ) -> None:
        self.pid = pid
        self._shim = shim
        self._control = control
        self._record = record
        self._exit: asyncio.Task[Exit] | None = None

    @classmethod
    async def start(cls, launch: Launch) -> ContainerProcess:
        """Starts a container.

        Raises:
            StartError: its command or working directory does not exist, or cannot be used.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                shim = _spawn(launch, theirs.fileno())
            except OSError as error:
                ours.close()
                raise StartError(f"{error.filename}: {error.strerror}") from error
        reader, writer = await asyncio.open_connection(sock=ours)
        report = await _read(reader)
        if report.pid is None:
            await _close(writer)
            shim.wait()
            raise StartError(report.error or "the container's shim died before it started")
        process = cls(shim, writer, report.pid, launch.log.with_name(RECORD))
        process._write_record()
        process._exit = asyncio.create_task(process._follow(reader))
        return process

    def _write_record(self) -> None:
        pids = (self._shim.pid, self.pid)
        started = [found for pid in pids if (found := _identity(pid))]
        self._record.write_text(json.dumps(started))

    async def _follow(self, reader: asyncio.StreamReader) -> Exit:
        report = await _read(reader)
        if report.code is None:
            # The shim was killed; nobody else is left to end what it ran.
            _kill_identified(json.loads(self._record.read_text()))
        await _close(self._control)
        self._shim.wait()
        self._record.unlink()
        if report.code is None:
            return Exit(128 + signal.SIGKILL, signal.SIGKILL)
        return Exit(report.code, report.signal)

    async def wait(self) -> Exit:
        """Returns how the container ended, once nothing of it is alive any more."""
        if self._exit is None:
            raise StartError("the container was never started; use ContainerProcess.start")
        return await asyncio.shield(self._exit)

    def terminate(self) -> None:
        """Sends SIGTERM to the container's process group."""
        self._order(b"T")

    def kill(self) -> None:
        """Kills everything that runs in the container."""
        self._order(b"K")

    def _order(self, order: bytes) -> None:
        if not self._control.is_closing():
            self._control.write(order)


def _spawn(launch: Launch, descriptor: int) -> subprocess.Popen[bytes]:
    shim = [sys.executable, "-I", "-S", str(_SHIM), str(descriptor), str(_PSUTIL)]
    with launch.log.open("ab") as log:
        return subprocess.Popen(
            [*shim, *launch.command],
            env=launch.environment,
            cwd=launch.workdir,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(descriptor,),
            start_new_session=True,
        )


async def _read(reader: asyncio.StreamReader) -> _Report:
    """Reads one report; an empty one stands for a shim that is gone."""
    with suppress(ConnectionError):
        if line := await reader.readline():
            return _Report(**json.loads(line))
    return _Report()


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()


def _identity(pid: int) -> dict[str, float] | None:
    try:
        return {"pid": pid, "started": psutil.Process(pid).create_time()}
    except psutil.NoSuchProcess:
        return None


def _kill_identified(identities: Sequence[Mapping[str, float]]) -> int:
    """Kills recorded processes that still live, with their groups and descendants."""
    killed = 0
    for identity in identities:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(int(identity["pid"]))
            if abs(process.create_time() - identity["started"]) > _SAME_START_SECONDS:
                continue
            killed += _kill_tree(process)
    return killed


def _kill_tree(process: psutil.Process) -> int:
    doomed = [*process.children(recursive=True), process]
    group = os.getpgid(process.pid)
    # A container leads its own group; its descendants may have outlived whoever started them.
    if group == process.pid:
        os.killpg(group, signal.SIGKILL)
    for victim in doomed:
        with suppress(psutil.NoSuchProcess):
            victim.kill()
    return len(doomed)


def sweep(folder: Path) -> int:
    """Kills containers that an earlier devcluster left behind; returns how many processes.

    Args:
        folder: where that devcluster kept its pods.
    """
    records = folder.glob(f"*/containers/*/{RECORD}")
    return sum(_kill_identified(json.loads(record.read_text())) for record in records)
