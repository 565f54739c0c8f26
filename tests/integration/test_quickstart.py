"""`latticeforge run` from a file to a published model, with a model small enough for a test.

The same command, operator and trainer as `make quickstart`; only the model is tiny.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import psutil
import pytest

from latticeforge_trainer.domain.datasets import write_dataset

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

STACK = """\
apiVersion: latticeforge.dev/v1alpha1
kind: StackedTraining
metadata: {name: tiny}
spec:
  base: {model: ./models/tiny}
  stages:
  - name: math
    lora: {baseDtype: FP8}
    data: [{source: ./data/math.jsonl}]
    hyperparameters: {epochs: 4, sequenceLength: 256, globalBatchTokens: 256}
  - name: cic
    data: [{source: ./data/math.jsonl}]
    hyperparameters: {sequenceLength: 256, globalBatchTokens: 4096, learningRate: "1e-3"}
    evaluate:
    - {suite: math, maximumDrop: "1", against: Base, samples: 8}
  storage: {claimName: store}
  publish: {repository: ./published/tiny}
"""
SECOND_STAGE = ["cic/train", "cic/merge", "cic/evaluate", "publish"]


class Run:
    """One `latticeforge run` that is not in a terminal, its lines collected as they come."""

    def __init__(self, workdir: Path) -> None:
        command = [sys.executable, "-c", "from latticeforge_operator.cli import main; main()"]
        self.process = subprocess.Popen(
            [*command, "run", str(workdir / "stack.yaml"), "--workdir", str(workdir)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        )
        self.lines: list[str] = []

    @property
    def _stdout(self) -> IO[str]:
        assert self.process.stdout is not None
        return self.process.stdout

    def read_until(self, pattern: str) -> None:
        """Read on until a line matches."""
        for line in self._stdout:
            self.lines.append(line.rstrip())
            if re.search(pattern, line):
                return
        pytest.fail(f"no line matched {pattern!r} in:\n{self.output}")

    def finish(self) -> int:
        """Read to the end; returns the exit code."""
        self.lines += [line.rstrip() for line in self._stdout]
        return self.process.wait(timeout=60)

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    def steps(self, became: str) -> list[str]:
        """The steps of which the run said that they became this, in its order."""
        return re.findall(rf"  (\S+): {became}", self.output)


@pytest.fixture
def workdir(tiny_model: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_model, tmp_path / "models" / "tiny")
    write_dataset("math", 24, 1, "train", tmp_path / "data" / "math.jsonl")
    (tmp_path / "stack.yaml").write_text(STACK)
    return tmp_path


@pytest.fixture
def start(workdir: Path) -> Iterator[Callable[[], Run]]:
    runs: list[Run] = []

    def start() -> Run:
        runs.append(Run(workdir))
        return runs[-1]

    yield start
    for run in runs:
        with run.process as process:
            process.kill()


def processes_below(folder: Path) -> list[str]:
    """Command lines that mention a folder: pods and operators of a run in it."""
    found = []
    for process in psutil.process_iter(["cmdline", "pid"]):
        line = " ".join(process.info["cmdline"] or ())
        if str(folder) in line and process.pid != os.getpid():
            found.append(line)
    return found


def test_interrupted_continued_reused_edited(workdir: Path, start: Callable[[], Run]) -> None:
    first = start()
    first.read_until(r"math/train: [2-9]\d %")
    first.process.send_signal(signal.SIGINT)
    assert first.finish() == 130, first.output
    assert "tiny is Suspended" in first.output
    assert f"latticeforge run {workdir}/stack.yaml --workdir {workdir}" in first.lines[-1]
    assert processes_below(workdir) == []
    (losses,) = (workdir / ".latticeforge" / "work").glob("*/losses.jsonl")
    trained = len(losses.read_text().splitlines())

    second = start()
    assert second.finish() == 0, second.output
    assert second.steps("reused") == ["math/prepare", "cic/prepare"]
    assert second.steps("done") == ["math/train", "math/merge", *SECOND_STAGE]
    (losses,) = (
        path for path in (workdir / ".latticeforge" / "artifacts").glob("*/losses.jsonl")
        if len(path.read_text().splitlines()) > trained
    )  # fmt: skip
    steps = [json.loads(line)["step"] for line in losses.read_text().splitlines()]
    assert steps == sorted(set(steps)), "the second run went on where the first one stopped"
    published = workdir / "published" / "tiny"
    assert f"published: {published}" in second.output
    assert (published / "README.md").exists()
    assert list(published.glob("*.safetensors"))
    assert re.search(r"^math +8  ", second.output, re.MULTILINE)

    again = start()
    assert again.finish() == 0, again.output
    assert again.steps("done") == []
    assert "8 of 8 steps reused" in again.output

    stack = workdir / "stack.yaml"
    stack.write_text(STACK.replace('learningRate: "1e-3"', 'learningRate: "5e-4"'))
    edited = start()
    assert edited.finish() == 0, edited.output
    assert edited.steps("done") == SECOND_STAGE
    assert edited.steps("reused") == ["math/prepare", "cic/prepare", "math/train", "math/merge"]


def test_wrong_data_ends_with_the_trainers_sentence(
    workdir: Path, start: Callable[[], Run]
) -> None:
    (workdir / "data" / "math.jsonl").write_text('{"question": "1 + 1"}\n')
    run = start()
    assert run.finish() == 1
    assert "Failed: math/prepare failed: ./data/math.jsonl" in run.output
    assert "The last lines of math/prepare:" in run.output
    assert run.lines[-1].startswith("Correct the cause and run the same command again")


def test_two_runs_in_one_folder_are_refused(start: Callable[[], Run]) -> None:
    first = start()
    first.read_until("math/prepare: started")
    second = start()
    assert second.finish() == 1
    assert "another `latticeforge run` is using" in second.output


def test_nothing_outlives_a_killed_run(workdir: Path, start: Callable[[], Run]) -> None:
    run = start()
    run.read_until("math/prepare: started")
    run.process.kill()
    run.process.wait()
    _, left = psutil.wait_procs(
        [p for p in psutil.process_iter() if str(workdir) in " ".join(_command(p))], timeout=60
    )
    assert [" ".join(_command(process)) for process in left] == []


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
