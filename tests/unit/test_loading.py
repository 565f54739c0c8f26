"""What is streamed is what transformers loads, to the bit; what cannot be used is named."""

from __future__ import annotations

import json
import logging
import shutil
import weakref
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.fixtures.tiny_model import make_model
from torch import nn
from transformers import MixtralConfig, MixtralForCausalLM

from latticeforge_trainer.errors import UserError
from latticeforge_trainer.models import streaming
from latticeforge_trainer.models.detour import load_with_transformers
from latticeforge_trainer.models.fp8 import Fp8Linear
from latticeforge_trainer.models.loading import load_model, load_weights

CPU = torch.device("cpu")
WEIGHTS = "model.safetensors"
TOKENS = torch.arange(20)[None]


def reference(folder: Path, **options: Any) -> Any:
    defaults = {"dtype": torch.bfloat16, "stored": None, "quantize": None}
    return load_with_transformers(folder, **{**defaults, **options}, device=CPU, partition=None)


def assert_same(ours: Any, theirs: Any) -> None:
    """Two models are equal: weights, scales, buffers, ties, classes, config, and what they say."""
    for found, expected in (
        (ours.state_dict(), theirs.state_dict()),
        (dict(ours.named_buffers()), dict(theirs.named_buffers())),
    ):
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert found[name].dtype == tensor.dtype, name
            assert torch.equal(found[name], tensor), name
    kinds = [
        {name: (type(p), p.requires_grad) for name, p in model.named_parameters()}
        for model in (ours, theirs)
    ]
    assert kinds[0] == kinds[1]
    assert [type(m) for m in ours.modules()] == [type(m) for m in theirs.modules()]
    assert ours.config.to_dict() == theirs.config.to_dict()
    assert ours.generation_config.to_dict() == theirs.generation_config.to_dict()
    assert (ours.name_or_path, ours.training) == (theirs.name_or_path, theirs.training)
    with torch.inference_mode():
        assert torch.equal(ours(TOKENS).logits, theirs(TOKENS).logits)


def changed(model: Path, target: Path, change: dict[str, torch.Tensor | None]) -> Path:
    """A copy of a model with tensors replaced, or left out where the new one is None."""
    shutil.copytree(model, target)
    weights = {**load_file(model / WEIGHTS), **change}
    save_file({k: v for k, v in weights.items() if v is not None}, target / WEIGHTS)
    return target


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("tied", [False, True])
def test_16_and_32_bit_weights(tmp_path: Path, dtype: torch.dtype, tied: bool) -> None:
    model = make_model(tmp_path / "model", tie_word_embeddings=tied)
    (model / "generation_config.json").write_text(json.dumps({"max_new_tokens": 7}))

    ours = load_weights(model, dtype=dtype)

    assert_same(ours, reference(model, dtype=dtype))
    assert ours.generation_config.max_new_tokens == 7
    assert (ours.lm_head.weight is ours.model.embed_tokens.weight) == tied


def test_many_shards_and_a_tie_to_a_name_that_is_not_stored(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", tie_word_embeddings=True)
    weights = load_file(model / WEIGHTS)
    weights["lm_head.weight"] = weights.pop("model.embed_tokens.weight")
    (model / WEIGHTS).unlink()
    files = {name: f"model-{i % 3}.safetensors" for i, name in enumerate(weights)}
    for file in set(files.values()):
        save_file({k: v for k, v in weights.items() if files[k] == file}, model / file)
    index = {"metadata": {}, "weight_map": files}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))

    assert_same(load_weights(model), reference(model))


@pytest.mark.parametrize("tied", [False, True])
def test_nf4_is_made_and_read_to_the_bit(tmp_path: Path, tied: bool) -> None:
    model = make_model(tmp_path / "model", tie_word_embeddings=tied)

    ours = load_weights(model, quantize="nf4")

    assert_same(ours, reference(model, quantize="nf4"))
    assert ours.is_loaded_in_4bit
    assert ours.quantization_method == "bitsandbytes"
    ours.save_pretrained(tmp_path / "nf4")
    assert_same(load_weights(tmp_path / "nf4"), reference(tmp_path / "nf4", stored="nf4"))


