"""Adapters folded into 16-bit weights: equal to PEFT's own merge, checked, or refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tests.fixtures.training import merge_config, run, train_config, write_data
from transformers import AutoModelForCausalLM

from latticeforge_trainer.artifacts import Store
from latticeforge_trainer.contract import MergeResult, Method, ModelRef, StepKind
from latticeforge_trainer.errors import UserError
from latticeforge_trainer.models import merging
from latticeforge_trainer.models.loading import load_for_inference, load_model
from latticeforge_trainer.models.merging import compare, merge_adapter
from latticeforge_trainer.models.shards import ShardWriter
from latticeforge_trainer.progress import LogSink, Reporter
from latticeforge_trainer.steps import merge

pytestmark = [
    pytest.mark.slow,
    # transformers warns of its own deprecated property when PEFT wraps a model.
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def bf16_model(home: Store, tiny_model: Path) -> Path:
    """A tiny model in 16 bits that knows something: the artifact of a full fine-tune."""
    data = write_data(home, sequences=80)
    config = train_config(home, tiny_model, data=data, strategy={"precision": "bf16"})
    run(config, home)
    return home.path(config.digest) / "model"


@pytest.fixture(scope="module", params=[Method.LORA, Method.QLORA])
def adapter(request: pytest.FixtureRequest, home: Store, bf16_model: Path) -> str:
    """Digest of an adapter trained on it."""
    config = train_config(
        home,
        bf16_model,
        method=request.param,
        data=write_data(home, sequences=40, alphabet=40),
        learning_rate=1e-2,
        strategy={"precision": "bf16"},
    )
    run(config, home)
    return config.digest


def do_merge(store: Store, model: Path, adapter: str) -> tuple[Any, bool]:
    config = merge_config(model, adapter)
    return merge.run(config, store, Reporter(StepKind.MERGE, config.digest, LogSink()))


def test_a_merge_equals_pefts_own_and_is_done_once(
    home: Store, bf16_model: Path, adapter: str
) -> None:
    result, reused = do_merge(home, bf16_model, adapter)

    assert isinstance(result, MergeResult)
    assert not reused
    assert result.top1_agreement > 0.9
    assert result.max_logit_difference < 0.2
    merged = home.path(merge_config(bf16_model, adapter).digest) / "model"
    assert (merged / "tokenizer.json").is_file()
    base = AutoModelForCausalLM.from_pretrained(bf16_model, dtype=torch.float32)
    wrapped = PeftModel.from_pretrained(base, home.path(adapter) / "adapter")
    expected = wrapped.merge_and_unload().state_dict()
    actual = load_file(merged / "model.safetensors")
    before = load_file(bf16_model / "model.safetensors")
    assert set(actual) == set(before)
    assert sum(not torch.equal(actual[name], before[name]) for name in actual) == 14
    for name, tensor in actual.items():
        assert torch.equal(tensor, expected[name].to(torch.bfloat16)), name

    assert do_merge(home, bf16_model, adapter) == (result, True)


def test_a_model_reference_loads_merged_or_with_its_adapter(
    home: Store, bf16_model: Path, adapter: str
) -> None:
    do_merge(home, bf16_model, adapter)
    merged = merge_config(bf16_model, adapter).digest
    fields = {"name": "math", "base_path": str(bf16_model), "base_revision": "0"}

    plain, tokenizer = load_for_inference(ModelRef(**fields), home)
    on_top, _ = load_for_inference(ModelRef(**fields, adapter=adapter), home)
    folded, _ = load_for_inference(ModelRef(**fields, artifact=merged), home)

    tokens = torch.tensor([tokenizer.encode("counting")])
    with torch.inference_mode():
        logits = [model(tokens).logits.float() for model in (plain, on_top, folded)]
    assert torch.allclose(logits[1], logits[2], atol=0.05)
    assert not torch.allclose(logits[0], logits[1], atol=0.2)


def test_a_wrong_merge_is_refused(
    home: Store, bf16_model: Path, adapter: str, tmp_path: Path
) -> None:
    source = home.path(adapter) / "adapter"
    wrong = shutil.copytree(source, tmp_path / "wrong")
    config = json.loads((wrong / "adapter_config.json").read_text())
    config["lora_alpha"] *= 2
    (wrong / "adapter_config.json").write_text(json.dumps(config))
    merge_adapter(bf16_model, wrong, tmp_path / "merged", lambda _: None)

    with pytest.raises(UserError, match=r"same at \d+\.\d% of positions.*differ by up to"):
        compare(bf16_model, source, tmp_path / "merged")


def test_what_is_not_merged_is_named(
    home: Store, bf16_model: Path, adapter: str, tmp_path: Path
) -> None:
    changed = shutil.copytree(home.path(adapter) / "adapter", tmp_path / "changed")
    config = json.loads((changed / "adapter_config.json").read_text())
    (changed / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))

    with pytest.raises(UserError, match="use_dora"):
        merge_adapter(bf16_model, changed, tmp_path / "merged", lambda _: None)


def test_never_into_4_bit_weights(
    home: Store, bf16_model: Path, adapter: str, tmp_path: Path
) -> None:
    base, _ = load_model(bf16_model, quantize_nf4=True)
    base.save_pretrained(tmp_path / "nf4")

    with pytest.raises(UserError, match="never merged into nf4 weights"):
        merge_adapter(tmp_path / "nf4", home.path(adapter) / "adapter", tmp_path / "m", print)

    again, _ = load_model(tmp_path / "nf4", adapter=home.path(adapter) / "adapter")
    assert again.get_base_model().is_loaded_in_4bit


def test_an_adapter_of_another_model_is_refused(
    home: Store, bf16_model: Path, adapter: str, tmp_path: Path
) -> None:
    shallow = shutil.copytree(bf16_model, tmp_path / "shallow")
    weights = load_file(shallow / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if ".layers.1." not in name}
    save_file(kept, shallow / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(UserError, match=r"model\.layers\.1\.mlp\.down_proj.*another model"):
        merge_adapter(shallow, home.path(adapter) / "adapter", tmp_path / "m", lambda _: None)


def test_many_shards_are_read_and_written_one_at_a_time(
    home: Store,
    bf16_model: Path,
    adapter: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        merging, "ShardWriter", lambda folder: ShardWriter(folder, shard_bytes=200_000)
    )
    first, second = tmp_path / "first", tmp_path / "second"
    source = home.path(adapter) / "adapter"

    size = merge_adapter(bf16_model, source, first, lambda _: None)
    merge_adapter(first, source, second, lambda _: None)

    shards = sorted(path.name for path in first.glob("*.safetensors"))
    assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    assert len(shards) > 3
    index = json.loads((first / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == size
    whole = load_file(bf16_model / "model.safetensors")
    assert set(index["weight_map"]) == set(whole)
    twice, _ = load_model(second)
    name = "model.layers.0.mlp.up_proj.weight"
    before, once, again = whole[name], load_weight(first, name), twice.get_parameter(name)
    assert torch.allclose(again - before, 2 * (once - before), atol=2e-2)
    assert not torch.equal(once, before)


def load_weight(folder: Path, name: str) -> torch.Tensor:
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    return load_file(folder / index[name])[name]
