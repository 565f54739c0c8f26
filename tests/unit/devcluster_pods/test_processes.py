"""Containers as processes: how they start, how they end, and that nothing of them stays behind."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from tests.unit.devcluster_pods.polling import alive, text_of, until

from latticeforge_operator.devcluster.kubelet import processes
from latticeforge_operator.devcluster.kubelet.processes import (
    RECORD,
    ContainerProcess,
    Exit,
    Launch,
    StartError,
    sweep,
)

ENVIRONMENT = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
# A process of its own session, whose parent has gone: what a crashed launcher leaves behind.
DETACHED = "setsid sh -c 'echo $$ > pid; exec sleep 60' & while [ ! -s pid ]; do :; done"


def launch(folder: Path, *command: str, workdir: Path | None = None) -> Launch:
    return Launch(command, ENVIRONMENT, workdir or folder, folder / "0.log")


async def run(folder: Path, script: str) -> Exit:
    process = await ContainerProcess.start(launch(folder, "sh", "-c", script))
    async with asyncio.timeout(60):
        return await process.wait()


@pytest.mark.parametrize(
    ("script", "ended"),
    [
        ("exit 0", Exit(0)),
        ("exit 42", Exit(42)),
        ("kill -9 $$", Exit(137, 9)),
        ("kill -15 $$", Exit(143, 15)),
    ],
)
async def test_exit_codes(tmp_path: Path, script: str, ended: Exit) -> None:
    assert await run(tmp_path, script) == ended


async def test_output_goes_to_the_log_and_only_the_given_environment_is_seen(
    tmp_path: Path,
) -> None:
    await run(tmp_path, "echo out; echo err >&2; env; pwd")
    lines = (tmp_path / "0.log").read_text().splitlines()
    assert lines[:2] == ["out", "err"]
    assert {line.partition("=")[0] for line in lines[2:-1]} <= {
        "PATH",
        "LANG",
        "PWD",
        "OLDPWD",
        "_",
        "SHLVL",
    }
    assert lines[-1] == str(tmp_path)


@pytest.fixture
def background_job() -> Iterator[None]:
    """This process ignores what a shell has its background jobs ignore."""
    numbers = (signal.SIGINT, signal.SIGQUIT)
    handlers = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    yield
    for number, handler in zip(numbers, handlers, strict=True):
        signal.signal(number, handler)


@pytest.mark.usefixtures("background_job")
async def test_ignored_signals_are_not_ignored_in_a_container(tmp_path: Path) -> None:
    ignored = (
        "import signal; print([s for s in signal.Signals if signal.getsignal(s) == signal.SIG_IGN])"
    )
    # Python itself ignores these two as it starts.
    script = f"{ignored[:-2]} and s not in (signal.SIGPIPE, signal.SIGXFSZ)])"
    process = await ContainerProcess.start(launch(tmp_path, sys.executable, "-c", script))
    await process.wait()
    assert (tmp_path / "0.log").read_text() == "[]\n"
    assert await run(tmp_path, "kill -PIPE $$") == Exit(128 + signal.SIGPIPE, signal.SIGPIPE)


@pytest.mark.parametrize("command", ["no-such-program", "/no/such/program", "/"])
async def test_what_cannot_be_started_is_said(tmp_path: Path, command: str) -> None:
    with pytest.raises(StartError, match=f"^{command}: "):
        await ContainerProcess.start(launch(tmp_path, command))


async def test_a_missing_working_directory_is_said(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="nowhere: No such file"):
        await ContainerProcess.start(launch(tmp_path, "true", workdir=tmp_path / "nowhere"))


async def test_terminate_reaches_the_whole_group_and_leaves_it_time(tmp_path: Path) -> None:
    loop = "echo > ready; while :; do sleep 0.01; done"
    child = f"trap 'sleep 0.1; echo saved > saved; exit' TERM; {loop}"
    process = await ContainerProcess.start(launch(tmp_path, "sh", "-c", f"({child}) & wait"))
    await until((tmp_path / "ready").exists)
    async with asyncio.timeout(60):
        process.terminate()
        assert await process.wait() == Exit(143, 15)
    assert (tmp_path / "saved").exists()


async def test_kill_ends_what_ignores_terminate(tmp_path: Path) -> None:
    script = "trap '' TERM; echo > ready; while :; do sleep 0.01; done"
    process = await ContainerProcess.start(launch(tmp_path, "sh", "-c", script))
    await until((tmp_path / "ready").exists)
    async with asyncio.timeout(60):
        process.terminate()
        process.kill()
        assert await process.wait() == Exit(137, 9)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets the shim adopt orphans")
async def test_the_end_of_the_first_process_is_the_end_of_all(tmp_path: Path) -> None:
    assert await run(tmp_path, f"{DETACHED}; exit 3") == Exit(3)
    assert not alive(int((tmp_path / "pid").read_text()))


async def test_killing_the_shim_ends_the_container(tmp_path: Path) -> None:
    process = await ContainerProcess.start(launch(tmp_path, "sleep", "60"))
    os.kill(psutil.Process(process.pid).ppid(), signal.SIGKILL)
    async with asyncio.timeout(60):
        assert await process.wait() == Exit(137, 9)
    await until(lambda: not alive(process.pid))


async def test_a_kubelet_that_dies_without_having_heard_of_the_start_takes_it_along(
    tmp_path: Path,
) -> None:
    ours, theirs = socket.socketpair()
    command = ("sh", "-c", "echo $$ > pid; exec sleep 60")
    with theirs:
        shim = processes._spawn(launch(tmp_path, *command), theirs.fileno())
    pid = int(await until(lambda: text_of(tmp_path / "pid")))
    await until(lambda: bool(select.select([ours], (), (), 0)[0]))
    ours.close()
    await until(lambda: not alive(pid))
    shim.wait(60)


async def test_a_sweep_ends_what_was_recorded_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "uid" / "containers" / "main"
    folder.mkdir(parents=True)
    process = await ContainerProcess.start(launch(folder, "sh", "-c", f"{DETACHED}; wait"))
    grandchild = int(await until(lambda: text_of(folder / "pid")))
    record = folder / RECORD
    identities = json.loads(record.read_text())
    assert {process.pid} < {identity["pid"] for identity in identities}

    others = [{**identity, "started": identity["started"] - 1} for identity in identities]
    record.write_text(json.dumps(others))
    assert sweep(tmp_path) == 0
    assert alive(process.pid)

    record.write_text(json.dumps(identities))
    assert sweep(tmp_path) >= 3
    await until(lambda: not alive(process.pid))
    await until(lambda: not alive(grandchild))
    await process.wait()
