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
from latticeforge_trainer.estimate.base_model import read_base_model
from latticeforge_trainer.estimate.recompute import bytes_gathered, bytes_of_head, choose_modes
from latticeforge_trainer.estimate.states import bytes_to_come
from latticeforge_trainer.estimate.terms import total
from latticeforge_trainer.estimate.training import Setup
from latticeforge_trainer.estimate.weights import placed_adapters

FIELDS = {
    "model_type": "qwen2",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
}
GEMMA = {"model_type": "gemma2", "head_dim": 16, "final_logit_softcapping": 30.0}
MIXTRAL = {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
TOKENS = 100


def setup(
    method: Method = Method.LORA,
    *,
    config: dict[str, Any] | None = None,
    states: Any = "fp32",
    accumulation: int = 1,
    **strategy: Any,
) -> Setup:
    how = Strategy(**strategy)
    payload = TrainPayload(
        method=method,
        lora=LoRASettings() if method.is_adapter else None,
        learning_rate=1,
        optimizer_states=states,
        sequence_length=TOKENS,
        global_batch_tokens=TOKENS * accumulation * how.processes,
    )
    return Setup(read_base_model(FIELDS | (config or {})), payload, how)


def expected(of: Setup, budget: int, rows: int = TOKENS) -> Choice:
    shape = of.model.shape
    most = of.payload.method is not Method.QLORA
    return choose(layer_memory(shape), shape.layers, rows, budget, most=most)


@pytest.mark.parametrize("at_hand", [10**6, 10**7, 4 * 10**7, 10**9])
@pytest.mark.parametrize("method", list(Method))
def test_layers_may_keep_what_is_at_hand_less_what_will_be_taken(
    method: Method, at_hand: int
) -> None:
    of = setup(method, accumulation=2)
    # Moments and standing gradients; the matrices that adapters are multiplied in; hidden states
    # and their gradients, logits, and the head's own gradient in 32 bits and in 16.
    budget = at_hand - 12 * of.trained - total(placed_adapters(of, 0))
    budget -= 2 * (2 * TOKENS * 64 + TOKENS * 96)
    budget -= 6 * 96 * 64 if method is Method.FULL else 0
    assert choose_modes(of, at_hand) == expected(of, budget)


@pytest.mark.parametrize("at_hand", [10**6, 10**7])
def test_other_layers_keep_twice_as_much_and_capped_logits_are_taken_in_32_bits(
    at_hand: int,
) -> None:
    of = setup(config=GEMMA)
    budget = at_hand - 8 * of.trained - total(placed_adapters(of, 0))
    budget -= 2 * 2 * TOKENS * 64 + 10 * TOKENS * 96
    assert choose_modes(of, at_hand) == expected(of, budget, 2 * TOKENS)


@pytest.mark.parametrize("beyond", [0, 10**6, 10**7])
def test_zero_3_leaves_room_for_what_it_gathers(beyond: int) -> None:
    of = setup(zero_stage=3, processes=2)
    gathered = bytes_gathered(of)
    assert gathered > 2 * (96 * 64 + of.model.parameters.total + 100_000_000)
    budget = beyond - total(placed_adapters(of, 0)) - (2 * 2 * TOKENS * 64 + 10 * TOKENS * 96)
    assert choose_modes(of, gathered + beyond) == expected(of, budget)


def test_layers_with_experts_are_computed_again() -> None:
    assert choose_modes(setup(config=MIXTRAL), 10**12) == Choice([Recompute.LAYERS] * 3, 0)


@pytest.mark.parametrize(
    ("states", "stage", "accumulation", "each"),
    [
        ("fp32", 0, 1, 8),
        ("fp32", 0, 2, 12),
        ("int8", 0, 1, 4.125),
        ("int8", 0, 2, 8.125),
        ("fp32", 1, 1, 4),  # of two processes
        ("fp32", 1, 2, 4),
        ("fp32", 2, 2, 6),
        ("int8", 2, 1, 1.0625),
        ("fp32", 3, 2, 0),
    ],
)
def test_moments_and_standing_gradients_are_still_to_come(
    states: str, stage: int, accumulation: int, each: float
) -> None:
    of = setup(
        Method.FULL,
        states=states,
        accumulation=accumulation,
        zero_stage=stage,
        processes=2 if stage else 1,
    )
    assert bytes_to_come(of) == pytest.approx(of.trained * each, abs=4)


def test_offloaded_states_are_not_to_come() -> None:
    of = setup(Method.FULL, zero_stage=2, processes=2, offload="optimizer", accumulation=2)
    assert bytes_to_come(of) == 0


def test_there_are_no_more_logits_than_tokens_ask_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recompute, "LOGITS_AT_ONCE", 2000)
    hidden = 2 * 2 * TOKENS * 64
    assert bytes_of_head(setup()) == hidden + 2 * 2 * 20 * 96  # a piece, and the next
    monkeypatch.setattr(recompute, "LOGITS_AT_ONCE", 10**6)
    assert bytes_of_head(setup()) == hidden + 2 * TOKENS * 96