def test_nf4_weights_are_taken_over_without_being_unpacked(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_weights(tiny_model, quantize="nf4").save_pretrained(tmp_path)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(bitsandbytes.functional, "dequantize_4bit", never)
    monkeypatch.setattr(bitsandbytes.functional, "quantize_4bit", never)
    assert load_weights(tmp_path, quantize="nf4").is_loaded_in_4bit


def test_fp8_layers_are_made_of_every_linear_layer_but_the_head(tiny_model: Path) -> None:
    ours = dict(load_weights(tiny_model, quantize="fp8").named_modules())

    for name, layer in load_weights(tiny_model).named_modules():
        if not isinstance(layer, nn.Linear) or name == "lm_head":
            assert type(ours[name]) is type(layer)
            continue
        made = ours[name]
        assert type(made) is Fp8Linear
        # Half a step of E4M3, which has three bits behind the point.
        weight = made.e4m3.float() * made.weight_scale
        step = layer.weight.float().abs() * 2**-3 + made.weight_scale * 2**-9
        assert bool(((weight - layer.weight.float()).abs() <= step / 2 * 1.01).all())
        assert layer.bias is None or torch.equal(made.bias, layer.bias)


def test_another_layout_is_left_to_transformers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sizes: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 64, "vocab_size": 64}
    heads = {
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "num_local_experts": 2,
    }
    MixtralForCausalLM(MixtralConfig(**{**sizes, **heads})).save_pretrained(tmp_path)

    with caplog.at_level(logging.DEBUG, "latticeforge_trainer"):
        ours = load_weights(tmp_path)

    assert "loaded by transformers: .experts.*.w1.weight is stored in another layout" in caplog.text
    assert_same(ours, reference(tmp_path))


def test_the_base_is_never_whole_while_it_is_quantized(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive, most = 0, 0
    size = (tiny_model / WEIGHTS).stat().st_size
    begin = streaming._Readers.begin

    def freed(bytes_: int) -> None:
        nonlocal alive
        alive -= bytes_

    def counted(self: Any, group: streaming.Group) -> Any:
        nonlocal alive, most
        reading = begin(self, group)
        for tensor in reading.tensors.values():
            alive += tensor.nbytes
            weakref.finalize(tensor, freed, tensor.nbytes)
        most = max(most, alive)
        return reading

    monkeypatch.setattr(streaming, "_source", streaming._Readers)  # as to a GPU
    monkeypatch.setattr(streaming, "AHEAD", size // 10)
    monkeypatch.setattr(streaming._Readers, "begin", counted)

    load_weights(tiny_model, quantize="nf4")

    assert 0 < most < size / 3


def test_a_missing_weight_is_named_before_any_is_read(tmp_path: Path, tiny_model: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    model = changed(tiny_model, tmp_path / "model", {name: None})

    with pytest.raises(UserError, match=rf"weights are missing: {name}"):
        load_weights(model, report=lambda *_: pytest.fail("something was read"))


@pytest.mark.parametrize("quantize", [None, "nf4"])
def test_another_shape_is_refused(tmp_path: Path, tiny_model: Path, quantize: Any) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    model = changed(tiny_model, tmp_path / "model", {name: torch.zeros(9, 128)})

    with pytest.raises(UserError, match=rf"{name} is stored as \[9, 128\], .* \[256, 128\]"):
        load_weights(model, quantize=quantize)


def test_another_shape_in_nf4_is_refused(tmp_path: Path) -> None:
    wide = make_model(tmp_path / "wide", intermediate_size=512)
    load_weights(wide, quantize="nf4").save_pretrained(tmp_path / "nf4")
    config = json.loads((tmp_path / "nf4" / "config.json").read_text())
    config["intermediate_size"] = 256
    (tmp_path / "nf4" / "config.json").write_text(json.dumps(config))

    with pytest.raises(UserError, match=r"stands for \[.*512.*\], but the config makes it"):
        load_weights(tmp_path / "nf4")


def test_what_the_model_does_not_have_is_left(
    tmp_path: Path, tiny_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = changed(tiny_model, tmp_path / "model", {"model.extra.weight": torch.ones(3)})

    with caplog.at_level(logging.INFO, "latticeforge_trainer"):
        ours = load_weights(model)

    assert "1 tensors are not the model's, model.extra.weight is one" in caplog.text
    assert_same(ours, reference(model))


def test_a_file_that_was_cut_short_is_named(tmp_path: Path, tiny_model: Path) -> None:
    model = changed(tiny_model, tmp_path / "model", {})
    content = (model / WEIGHTS).read_bytes()
    (model / WEIGHTS).write_bytes(content[:-1000])

    with pytest.raises(UserError, match=r"model\.safetensors ends before .* does"):
        load_weights(model)


def test_quantized_weights_are_not_partitioned(tiny_model: Path) -> None:
    with pytest.raises(UserError, match="cannot be partitioned"):
        load_weights(tiny_model, quantize="nf4", partition={})


def test_a_model_comes_with_its_tokenizer(tiny_model: Path) -> None:
    model, tokenizer = load_model(tiny_model)
    assert model.dtype == torch.bfloat16
    assert tokenizer.decode(tokenizer.encode("abc")) == "abc"
