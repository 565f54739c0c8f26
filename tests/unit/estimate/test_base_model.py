"""What is read from configs: the parameters of known models, formats on disk, refusals."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from tests.unit.estimate.known import MODELS

from latticeforge_trainer.contract import Method
from latticeforge_trainer.estimate.base_model import (
    quantization_of,
    read_base_model,
    why_unmergeable,
    why_untrainable,
)
from latticeforge_trainer.estimate.errors import EstimateError

BNB = {"quant_method": "bitsandbytes"}


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("Qwen2.5-0.5B", 494_032_768),
        ("Qwen2.5-7B", 7_615_616_512),
        ("Qwen2.5-72B", 72_706_203_648),
        ("Llama-3.1-8B", 8_030_261_248),
        ("Llama-3.1-70B", 70_553_706_496),
        ("Mistral-7B", 7_241_732_096),
        ("Gemma-2-9B", 9_241_705_984),
        ("Mixtral-8x7B", 46_702_792_704),
        ("Qwen3-30B-A3B", 30_532_122_624),
    ],
)
def test_known_models_have_the_parameters_that_their_makers_say(name: str, parameters: int) -> None:
    assert read_base_model(MODELS[name]).parameters.total == parameters


def test_parameters_are_counted_by_kind() -> None:
    counted = read_base_model(MODELS["Qwen2.5-72B"]).parameters
    assert dataclasses.asdict(counted) == {
        "embedding": 152_064 * 8192,
        "attention": 80 * 2 * 8192 * (8192 + 1024),
        "mlp": 80 * 3 * 8192 * 29_568,
        "vectors": 8192 + 80 * (2 * 8192 + 8192 + 2 * 1024),
        "head": 152_064 * 8192,
    }


def test_a_tied_head_is_no_parameter_of_its_own() -> None:
    counted = read_base_model(MODELS["Qwen2.5-0.5B"]).parameters
    assert counted.head == 0
    assert counted.embedding == 151_936 * 896


@pytest.mark.parametrize(
    ("declared", "name", "bits", "gigabytes"),
    [
        # The sizes of Qwen/Qwen2.5-72B-Instruct and of its GPTQ and AWQ siblings on the Hub.
        (None, None, 16, 145.4),
        (BNB | {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "nf4", 4, 41.2),
        (BNB | {"load_in_4bit": True}, "fp4", 4, 41.2),
        (BNB | {"load_in_8bit": True}, "int8", 8, 75.2),
        ({"quant_method": "gptq", "bits": 4}, "gptq", 4, 41.6),
        ({"quant_method": "gptq", "bits": 8}, "gptq", 8, 76.6),
        ({"quant_method": "awq", "bits": 4}, "awq", 4, 41.6),
        ({"quant_method": "fp8"}, "fp8", 8, 75.2),
        (
            {"quant_method": "compressed-tensors", "config_groups": {}},
            "compressed-tensors",
            8,
            75.2,
        ),
        ({"bits": 3}, "int3", 3, 32.8),
    ],
)
def test_the_format_on_disk_is_what_the_config_declares(
    declared: Any, name: str | None, bits: int, gigabytes: float
) -> None:
    fields = {} if declared is None else {"quantization_config": declared}
    model = read_base_model(MODELS["Qwen2.5-72B"] | fields)
    assert (model.quantization, model.weight_bits) == (name, bits)
    assert model.stored_bytes / 1e9 == pytest.approx(gigabytes, rel=0.01)


def test_32_bit_weights_are_stored_in_32_bits() -> None:
    model = read_base_model(MODELS["Qwen2.5-7B"] | {"torch_dtype": "float32"})
    assert model.stored_bytes == 4 * 7_615_616_512
    assert model.weight_bits == 32


@pytest.mark.parametrize(
    "config", [{}, {"quantization_config": None}, {"quantization_config": "x"}]
)
def test_nothing_declared_is_no_quantization(config: dict[str, Any]) -> None:
    assert quantization_of(config) is None


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({}, "config.json names no model_type, so it describes no model that can be planned for"),
        (
            {"model_type": "mamba"},
            "model type mamba is not known to the planner, which knows llama, mistral,",
        ),
        (
            {"model_type": "llama", "vocab_size": 1, "hidden_size": 1},
            "config.json of a llama model lacks intermediate_size, num_hidden_layers, num_att",
        ),
        (
            MODELS["Qwen2.5-7B"] | {"hidden_size": "big"},
            "config.json: hidden_size is 'big', not a positive whole number",
        ),
        (
            MODELS["Qwen2.5-7B"] | {"num_hidden_layers": 0},
            "config.json: num_hidden_layers is 0, not a positive whole number",
        ),
    ],
)
def test_what_is_no_model_is_refused_in_one_sentence(config: Any, sentence: str) -> None:
    with pytest.raises(EstimateError) as error:
        read_base_model(config)
    assert str(error.value).startswith(sentence)


@pytest.mark.parametrize(
    ("quantization", "method", "why"),
    [
        (None, Method.FULL, None),
        (None, Method.QLORA, None),
        ("nf4", Method.QLORA, None),
        ("nf4", Method.FULL, "holds NF4 weights, which method Full cannot train: use method QLoRA"),
        ("nf4", Method.LORA, "holds NF4 weights, which method LoRA cannot train: use method QLoRA"),
        ("gptq", Method.QLORA, "holds gptq weights, which serve inference only"),
        ("int4", Method.FULL, "holds int4 weights, which serve inference only"),
    ],
)
def test_only_16_bit_and_nf4_weights_train(
    quantization: str | None, method: Method, why: str | None
) -> None:
    found = why_untrainable(quantization, method)
    assert found is None if why is None else str(found).startswith(why)


@pytest.mark.parametrize(
    ("name", "original"),
    [
        ("Qwen/Qwen2.5-72B-Instruct-GPTQ-Int4", "Qwen/Qwen2.5-72B-Instruct"),
        ("TheBloke/Llama-2-7B-AWQ", "TheBloke/Llama-2-7B"),
        ("me/qwen-72b-math-int4", "me/qwen-72b-math"),
        ("me/elle_w4a16", "me/elle"),
        ("me/int4", None),
        ("me/model-v1", None),
        ("./models/elle-int4", None),
        ("", None),
    ],
)
def test_a_copys_name_tells_what_it_was_perhaps_made_from(name: str, original: str | None) -> None:
    said = str(why_untrainable("gptq", Method.LORA, name))
    guess = f", perhaps {original}" if original else ""
    assert f"the 16-bit model it was made from{guess} (method Full" in said


def test_an_nf4_copys_name_does_too() -> None:
    said = str(why_untrainable("nf4", Method.LORA, "me/elle-bnb-4bit"))
    assert said.endswith("made from, perhaps me/elle")


def test_only_16_bit_weights_take_an_adapter_in() -> None:
    assert why_unmergeable(None) is None
    assert "publish the adapter" in str(why_unmergeable("nf4"))
