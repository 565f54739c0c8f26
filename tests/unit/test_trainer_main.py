"""`python -m latticeforge_trainer`: configs, exit codes, and the last report."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from latticeforge_trainer import __main__ as entry
from latticeforge_trainer.artifacts import Store
from latticeforge_trainer.contract import ExitCode, MergeResult, Progress, StepKind, StepState
from latticeforge_trainer.errors import Interrupted, NetworkError, OutOfMemory, UserError
from latticeforge_trainer.progress import Reporter

CONFIG: dict[str, Any] = {
    "step": "merge",
    "training": "default/t",
    "digest": "d" * 64,
    "runtime": {"basePath": "./base", "adapter": "e" * 64},
}
RESULT = MergeResult(bytes=3, max_logit_difference=0.1, top1_agreement=1)


class Sink:
    def __init__(self) -> None:
        self.sent: list[Progress] = []

    def send(self, progress: Progress) -> None:
        self.sent.append(progress)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "step.json"
    path.write_text(json.dumps(CONFIG))
    return path


def step_that(monkeypatch: pytest.MonkeyPatch, outcome: object) -> None:
    """Put a step in place of the real one, which returns or raises `outcome`."""

    def run(config: Any, store: Store, reporter: Reporter) -> Any:
        if callable(outcome):
            return outcome()
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    monkeypatch.setattr(importlib, "import_module", lambda _: SimpleNamespace(run=run))


def ran(config: Path, sink: Sink, store: Path) -> ExitCode:
    parsed = entry.load_config(config, StepKind.MERGE)
    reporter = Reporter(StepKind.MERGE, parsed.digest, sink, interval=0)
    return entry.run_step(parsed, Store(store), reporter)


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (UserError("bad row"), StepState.FAILED),
        (OutOfMemory("80 GiB are not enough"), StepState.FAILED),
        (NetworkError("no Hub"), StepState.FAILED),
        (Interrupted("asked to stop"), StepState.INTERRUPTED),
    ],
)
def test_expected_errors_become_exit_codes_and_reports(
    config: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: UserError,
    state: StepState,
) -> None:
    step_that(monkeypatch, error)
    sink = Sink()
    assert ran(config, sink, config.parent) == error.exit_code
    (last,) = sink.sent
    assert (last.state, last.message, last.exit_code) == (state, str(error), error.exit_code)


def test_done_is_reported_with_the_result(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step_that(monkeypatch, (RESULT, True))
    sink = Sink()
    assert ran(config, sink, config.parent) is ExitCode.DONE
    assert (sink.sent[0].result, sink.sent[0].reused) == (RESULT, True)


def test_an_unexpected_error_is_reported_and_raised(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step_that(monkeypatch, ZeroDivisionError("x" * 5000))
    sink = Sink()
    with pytest.raises(ZeroDivisionError):
        ran(config, sink, config.parent)
    assert sink.sent[0].state is StepState.FAILED
    assert sink.sent[0].exit_code == 1
    assert len(sink.sent[0].message) == 1000


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "No such file"),
        ("{", "Invalid JSON"),
        (json.dumps({**CONFIG, "digest": "x"}), "merge.digest"),
        (json.dumps({**CONFIG, "more": 1}), "merge.more: Extra inputs are not permitted"),
        (
            json.dumps({**CONFIG, "step": "publish"}),
            "publish.payload",
        ),
    ],
)
def test_a_wrong_config_ends_with_the_users_code(
    tmp_path: Path, content: str | None, sentence: str
) -> None:
    path = tmp_path / "step.json"
    if content is not None:
        path.write_text(content)
    result = CliRunner().invoke(entry.main, ["merge", "--config", str(path)])
    assert result.exit_code == ExitCode.USER_ERROR
    assert sentence in result.output
    assert len(result.output.splitlines()) == 1


def test_a_config_of_another_step_is_refused(config: Path) -> None:
    with pytest.raises(UserError, match="is for step merge, not train"):
        entry.load_config(config, StepKind.TRAIN)


def test_sigterm_interrupts(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step_that(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    try:
        result = CliRunner().invoke(
            entry.main, ["merge", "--config", str(config), "--store", str(config.parent)]
        )
    finally:
        signal.signal(signal.SIGTERM, before)
    assert result.exit_code == ExitCode.INTERRUPTED


def test_a_step_that_tells_its_end_is_not_stopped_any_more(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step_that(monkeypatch, OutOfMemory("80 GiB are not enough"))
    sink = Sink()
    monkeypatch.setattr(sink, "send", lambda _: os.kill(os.getpid(), signal.SIGTERM), raising=True)
    before = signal.signal(signal.SIGTERM, entry._interrupt)
    try:
        assert ran(config, sink, config.parent) is ExitCode.OUT_OF_MEMORY
        assert signal.getsignal(signal.SIGTERM) is entry._interrupt
    finally:
        signal.signal(signal.SIGTERM, before)


STOPPED_AT_ITS_VERY_END = """
import os
from latticeforge_trainer.__main__ import main

class Late:
    def __del__(self, kill=os.kill, own=os.getpid(), number={number}):
        kill(own, number)

late = Late()  # the interpreter drops it when handlers are no more
main()
"""


def test_sigterm_while_the_interpreter_goes_does_not_change_the_code(tmp_path: Path) -> None:
    path = tmp_path / "step.json"
    path.write_text(json.dumps({**CONFIG, "runtime": {"basePath": "./no", "adapter": "e" * 64}}))
    script = STOPPED_AT_ITS_VERY_END.format(number=int(signal.SIGTERM))
    command = [sys.executable, "-c", script, "merge", "--config", str(path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(
        [*command, "--store", str(tmp_path)], env=environment, capture_output=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert ended.returncode == ExitCode.USER_ERROR, ended.stderr.decode()
