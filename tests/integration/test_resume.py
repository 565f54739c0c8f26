"""Training that is killed, stopped or damaged goes on exactly where it was."""

from __future__ import annotations

import os
import random
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.training import (
    ADAPTER,
    StepProcess,
    losses,
    run,
    train_config,
    write_data,
)

from latticeforge_trainer.artifacts import Store
from latticeforge_trainer.contract import ExitCode, LoRASettings, Method, TrainConfig

pytestmark = pytest.mark.slow

STEPS = 30

TABLES = LoRASettings(rank=4, alpha=8, modules_to_save=["embed_tokens", "lm_head"])

RUNS: list[dict[str, Any]] = [
    {"method": Method.FULL},
    {"method": Method.FULL, "strategy": {"precision": "bf16"}},
    {"method": Method.FULL, "strategy": {"precision": "bf16", "zero_stage": 3}},
    {
        "method": Method.LORA,
        "lora": LoRASettings(rank=4, alpha=8, dropout=0.1),
        "strategy": {"precision": "bf16"},
    },
    {
        "method": Method.LORA,
        "lora": LoRASettings(rank=4, alpha=8, base_dtype="fp8"),
        "strategy": {"precision": "bf16"},
    },
    {"method": Method.LORA, "lora": TABLES, "strategy": {"precision": "bf16"}},
]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def long_run(store: Store, model: Path, **options: Any) -> TrainConfig:
    data = write_data(store, sequences=4 * STEPS)
    runtime = {"checkpoint_every_steps": 4, **options.pop("runtime", {})}
    return train_config(store, model, data=data, runtime=runtime, **options)


def checkpoints(store: Store, config: TrainConfig) -> list[Path]:
    return sorted((store.work(config.digest) / "checkpoints").glob("step-*"))


@pytest.fixture
def undisturbed(tmp_path: Path, tiny_model: Path) -> Any:
    def history(**options: Any) -> list[float]:
        other = Store(tmp_path / "undisturbed")
        config = long_run(other, tiny_model, **options)
        run(config, other)
        return losses(other, config.digest)

    return history


@pytest.mark.parametrize(
    "options",
    RUNS,
    ids=["full-fp32", "full-bf16", "full-zero-3", "lora-dropout", "lora-fp8", "lora-tables"],
)
def test_killed_three_times_every_loss_is_that_of_the_undisturbed_run(
    options: dict[str, Any], store: Store, tiny_model: Path, undisturbed: Any
) -> None:
    config = long_run(store, tiny_model, **options)
    for step in sorted(random.sample(range(1, STEPS - 3), 3)):
        process = StepProcess(config, store)
        process.wait_for_step(step)
        process.signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, process.log

    run(config, store)

    assert losses(store, config.digest) == undisturbed(**options)


