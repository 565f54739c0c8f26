"""Held-out loss, steps of samples, schedules and noise, in whole trainings of a tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.fixtures.training import losses, run, train_config, validation_losses, write_data
from torch.nn import functional

from latticeforge_trainer.artifacts import Store
from latticeforge_trainer.contract import LoRASettings, Method, TrainResult
from latticeforge_trainer.data.packed import VALIDATION, PackedData
from latticeforge_trainer.models.loading import ADAPTER_FOLDER, MODEL_FOLDER, load_model

pytestmark = pytest.mark.slow


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


@torch.inference_mode()
def held_out_loss(model: Any, data: PackedData) -> float:
    """Each document alone, through transformers' own forward: the mean over learned tokens."""
    rows = data.batch(range(len(data)))
    total, targets = 0.0, 0
    for row, length in enumerate(data.lengths):
        starts = (rows["position_ids"][row, :length] == 0).nonzero().flatten().tolist()
        for start, end in zip(starts, [*starts[1:], length], strict=True):
            ids = rows["input_ids"][row, start:end]
            learned = rows["loss_mask"][row, start:end]
            scores = model(ids[None]).logits[0].float()[:-1][learned[1:]]
            total += functional.cross_entropy(scores, ids[learned], reduction="sum").item()
            targets += int(learned.sum())
    return total / targets


@pytest.mark.parametrize("method", [Method.FULL, Method.LORA])
def test_the_held_out_loss_is_the_finished_models(
    method: Method, store: Store, tiny_model: Path
) -> None:
    # 23 sequences in steps of 4: the first epoch ends within the third step.
    data = write_data(store, sequences=23, epoch_ends=[11, 23], held_out=5)
    options: dict[str, Any] = {"method": method, "data": data, "learning_rate": 1e-2}
    if method.is_adapter:
        options["lora"] = LoRASettings(rank=4, alpha=8, dropout=0.3)
    config = train_config(store, tiny_model, **options)
    run(config, store)

    measured = validation_losses(store, config.digest)
    assert list(measured) == [3, 6]
    manifest = store.manifest(config.digest)
    assert manifest is not None
    assert isinstance(manifest.result, TrainResult)
    assert manifest.result.validation_loss == measured[6] < measured[3]
    assert manifest.result.seconds_by_phase is not None
    assert manifest.result.seconds_by_phase.validation
    folder = store.path(config.digest)
    held = PackedData(store.path(data) / VALIDATION)
    if method.is_adapter:
        model, _ = load_model(tiny_model, adapter=folder / ADAPTER_FOLDER, dtype=torch.float32)
    else:
        model, _ = load_model(folder / MODEL_FOLDER, dtype=torch.float32)
    # The finished model is rounded to 16 bits, an adapter in fp32 is not.
    assert held_out_loss(model, held) == pytest.approx(measured[6], rel=2e-3)

    # Nothing of training depends on it.
    without = write_data(store, sequences=23, epoch_ends=[11, 23])
    other = train_config(store, tiny_model, **{**options, "data": without})
    run(other, store)
    assert losses(store, other.digest) == losses(store, config.digest)
    assert validation_losses(store, other.digest) == {}


def test_steps_of_samples_are_cut_where_prepare_says(store: Store, tiny_model: Path) -> None:
    data = write_data(store, step_ends=[3, 4, 12, 24])
    alone = train_config(store, tiny_model, data=data)
    cut = {"processes": 2, "micro_batch": 3}
    together = train_config(store, tiny_model, data=data, strategy=cut)
    for config in (alone, together):
        run(config, store)
    assert len(losses(store, alone.digest)) == 4
    assert losses(store, together.digest) == pytest.approx(losses(store, alone.digest), rel=1e-5)


def test_noise_on_embeddings_is_drawn_again_alike(store: Store, tiny_model: Path) -> None:
    data = write_data(store, epoch_ends=[24], held_out=5)
    plain = train_config(store, tiny_model, data=data)
    noisy = train_config(store, tiny_model, data=data, neftune_noise_alpha=5.0)
    again = noisy.model_copy(update={"digest": "0" * 64})
    for config in (plain, noisy, again):
        run(config, store)
    assert losses(store, noisy.digest) == losses(store, again.digest)
    assert losses(store, noisy.digest) != losses(store, plain.digest)
