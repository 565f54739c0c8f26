"""How workers' ends become the launcher's."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from latticeforge_trainer.contract import Method, Strategy, TrainConfig, TrainPayload, TrainRuntime
from latticeforge_trainer.errors import Interrupted, NumericalError, UserError
from latticeforge_trainer.training import launch


@dataclass
class Failure:
    """As torchrun describes a failed worker."""

    exitcode: int
    timestamp: int = 0
    message: str = "why"
    local_rank: int = 0


def test_the_worker_that_says_why_speaks_for_all() -> None:
    failures: Any = {0: Failure(1, 10, "gloo: connection closed"), 1: Failure(83, 12, "loss nan")}

    error = launch.step_error(failures)

    assert isinstance(error, NumericalError)
    assert str(error) == "loss nan"


def test_the_first_of_several_speaks() -> None:
    failures: Any = {0: Failure(81, 12, "second"), 1: Failure(80, 10, "first")}

    error = launch.step_error(failures)

    assert isinstance(error, Interrupted)
    assert str(error) == "first"


def test_an_unknown_end_is_no_step_error() -> None:
    failures: Any = {0: Failure(-9, message="Signal 9 (SIGKILL)")}

    error = launch.step_error(failures)

    assert isinstance(error, RuntimeError)
    assert "-9" in str(error)


def test_a_worker_leaves_its_message_for_the_launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))

    with pytest.raises(UserError), launch.reporting_to_launcher():
        raise UserError("no such model")

    document = json.loads((tmp_path / "error.json").read_text())
    assert document["message"] == "no such model"


def test_only_a_launcher_starts_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not launch.needs_workers(Strategy())
    assert launch.needs_workers(Strategy(processes=2))
    assert launch.needs_workers(Strategy(nodes=2))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert not launch.needs_workers(Strategy(processes=2))


def config(**strategy: int) -> TrainConfig:
    return TrainConfig(
        training="a/b",
        digest="0" * 64,
        payload=TrainPayload(
            method=Method.FULL, learning_rate=1, sequence_length=1, global_batch_tokens=1
        ),
        runtime=TrainRuntime(base_path="./b", data="0" * 64, strategy=Strategy(**strategy)),
    )


def test_nodes_meet_where_the_job_says(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="MASTER_ADDR"):
        launch.launch_config(config(nodes=2))
    monkeypatch.setenv("MASTER_ADDR", "train-0.train")
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "1")

    made = launch.launch_config(config(nodes=2, processes=8))

    assert made.rdzv_endpoint == "train-0.train:29500"
    assert made.rdzv_configs["rank"] == 1
    assert (made.min_nodes, made.max_nodes, made.nproc_per_node) == (2, 2, 8)
    assert made.max_restarts == 0
