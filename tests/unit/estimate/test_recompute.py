"""What `auto` chooses, by what is at hand and what the first step will add."""

from __future__ import annotations

from typing import Any

import pytest

from latticeforge_trainer.contract import LoRASettings, Method, Recompute, TrainPayload
from latticeforge_trainer.estimate import recompute
from latticeforge_trainer.estimate.activations import Choice, choose, layer_memory
from latticeforge_trainer.estimate.recompute import bytes_of_head, bytes_to_come, choose_modes
from latticeforge_trainer.estimate.shapes import ModelShape, model_shape

FIELDS = {
    "model_type": "qwen2",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
EXPERTS = {
    "model_type": "mixtral",
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
}


def shape(**fields: Any) -> ModelShape:
    found = model_shape(FIELDS | fields)
    assert found is not None
    return found


def payload(method: Method = Method.LORA, **fields: Any) -> TrainPayload:
    lora = LoRASettings() if method.is_adapter else None
    sizes: dict[str, Any] = {"sequence_length": 1, "global_batch_tokens": 1}
    return TrainPayload(method=method, lora=lora, learning_rate=1, **sizes, **fields)


def chosen(of: TrainPayload, at_hand: int, *, tokens: int = 100, fused: bool = True) -> Choice:
    more: dict[str, Any] = {"trained": 1000, "accumulates": True}
    return choose_modes(shape(), of, tokens=tokens, at_hand=at_hand, fused=fused, **more)


@pytest.mark.parametrize("at_hand", [0, 200_000, 400_000, 10**6])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("method", list(Method))
def test_layers_may_keep_what_is_at_hand_less_what_will_be_taken(
    method: Method, fused: bool, at_hand: int
) -> None:
    # Moments and standing gradients of what is trained; hidden states, their gradients and logits;
    # the head's own gradient in 32 bits and in 16.
    budget = at_hand - 12_000 - 2 * (2 * 100 * 64 + 100 * 96)
    budget -= 6 * 96 * 64 if method is Method.FULL else 0
    rows = 100 if fused else 200
    most = method is not Method.QLORA
    expected = choose(layer_memory(shape()), 3, rows, budget, most=most)
    assert chosen(payload(method), at_hand, fused=fused) == expected


def test_layers_with_experts_are_computed_again() -> None:
    choice = choose_modes(
        shape(**EXPERTS),
        payload(),
        tokens=1,
        at_hand=10**12,
        trained=1,
        accumulates=False,
        fused=False,
    )
    assert choice == Choice([Recompute.LAYERS] * 3, 0)


@pytest.mark.parametrize(
    ("states", "accumulates", "each"),
    [("fp32", False, 8), ("fp32", True, 12), ("int8", False, 4.25), ("int8", True, 8.25)],
)
def test_moments_and_standing_gradients_are_still_to_come(
    states: str, accumulates: bool, each: float
) -> None:
    of = payload(Method.FULL, optimizer_states=states)
    assert bytes_to_come(of, 1000, accumulates=accumulates) == 1000 * each


def test_there_are_no_more_logits_than_tokens_ask_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recompute, "LOGITS_AT_ONCE", 5000)
    assert bytes_of_head(shape(), 2, trained=False) == 2 * (2 * 2 * 64 + 2 * 96)
    assert bytes_of_head(shape(), 100, trained=False) == 2 * (2 * 100 * 64 + 5000)