def test_sigterm_checkpoints_and_the_next_attempt_goes_on(
    store: Store, tiny_model: Path, undisturbed: Any
) -> None:
    # Through the command itself, as a pod runs it.
    config = long_run(store, tiny_model, runtime={"checkpoint_every_steps": None})
    path = store.root / "step.json"
    path.write_text(config.model_dump_json(by_alias=True))
    command = [sys.executable, "-m", "latticeforge_trainer", "train"]
    command += ["--config", str(path), "--store", str(store.root)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "LATTICEFORGE_PROGRESS_INTERVAL": "0"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        log = ""
        for line in process.stderr:
            log += line
            if "step  3/30" in line:
                process.send_signal(signal.SIGTERM)
    assert process.returncode == ExitCode.INTERRUPTED, log
    stopped = re.search(r"stopped after step (\d+) of 30", log)
    assert stopped, log
    assert [p.name for p in checkpoints(store, config)] == [f"step-{int(stopped[1]):08d}"]

    log = run(config, store)

    assert f"step {int(stopped[1]) + 1:>2}/30" in log
    assert "step  1/30" not in log
    assert losses(store, config.digest) == undisturbed(runtime={"checkpoint_every_steps": None})


def interrupted(store: Store, model: Path, step: int, **options: Any) -> TrainConfig:
    """A run that was killed after a step, its checkpoints left behind."""
    config = long_run(store, model, **options)
    process = StepProcess(config, store)
    process.wait_for_step(step)
    process.signal(signal.SIGKILL)
    process.wait()
    # A third is there while the oldest is being removed.
    assert len(checkpoints(store, config)) in {2, 3}, process.log
    return config


def cut_short(folder: Path) -> None:
    path = max(folder.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(folder: Path) -> None:
    path = max(folder.glob("*.safetensors"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def lose_the_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


@pytest.mark.parametrize("damage", [cut_short, flip_a_bit, lose_the_manifest])
def test_a_damaged_checkpoint_is_skipped(
    damage: Any, store: Store, tiny_model: Path, undisturbed: Any
) -> None:
    config = interrupted(store, tiny_model, step=13)
    older, newer = checkpoints(store, config)[-2:]
    damage(newer)

    log = run(config, store)

    assert f"checkpoint {newer.name} is damaged" in log
    assert f"step {int(older.name.removeprefix('step-')) + 1:>2}/30" in log
    assert losses(store, config.digest) == undisturbed()


def test_an_unfinished_checkpoint_is_not_one(store: Store, tiny_model: Path) -> None:
    config = interrupted(store, tiny_model, step=13)
    newest = checkpoints(store, config)[-1]
    newest.rename(newest.with_name(f".{newest.name}.partial"))

    run(config, store)

    assert len(losses(store, config.digest)) == STEPS


def test_a_full_disk_keeps_the_last_checkpoint(store: Store, tiny_model: Path) -> None:
    config = interrupted(store, tiny_model, step=13)
    before = {p: (p / "manifest.json").read_bytes() for p in checkpoints(store, config)}
    previous = resource.getrlimit(resource.RLIMIT_FSIZE)
    limited = StepProcess(config, store, file_size=100_000)

    assert limited.wait() == ExitCode.USER_ERROR, limited.log

    assert "no space left for a checkpoint" in limited.log
    assert resource.getrlimit(resource.RLIMIT_FSIZE) == previous
    assert {p: (p / "manifest.json").read_bytes() for p in checkpoints(store, config)} == before
    run(config, store)
    assert len(losses(store, config.digest)) == STEPS


@pytest.mark.parametrize(("zero_stage", "lora"), [(2, ADAPTER), (3, ADAPTER), (3, TABLES)])
def test_an_adapter_resumes_under_another_zero_stage(
    zero_stage: int, lora: LoRASettings, store: Store, tiny_model: Path
) -> None:
    options: dict[str, Any] = {"method": Method.LORA, "lora": lora, "learning_rate": 1e-2}
    config = interrupted(store, tiny_model, 13, strategy={"precision": "bf16"}, **options)
    changed = long_run(
        store, tiny_model, strategy={"precision": "bf16", "zero_stage": zero_stage}, **options
    ).model_copy(update={"digest": config.digest})

    log = run(changed, store)

    assert "step  1/30" not in log
    whole = long_run(store, tiny_model, strategy={"precision": "bf16"}, **options)
    whole = whole.model_copy(update={"digest": "f" * 64})
    run(whole, store)
    resumed, straight = losses(store, config.digest), losses(store, whole.digest)
    assert resumed == pytest.approx(straight, rel=2e-2)


def test_a_sharded_full_checkpoint_says_what_it_needs(store: Store, tiny_model: Path) -> None:
    config = interrupted(store, tiny_model, 13, strategy={"zero_stage": 2, "precision": "bf16"})
    changed = long_run(store, tiny_model, strategy={"zero_stage": 0, "precision": "bf16"})
    changed = changed.model_copy(update={"digest": config.digest})

    log = run(changed, store, expect=ExitCode.USER_ERROR)

    assert "ZeRO-2" in log
    assert "start it over" in log
