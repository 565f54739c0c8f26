"""What is computed again, as it is chosen from a step's config and the machine at hand."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from tests.fixtures.fast_paths import pair_of_models
from transformers import AutoModelForCausalLM

from latticeforge_trainer.contract import (
    LoRASettings,
    Method,
    Recompute,
    Strategy,
    TrainConfig,
    TrainPayload,
    TrainRuntime,
)
from latticeforge_trainer.estimate.activations import Choice
from latticeforge_trainer.estimate.base_model import read_base_model
from latticeforge_trainer.estimate.linears import is_fused
from latticeforge_trainer.estimate.shapes import FAMILIES
from latticeforge_trainer.estimate.training import Setup
from latticeforge_trainer.models.fused import decoder_layers, fuse, is_fusible
from latticeforge_trainer.training import recompute
from latticeforge_trainer.training.recompute import choose_recompute, unpack_spare

FIELDS = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
GIB = 2**30


def model(kind: str = "Qwen2", **fields: Any) -> Any:
    config = getattr(transformers, f"{kind}Config")(**FIELDS, **fields)
    make: Any = AutoModelForCausalLM  # untyped
    return make.from_config(config)


def step(
    method: Method = Method.LORA, asked: Recompute = Recompute.AUTO, **payload: Any
) -> TrainConfig:
    return TrainConfig(
        training="test/tiny",
        digest="0" * 64,
        payload=TrainPayload(
            method=method,
            lora=LoRASettings() if method.is_adapter else None,
            learning_rate=1,
            sequence_length=1,
            global_batch_tokens=1,
            **payload,
        ),
        runtime=TrainRuntime(base_path="", data="", strategy=Strategy(recompute=asked)),
    )


class Loss:
    """A loss module that says it lies on some device."""

    def __init__(self, device: str, causal: Any) -> None:
        self.model = self.causal = causal
        self._device = torch.device(device)

    def parameters(self) -> Iterator[Any]:
        yield SimpleNamespace(device=self._device)


def chosen(config: TrainConfig, device: str, causal: Any) -> Choice:
    loss: Any = Loss(device, causal)
    return choose_recompute(config, loss)


@pytest.mark.parametrize("asked", [mode for mode in Recompute if mode is not Recompute.AUTO])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_mode_that_is_named_is_taken_for_all_layers(asked: Recompute, device: str) -> None:
    choice = chosen(step(asked=asked), device, model())
    assert choice == Choice([asked] * 3, 0)


def test_on_a_cpu_only_what_costs_nothing_is_computed_again() -> None:
    choice = chosen(step(), "cpu", model())
    assert choice == Choice([Recompute.ELEMENTWISE] * 3, 0)


@pytest.mark.parametrize(
    "of",
    [("Cohere", {}), ("Mixtral", {"num_local_experts": 4})],
    ids=["unknown shape", "experts"],
)
def test_what_is_not_known_is_computed_again(
    of: tuple[str, dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    kind, fields = of
    choice = chosen(step(), "cuda", model(kind, **fields))
    assert choice == Choice([Recompute.LAYERS] * 3, 0)
    assert f"{kind.lower()}: what its layers keep is not known" in caplog.text


def test_the_choice_is_made_by_what_is_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    of, config = model(), step()
    asked: list[Any] = []

    def choose_modes(*arguments: Any) -> Choice:
        asked.extend(arguments)
        return Choice([Recompute.LAYERS] * 3, 5)

    monkeypatch.setattr(recompute, "bytes_at_hand", lambda _: 10 * GIB)
    monkeypatch.setattr(recompute, "choose_modes", choose_modes)

    assert chosen(config, "cuda", of) == Choice([Recompute.LAYERS] * 3, 5)
    known = read_base_model(of.config.to_dict())
    assert asked == [Setup(known, config.payload, config.runtime.strategy), 10 * GIB]


@pytest.mark.parametrize("kind", sorted(FAMILIES))
def test_plans_know_which_layers_run_as_ours(kind: str) -> None:
    config = transformers.AutoConfig.for_model(kind, **FIELDS, pad_token_id=0)
    make: Any = AutoModelForCausalLM  # untyped
    with torch.device("meta"):
        built = make.from_config(config)
    ours = all(map(is_fusible, decoder_layers(built)))
    assert is_fused(read_base_model(config.to_dict())) == ours


def test_what_is_free_or_cached_is_at_hand_less_a_share_of_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {
        "mem_get_info": (50 * GIB, 100 * GIB),
        "memory_reserved": 30 * GIB,
        "memory_allocated": 20 * GIB,
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda _, value=value: value)
    assert recompute.bytes_at_hand(torch.device("cuda")) == 56 * GIB


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_layers_are_unpacked_as_far_as_spare_memory_goes(share: float) -> None:
    torch.manual_seed(0)
    fast, _ = pair_of_models(model(), "QLoRA")
    blocks = fuse(fast, [Recompute.ELEMENTWISE] * 3)
    groups: list[Any] = [group for block in blocks for group in block.groups]
    spare = int(share * sum(group.unpacked_bytes for group in groups))

    unpack_spare(blocks, spare, torch.bfloat16)

    unpacked = [group._matrix for group in groups if group._matrix is not None]
    taken = sum(2 * matrix.numel() for matrix in unpacked)
    assert taken <= spare
    left = [g.unpacked_bytes for g in groups if g._matrix is None]
    assert not left or min(left) > spare - taken
    assert all(matrix.dtype is torch.bfloat16 for matrix in unpacked)


def test_only_nf4_is_unpacked() -> None:
    torch.manual_seed(0)
    fast, _ = pair_of_models(model(), "FP8")
    blocks = fuse(fast, [Recompute.ELEMENTWISE] * 3)
    unpack_spare(blocks, 2**40, torch.bfloat16)
    assert not any(hasattr(group, "_matrix") for block in blocks for group in block.groups)
