"""Training without DeepSpeed: in one process and in several, stopped and gone on with."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.training import StepProcess, losses, run, train_config, write_data

from latticeforge_trainer.artifacts import Store
from latticeforge_trainer.contract import ExitCode, Method, TrainConfig

pytestmark = pytest.mark.slow


def test_deepspeed_is_not_imported(tmp_path: Path, tiny_model: Path) -> None:
    store = Store(tmp_path)
    config = train_config(store, tiny_model, method=Method.LORA, strategy={"precision": "bf16"})
    path = tmp_path / "step.json"
    path.write_text(config.model_dump_json(by_alias=True))
    code = (
        "import sys; sys.argv = sys.argv[1:]\n"
        "from latticeforge_trainer.__main__ import main\n"
        "try: main()\n"
        "finally: print('deepspeed' in sys.modules)\n"
    )
    command = [sys.executable, "-c", code, "trainer", "train", "--config", str(path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    ended = subprocess.run(
        [*command, "--store", str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )

    assert ended.returncode == ExitCode.DONE, ended.stderr
    assert ended.stdout == "False\n"


@pytest.mark.parametrize("method", [Method.FULL, Method.LORA])
def test_two_processes_train_as_one_and_one_goes_on_with_it(
    method: Method, tmp_path: Path, tiny_model: Path
) -> None:
    store = Store(tmp_path)
    data = write_data(store, sequences=47)  # neither steps nor processes divide it
    options: dict[str, Any] = {"method": method, "data": data, "learning_rate": 3e-3}
    alone = train_config(store, tiny_model, strategy={"precision": "bf16"}, **options)
    run(alone, store)
    cut = {"precision": "bf16", "processes": 2}
    together = train_config(store, tiny_model, strategy=cut, **options)

    first = StepProcess(together, store)
    first.wait_for_step(2)
    first.signal(signal.SIGTERM)

    assert first.wait() == ExitCode.INTERRUPTED, first.log
    (saved,) = (store.work(together.digest) / "checkpoints").glob("step-*")
    again: TrainConfig = alone.model_copy(update={"digest": together.digest})
    log = run(again, store)
    assert "step  1/12" not in log
    assert f"step {int(saved.name.removeprefix('step-')) + 1:2}/12" in log or "12" in saved.name
    assert losses(store, together.digest) == pytest.approx(losses(store, alone.digest), rel=2e-3)


def test_when_one_process_cannot_write_all_end_with_its_reason(
    tmp_path: Path, tiny_model: Path
) -> None:
    store = Store(tmp_path)
    data = write_data(store, sequences=120)
    config = train_config(
        store,
        tiny_model,
        data=data,
        strategy={"processes": 2},
        runtime={"checkpoint_every_steps": 2},
    )
    limited = StepProcess(config, store, file_size=100_000)

    assert limited.wait() == ExitCode.USER_ERROR, limited.log

    assert "no space left for a checkpoint" in limited.log
    assert "onnection" not in limited.log  # nobody lost the others while they still spoke
    run(config, store)
    assert len(losses(store, config.digest)) == 30
