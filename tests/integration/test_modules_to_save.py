"""Embedding and head trained in full beside an adapter, from training to the merged model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tests.fixtures.tiny_model import make_model
from tests.fixtures.training import losses, merge_config, run, train_config, write_data
from transformers import AutoModelForCausalLM

from latticeforge_trainer.artifacts import Store
from latticeforge_trainer.contract import LoRASettings, MergeResult, Method, ModelRef, TrainConfig
from latticeforge_trainer.models.loading import load_for_inference

pytestmark = pytest.mark.slow

BOTH = LoRASettings(rank=4, alpha=8, modules_to_save=["embed_tokens", "lm_head"])


def with_tables(
    store: Store, model: Path, method: Method = Method.LORA, **more: Any
) -> TrainConfig:
    """Twelve steps of an adapter with both tables, in 16 bits."""
    options = {"lora": BOTH, "learning_rate": 1e-2, "data": write_data(store, sequences=48), **more}
    options["strategy"] = {"precision": "bf16", **options.get("strategy", {})}
    return train_config(store, model, method=method, **options)


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def tied(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(scope="module")
def home(tied: bool, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("tied" if tied else "untied"))


@pytest.fixture(scope="module")
def model(home: Store, tied: bool) -> Path:
    """A tiny model in 16 bits, as models are stored."""
    folder = make_model(home.root / "model", tie_word_embeddings=tied)
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    whole.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def undisturbed(home: Store, model: Path) -> TrainConfig:
    """A run that has finished."""
    config = with_tables(home, model)
    run(config, home)
    return config


def test_what_is_merged_is_what_was_trained(
    home: Store, model: Path, undisturbed: TrainConfig
) -> None:
    config = merge_config(model, undisturbed.digest)
    run(config, home)

    manifest = home.manifest(config.digest)
    assert manifest is not None
    assert isinstance(manifest.result, MergeResult)
    assert manifest.result.top1_agreement > 0.9
    merged = load_file(home.path(config.digest) / "model" / "model.safetensors")
    before = load_file(model / "model.safetensors")
    assert set(merged) == set(before)
    adapter = home.path(undisturbed.digest) / "adapter"
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    expected = PeftModel.from_pretrained(base, adapter).merge_and_unload().state_dict()
    for name, tensor in merged.items():
        assert torch.equal(tensor, expected[name].to(torch.bfloat16)), name
    for table in {"model.embed_tokens.weight", "lm_head.weight"} & set(merged):
        assert not torch.equal(merged[table], before[table])


def test_the_next_stage_goes_on_with_it_and_scores_load_it(
    home: Store, model: Path, undisturbed: TrainConfig
) -> None:
    after = with_tables(
        home, model, continue_adapter=True, runtime={"upstream_adapter": undisturbed.digest}
    )
    run(after, home)

    before, later = losses(home, undisturbed.digest), losses(home, after.digest)
    assert later[0] == pytest.approx(before[-1], rel=0.2)
    fields = {"name": "math", "base_path": str(model), "base_revision": "0"}
    loaded, _ = load_for_inference(ModelRef(**fields, adapter=after.digest), home)
    plain, _ = load_for_inference(ModelRef(**fields), home)
    one, two = (of.get_input_embeddings().weight for of in (loaded.get_base_model(), plain))
    assert not torch.equal(one, two)


def test_an_nf4_base_keeps_its_tables_to_train(home: Store, model: Path) -> None:
    config = with_tables(home, model, Method.QLORA)

    run(config, home)

    history = losses(home, config.digest)
    assert history[-1] < 0.8 * history[0]
    saved = load_file(home.path(config.digest) / "adapter" / "adapter_model.safetensors")
    assert saved["base_model.model.model.embed_tokens.weight"].dtype == torch.bfloat16
