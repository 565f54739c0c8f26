"""Two processes under ZeRO 1 to 3, started, stopped and resumed by the launcher."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.fixtures.training import (
    StepProcess,
    losses,
    run,
    train_config,
    validation_losses,
    write_data,
)
from torch.nn.utils import parameters_to_vector

from latticeforge_trainer.artifacts import Store
from latticeforge_trainer.contract import ExitCode, Method, TrainConfig
from latticeforge_trainer.models.loading import load_model

pytestmark = pytest.mark.slow


def test_two_processes_train_as_one_and_stop_and_resume_together(
    tmp_path: Path, tiny_model: Path
) -> None:
    store = Store(tmp_path)
    # Neither steps nor processes divide them.
    data = write_data(store, sequences=47, epoch_ends=[23, 47], held_out=5)
    alone = train_config(store, tiny_model, data=data, strategy={"precision": "bf16"})
    run(alone, store)
    cut = {"precision": "bf16", "processes": 2, "zero_stage": 3}
    config = train_config(store, tiny_model, data=data, strategy=cut)

    first = StepProcess(config, store)
    first.wait_for_step(2)
    first.signal(signal.SIGTERM)

    assert first.wait() == ExitCode.INTERRUPTED, first.log
    saved = list((store.work(config.digest) / "checkpoints").glob("step-*"))
    assert len(saved) == 1
    log = run(config, store)
    resumed = int(saved[0].name.removeprefix("step-"))
    assert "step  1/12" not in log
    assert f"step {resumed + 1:>2}/12" in log or resumed == 12
    together = losses(store, config.digest)
    assert together == pytest.approx(losses(store, alone.digest), rel=5e-3)
    held_out = validation_losses(store, config.digest)
    assert held_out == pytest.approx(validation_losses(store, alone.digest), rel=5e-3)
    assert list(held_out) == [6, 12]
    assert likeness(store, tiny_model, alone, config) > 0.99


def likeness(store: Store, base: Path, one: TrainConfig, other: TrainConfig) -> float:
    """Cosine of what two steps changed of a base's weights.

    Single weights may differ: AdamW enlarges the rounding of gradients that are nearly zero.
    """
    trained = [store.path(config.digest) / "model" for config in (one, other)]
    start, first, second = (
        parameters_to_vector(load_model(folder)[0].parameters()).float()
        for folder in (base, *trained)
    )
    return torch.cosine_similarity(first - start, second - start, dim=0).item()


@pytest.mark.parametrize("stage", [1, 2])
def test_gradients_of_two_micro_batches_add_up_as_in_one_process(
    stage: int, tmp_path: Path, tiny_model: Path
) -> None:
    store = Store(tmp_path)
    alone = train_config(store, tiny_model, strategy={"precision": "bf16"})
    cut = {"precision": "bf16", "processes": 2, "zero_stage": stage}
    together = train_config(store, tiny_model, strategy=cut)

    run(alone, store)
    run(together, store)

    expected = losses(store, alone.digest)
    assert losses(store, together.digest) == pytest.approx(expected, rel=5e-3)
    assert likeness(store, tiny_model, alone, together) > 0.99


def test_an_adapter_is_trained_as_by_one_process(tmp_path: Path, tiny_model: Path) -> None:
    store = Store(tmp_path)
    options: dict[str, Any] = {"method": Method.LORA, "learning_rate": 1e-2}
    alone = train_config(store, tiny_model, strategy={"precision": "bf16"}, **options)
    cut = {"precision": "bf16", "processes": 2, "zero_stage": 3}
    together = train_config(store, tiny_model, strategy=cut, **options)

    run(alone, store)
    run(together, store)

    expected = losses(store, alone.digest)
    assert losses(store, together.digest) == pytest.approx(expected, rel=5e-3)
    one, two = (
        load_file(store.path(config.digest) / "adapter" / "adapter_model.safetensors")
        for config in (alone, together)
    )
    halves = [name for name in one if "lora_B" in name]  # which start at nothing
    assert any(".layers.0." in name for name in halves)
    for name in halves:
        similar = torch.cosine_similarity(one[name].flatten(), two[name].flatten(), dim=0)
        assert similar > 0.95, name


def test_a_process_leaves_no_group_behind(tmp_path: Path, tiny_model: Path) -> None:
    store = Store(tmp_path)
    strategy = {"precision": "bf16", "zero_stage": 1}  # which needs a group even alone
    config = train_config(store, tiny_model, strategy=strategy)
    stopped = StepProcess(config, store)
    stopped.wait_for_step(2)
    stopped.signal(signal.SIGTERM)

    # `StepProcess` looks for a group before its process ends.
    assert stopped.wait() == ExitCode.INTERRUPTED, stopped.log
    run(config, store)


def test_a_workers_error_is_the_launchers(tmp_path: Path, tiny_model: Path) -> None:
    store = Store(tmp_path)
    strategy = {"processes": 2}
    config = train_config(store, tiny_model, strategy=strategy, sequence_length=64)

    log = run(config, store, expect=ExitCode.USER_ERROR)

    last = log.strip().splitlines()[-1]
    assert "packed into 32 tokens, not 64" in last
