"""What `auto` chooses, by what is at hand and what the first step will add."""

from __future__ import annotations

from typing import Any

import pytest

from latticeforge_trainer.contract import (
    LoRASettings,
    Method,
    Recompute,
    Strategy,
    TrainPayload,
)
from latticeforge_trainer.estimate import recompute
from latticeforge_trainer.estimate.activations import Choice, choose, layer_memory
from latticeforge_trainer.estimate.recompute import (
    bytes_gathered,
    bytes_of_head,
    choose_modes,
)
from latticeforge_trainer.estimate.shapes import ModelShape, model_shape
from latticeforge_trainer.estimate.states import bytes_to_come

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


def chosen(
    of: TrainPayload, at_hand: int, *, stage: Any = 0, fused: bool = True, plain_head: bool = True
) -> Choice:
    return choose_modes(
        shape(),
        of,
        Strategy(zero_stage=stage, processes=2),
        tokens=100,
        at_hand=at_hand,
        trained=1000,
        accumulates=True,
        fused=fused,
        plain_head=plain_head,
    )


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


def test_capped_logits_are_taken_in_32_bits_too() -> None:
    budget = 10**6 - 12_000 - (2 * 2 * 100 * 64 + 10 * 100 * 96)
    expected = choose(layer_memory(shape()), 3, 100, budget, most=True)
    assert chosen(payload(), 10**6, plain_head=False) == expected


def test_zero_3_leaves_room_for_what_it_gathers() -> None:
    at_hand = 10**9
    budget = at_hand - bytes_gathered(shape()) - (2 * 2 * 100 * 64 + 10 * 100 * 96)
    expected = choose(layer_memory(shape()), 3, 100, budget, most=True)
    assert chosen(payload(), at_hand, stage=3, plain_head=False) == expected
    # The embedding and the head, each at most what is kept; everything; 100 million ahead.
    assert bytes_gathered(shape()) > 2 * (96 * 64 + shape().parameters + 100_000_000)


def test_layers_with_experts_are_computed_again() -> None:
    choice = choose_modes(
        shape(**EXPERTS),
        payload(),
        Strategy(),
        tokens=1,
        at_hand=10**12,
        trained=1,
        accumulates=False,
        fused=False,
        plain_head=True,
    )
    assert choice == Choice([Recompute.LAYERS] * 3, 0)


@pytest.mark.parametrize(
    ("states", "stage", "accumulates", "each"),
    [
        ("fp32", 0, False, 8),
        ("fp32", 0, True, 12),
        ("int8", 0, False, 4.125),
        ("int8", 0, True, 8.125),
        ("fp32", 1, False, 4),  # of two processes
        ("fp32", 1, True, 8),
        ("fp32", 2, True, 6),
        ("int8", 2, False, 1.0625),
        ("fp32", 3, True, 0),
    ],
)
def test_moments_and_standing_gradients_are_still_to_come(
    states: str, stage: Any, accumulates: bool, each: float
) -> None:
    of = payload(Method.FULL, optimizer_states=states)
    strategy = Strategy(zero_stage=stage, processes=2)
    assert bytes_to_come(of, strategy, 16_000, accumulates=accumulates) == 16_000 * each


def test_there_are_no_more_logits_than_tokens_ask_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recompute, "LOGITS_AT_ONCE", 5000)
    assert bytes_of_head(shape(), 2, trained=False) == 2 * (2 * 2 * 64 + 2 * 96)
    assert bytes_of_head(shape(), 100, trained=False) == 2 * (2 * 100 * 64 + 5000)
