"""Packed attention in every architecture: the samples' own losses and gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.nn import functional
from transformers import AutoModelForCausalLM

from latticeforge_trainer.errors import UserError
from latticeforge_trainer.models.documents import Boundaries
from latticeforge_trainer.models.packed import use_packed_attention
from latticeforge_trainer.training.batches import MicroBatch
from latticeforge_trainer.training.loss import TargetLoss, check_packing

COMMON = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
WINDOW = 4
"""Shorter than the samples, so that it is felt."""
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
QWEN2_WINDOW = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}
QWEN2_MOE = {**EXPERTS, "shared_expert_intermediate_size": 16}

ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("LlamaConfig", {}),
    "Qwen2": ("Qwen2Config", {}),
    "Qwen2, window in one layer": ("Qwen2Config", QWEN2_WINDOW),
    "Qwen3": ("Qwen3Config", {}),
    "Mistral": ("MistralConfig", {"sliding_window": WINDOW}),
    "Mixtral": ("MixtralConfig", {"num_local_experts": 4, "sliding_window": WINDOW}),
    "Qwen2-MoE": ("Qwen2MoeConfig", QWEN2_MOE),
    "Qwen2-MoE, window in one layer": ("Qwen2MoeConfig", {**QWEN2_MOE, **QWEN2_WINDOW}),
    "Qwen3-MoE": ("Qwen3MoeConfig", EXPERTS),
    "Gemma": ("GemmaConfig", {}),
    "Gemma 2": (
        "Gemma2Config",
        {"sliding_window": WINDOW, "attn_logit_softcapping": 0.1, "query_pre_attn_scalar": 2},
    ),
    "Gemma 3": ("Gemma3TextConfig", {"sliding_window": WINDOW, "sliding_window_pattern": 2}),
    "Phi-3": ("Phi3Config", {"sliding_window": WINDOW, "head_dim": 8}),
}
LENGTHS = ((5, 11, 1), (9, 8))


def tiny(name: str) -> Any:
    """A model of an architecture, with weights large enough to attend by."""
    kind, options = ARCHITECTURES[name]
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**{**COMMON, **options, "attn_implementation": "eager"})
    make: Any = AutoModelForCausalLM  # untyped
    model = make.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(8)
    return model


def packed_rows() -> tuple[MicroBatch, list[torch.Tensor]]:
    """Samples of different lengths in two rows, and the samples."""
    samples = [[torch.randint(1, 60, (n,)) for n in row] for row in LENGTHS]
    rows = torch.stack([torch.cat(row) for row in samples])
    positions = torch.stack([torch.cat([torch.arange(len(s)) for s in row]) for row in samples])
    learned = (positions.flatten() > 0).nonzero().squeeze(1)
    targets = rows.flatten()[learned]
    batch = MicroBatch(rows, positions, Boundaries.of(positions), learned - 1, targets)
    return batch, [sample for row in samples for sample in row]


def alone(model: Any, sample: torch.Tensor) -> torch.Tensor:
    """A sample's summed loss by transformers' plain attention."""
    logits = model(sample[None], use_cache=False).logits[0, :-1]
    return functional.cross_entropy(logits, sample[1:], reduction="sum")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_packed_samples_have_the_loss_and_gradients_that_each_has_alone(name: str) -> None:
    model = tiny(name)
    parameters = [p for p in model.parameters() if p.requires_grad]
    batch, samples = packed_rows()
    plain = torch.stack([alone(model, sample) for sample in samples if len(sample) > 1]).sum()
    wanted = torch.autograd.grad(plain, parameters)

    loss = TargetLoss(model)(batch)

    assert loss.item() == pytest.approx(plain.item(), rel=1e-5)
    found = torch.autograd.grad(loss, parameters)
    for mine, theirs in zip(found, wanted, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-4 * float(theirs.abs().max() + 1e-3))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_packing_is_found_safe_in_every_architecture(name: str) -> None:
    check_packing(TargetLoss(tiny(name)), torch.device("cpu"), 64)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")
@pytest.mark.parametrize("name", ["Mistral", "Gemma 3"])
def test_a_layer_computed_again_in_backward_keeps_samples_apart(name: str) -> None:
    model, (batch, _) = tiny(name), packed_rows()
    module = TargetLoss(model)
    parameters = list(model.parameters())
    kept = torch.autograd.grad(module(batch), parameters)
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})

    again = torch.autograd.grad(module(batch), parameters)

    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))


def test_attention_is_of_the_process_not_of_the_saved_model(tmp_path: Path) -> None:
    model = tiny("Llama")
    use_packed_attention(model)

    model.config.save_pretrained(tmp_path)

    assert "latticeforge" not in (tmp_path / "config.json").read_text()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"attention_dropout": 0.1}, "drops attention weights"),
        ({"is_causal": False}, "lets tokens see those behind them"),
        ({"attention_mask": torch.zeros(2, 1, 17, 17)}, "brings a mask"),
        ({"s_aux": torch.zeros(4)}, "adds s_aux to its scores"),
        ({"boundaries": None}, "does not hand on where documents begin"),
    ],
)
def test_what_packed_attention_cannot_do_is_refused(change: dict[str, Any], sentence: str) -> None:
    model, (batch, _) = tiny("Llama").train(), packed_rows()
    use_packed_attention(model)
    options = {"boundaries": batch.boundaries, "use_cache": False, **change}
    dropout = options.pop("attention_dropout", 0.0)
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = dropout

    with pytest.raises(UserError, match=sentence):
        model.get_decoder()(input_ids=batch.input_ids, position_ids=batch.position_ids, **options)


def test_layers_that_need_a_mask_are_refused() -> None:
    model = tiny("Qwen2")
    model.config.layer_types = ["full_attention", "chunked_attention"]

    with pytest.raises(UserError, match="layers of chunked_attention"):
        use_packed_attention(model)


def test_an_architecture_with_attention_of_its_own_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny("Llama")
    monkeypatch.setattr(type(model), "_can_set_attn_implementation_cached_value", False, False)

    with pytest.raises(UserError, match="computes its attention itself"):
        use_packed_attention(model)
