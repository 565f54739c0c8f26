"""What weights take, against the tensors of real models, on the CPU in 32 bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from tests.fixtures.fast_paths import pair_of_models
from transformers import AutoModelForCausalLM

from latticeforge_trainer.contract import LoRASettings, Method, Recompute, Strategy, TrainPayload
from latticeforge_trainer.estimate.base_model import NF4_BYTES, read_base_model
from latticeforge_trainer.estimate.linears import groups_of
from latticeforge_trainer.estimate.terms import total
from latticeforge_trainer.estimate.training import Setup
from latticeforge_trainer.estimate.weights import loaded_weights, placed_adapters
from latticeforge_trainer.models.fused import fuse

FIELDS: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 128,
    "intermediate_size": 320,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
}


def setup_and_groups(method: str) -> tuple[Setup, list[Any]]:
    """What is estimated, and the groups that the trainer makes of such a model."""
    torch.manual_seed(0)
    config = transformers.Qwen2Config(**FIELDS)
    make: Any = AutoModelForCausalLM  # untyped
    model, _ = pair_of_models(make.from_config(config), method)
    blocks = fuse(model, [Recompute.ELEMENTWISE] * 3)
    groups = [group for block in blocks for group in block.groups]
    for group in groups:
        group._refreshed(torch.empty(0, group.inputs))
    settings = {"rank": rank_of(groups), "base_dtype": "fp8" if method == "FP8" else None}
    payload = TrainPayload(
        method=Method.LORA if method == "FP8" else Method(method),
        learning_rate=1,
        sequence_length=1,
        global_batch_tokens=1,
        lora=LoRASettings.model_validate(settings),
    )
    return Setup(read_base_model(config.to_dict()), payload, Strategy(precision="fp32")), groups


def rank_of(groups: list[Any]) -> int:
    rank: int = groups[1].adapters[0].rank
    return rank


def bytes_of(tensors: list[Any]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def test_adapters_beside_16_bit_weights_take_what_their_matrix_has_more() -> None:
    setup, groups = setup_and_groups("LoRA")
    weights = [layer.weight for group in groups for layer in group.layers]
    matrices = [group._matrix for group in groups]
    assert total(placed_adapters(setup, 0)) == bytes_of(matrices) - bytes_of(weights)


@pytest.mark.parametrize("method", ["QLoRA", "FP8"])
def test_adapters_of_other_weights_are_held_once_more_to_multiply_with(method: str) -> None:
    setup, groups = setup_and_groups(method)
    found = {term.name: term.bytes for term in placed_adapters(setup, 0)}
    copies = [part for group in groups for part in (group._a, group._b)]
    assert found["adapters to multiply with"] == bytes_of(copies)
    scratch = max(4 * (g.outputs + g.ranks) * (g.inputs + g.ranks) for g in groups)
    assert found.get("dequantization scratch", scratch) == scratch


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9, 1.0, 1.5])
def test_as_many_nf4_layers_are_kept_dequantized_as_the_trainer_keeps(share: float) -> None:
    setup, groups = setup_and_groups("QLoRA")
    # The estimate counts in 32 bits here, and `unpacked_bytes` in 16.
    sizes = [2 * group.unpacked_bytes for group in groups]
    spare = int(share * sum(sizes))
    kept, left = 0, spare
    for size in sizes:  # as `training.recompute.unpack_spare` does
        if size <= left:
            kept, left = kept + size, left - size
    found = {term.name: term.bytes for term in placed_adapters(setup, spare)}
    assert found.get("dequantized layers", 0) == kept
    assert ("dequantization scratch" in found) == (kept < sum(sizes))


def test_an_fp8_weight_has_a_byte_and_each_output_a_scale() -> None:
    setup, groups = setup_and_groups("FP8")
    found = {term.name: term.bytes for term in loaded_weights(setup)}
    layers = [layer for group in groups for layer in group.layers]
    scales = [layer.weight_scale for layer in layers]
    assert found["linear layers"] == bytes_of([x.weight for x in layers]) + bytes_of(scales)


def test_an_nf4_weight_has_what_bitsandbytes_gives_it() -> None:
    setup, groups = setup_and_groups("QLoRA")
    found = {term.name: term.bytes for term in loaded_weights(setup)}
    weights = sum(count * group.parameters for count, group in groups_of(setup.model))
    assert found["linear layers"] == int(NF4_BYTES * weights)
    states = [layer.weight.quant_state for group in groups for layer in group.layers]
    packed = [layer.weight for group in groups for layer in group.layers]
    held = bytes_of(packed) + bytes_of([s.absmax for s in states])
    held += bytes_of([s.state2.absmax for s in states])
    # Blocks of so small a model are not all full.
    assert held == pytest.approx(found["linear layers"], rel=0.01)


def test_what_is_no_linear_layer_keeps_the_precision_that_is_computed_in() -> None:
    setup, _ = setup_and_groups("QLoRA")
    found = {term.name: term.bytes for term in loaded_weights(setup)}
    assert found["embedding and head"] == 2 * 4 * 96 * 128
    assert found["norms and biases"] == 4 * setup.model.parameters.vectors
