"""The loading benchmark: the model it makes is whole, and both loaders load all of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from benchmarks import loading
from benchmarks.loading import drop_from_page_cache, load_once, make_random_model
from transformers import AutoModelForCausalLM

from latticeforge_trainer.models.loading import load_weights


def test_the_random_model_is_as_large_as_asked_and_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"hidden_size": 64, "intermediate_size": 128, "vocab_size": 256}
    config = loading.Qwen2Config
    monkeypatch.setattr(loading, "Qwen2Config", lambda **given: config(**{**given, **small}))
    make_random_model(tmp_path, 0.6)
    drop_from_page_cache(tmp_path)
    ours = load_weights(tmp_path, device=torch.device("cpu")).state_dict()
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).state_dict()
    assert "model.layers.2.mlp.up_proj.weight" in ours
    assert "model.layers.3.mlp.up_proj.weight" not in ours
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("loader", loading.LOADERS)
@pytest.mark.parametrize("kind", loading.KINDS)
def test_a_load_is_measured(tiny_model: Path, loader: str, kind: str) -> None:
    figures = load_once(tiny_model, loader, kind)
    assert figures.seconds > 0
    assert figures.peak_gib >= 0
    assert figures.gpu_gib == 0 or torch.cuda.is_available()
