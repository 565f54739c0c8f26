"""The operator beside a one-machine cluster: started again when it dies, gone when we are."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest

from latticeforge_operator.cli import operator_process
from latticeforge_operator.cli.operator_process import OperatorProcess

DEADLINE = 60.0


async def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
async def operator(
    tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[OperatorProcess]:
    """A process that waits for its end in place of the operator."""

    async def spawn(*_: object) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec("sleep", "60")

    monkeypatch.setattr(operator_process, "_spawn", spawn)
    operator = OperatorProcess(tmp_path / "kubeconfig", "default", tmp_path / "log", said.append)
    await operator.start()
    yield operator
    await operator.aclose(at_once=True)


async def test_it_is_started_again_when_it_dies(operator: OperatorProcess, said: list[str]) -> None:
    first = operator.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await until(lambda: operator.pid != first)
    assert [line.split(";")[0] for line in said] == [
        "the operator ended with signal 9 and was started again"
    ]
    assert not operator.gave_up


async def test_it_is_given_up_when_it_cannot_run(
    operator: OperatorProcess, said: list[str]
) -> None:
    for deaths in range(1, 6):
        assert operator.pid is not None
        os.kill(operator.pid, signal.SIGKILL)
        await until(lambda: len(said) == deaths or operator.gave_up)  # noqa: B023  (awaited at once)
    await until(lambda: operator.gave_up)
    assert len(said) == 4


async def test_closing_it_is_no_death(operator: OperatorProcess, said: list[str]) -> None:
    assert operator.pid is not None
    process = psutil.Process(operator.pid)
    await operator.aclose()
    assert not process.is_running()
    assert said == []


def test_a_tethered_process_ends_with_its_starter(tmp_path: Path) -> None:
    module = tmp_path / "waits.py"
    module.write_text("import sys, time\nprint(sys.argv, flush=True)\ntime.sleep(60)\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "latticeforge_operator.cli.tethered", "waits", "--flag"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert "'--flag'" in process.stdout.readline()
        process.stdin.close()
        assert process.wait(DEADLINE) == -signal.SIGTERM
