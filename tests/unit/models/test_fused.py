"""Models on the fast paths, against transformers' own layers on each document alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from tests.fixtures.fast_paths import packed_documents, pair_of_models, relative_error
from torch.nn import functional
from transformers import AutoModelForCausalLM

from latticeforge_trainer.contract import LoRASettings, Recompute, Table
from latticeforge_trainer.models.fused import decoder_layers, fuse, is_fusible
from latticeforge_trainer.models.linears import Concatenated, Fp8Group
from latticeforge_trainer.training.batches import MicroBatch
from latticeforge_trainer.training.loss import TargetLoss

COMMON = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
WINDOW = 4
"""Shorter than the documents, so that it is felt."""
FUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("LlamaConfig", {}),
    "Llama with biases": ("LlamaConfig", {"attention_bias": True, "mlp_bias": True}),
    "Qwen2": ("Qwen2Config", {}),
    "Qwen3": ("Qwen3Config", {"head_dim": 32}),
    "Mistral": ("MistralConfig", {"sliding_window": WINDOW}),
    "Qwen2, window in two layers": (
        "Qwen2Config",
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
    "Llama with a window that it never used": ("LlamaConfig", {"sliding_window": WINDOW}),
}
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "Gemma 2": ("Gemma2Config", {"sliding_window": WINDOW, "head_dim": 16}),
    "Mixtral": ("MixtralConfig", {"num_local_experts": 4, "sliding_window": WINDOW}),
    "Qwen2-MoE": (
        "Qwen2MoeConfig",
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
        },
    ),
    "Phi-3": ("Phi3Config", {"sliding_window": WINDOW}),
}
LENGTHS = ((5, 11, 1), (9, 8))
MODES = ["nothing", "elementwise", "layers", "offload"]
LIMITS = {"FP8": (0.1, 0.3)}
"""Largest relative errors of the hidden states and of a gradient: FP8 rounds both operands of every
product, through three layers; everything else is 32 bits in another order."""


def tiny(name: str, **changes: Any) -> Any:
    """A model of an architecture, with weights large enough to attend by."""
    kind, options = (FUSED | OTHERS)[name]
    fields = {**COMMON, **options, "attn_implementation": "eager", **changes}
    make: Any = AutoModelForCausalLM  # untyped
    model = make.from_config(getattr(transformers, kind)(**fields), dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(4)
        else:  # norms of 1 and biases of 0 would hide much
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return model


def plain_results(model: Any, documents: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Hidden states, summed loss and gradients of documents alone, by transformers."""
    causal = getattr(model, "get_base_model", lambda: model)()
    hidden, losses = [], []
    for document in documents:
        states = causal.get_decoder()(input_ids=document[None], use_cache=False)
        hidden.append(states.last_hidden_state[0])
        logits = causal.lm_head(hidden[-1][:-1])
        if cap := getattr(causal.config, "final_logit_softcapping", None):
            logits = torch.tanh(logits / cap) * cap
        losses.append(functional.cross_entropy(logits, document[1:], reduction="sum"))
    loss = torch.stack([loss for loss in losses if loss.isfinite()]).sum()
    return torch.cat(hidden), loss, *torch.autograd.grad(loss, trained(model))


def fast_results(model: Any, batch: MicroBatch) -> tuple[torch.Tensor, ...]:
    """The same of documents in rows, by what `fuse` has put under the model."""
    seen: list[torch.Tensor] = []
    module = TargetLoss(model)
    hook = module.causal.get_decoder().register_forward_hook(
        lambda _module, _args, output: seen.append(output.last_hidden_state.flatten(0, 1))
    )
    loss = module(batch)
    hook.remove()
    return seen[0], loss, *torch.autograd.grad(loss, trained(model))


def trained(model: Any) -> list[torch.Tensor]:
    return [p for p in model.parameters() if p.requires_grad]


def assert_alike(
    found: tuple[torch.Tensor, ...], expected: tuple[torch.Tensor, ...], method: str
) -> None:
    hidden, gradient = LIMITS.get(method, (1e-5, 1e-4))
    assert len(found) == len(expected) > 4
    assert relative_error(found[0], expected[0]) < hidden
    assert relative_error(found[1], expected[1]) < hidden
    errors = [relative_error(a, b) for a, b in zip(found[2:], expected[2:], strict=True)]
    assert max(errors) < gradient


@pytest.mark.parametrize("method", ["Full", "LoRA", "QLoRA", "FP8"])
@pytest.mark.parametrize("name", FUSED)
def test_a_fused_model_computes_what_transformers_does(name: str, method: str) -> None:
    torch.manual_seed(0)
    fast, plain = pair_of_models(tiny(name), method, LoRASettings(rank=5, alpha=8))
    batch, documents = packed_documents(LENGTHS, 96)
    expected = plain_results(plain, documents)
    for mode in MODES:
        blocks = fuse(fast, [Recompute(mode)] * 3)
        assert len(blocks) == 3
        assert_alike(fast_results(fast, batch), expected, method)


@pytest.mark.parametrize("method", ["LoRA", "FP8"])
@pytest.mark.parametrize("name", OTHERS)
def test_another_architecture_computes_what_transformers_does(name: str, method: str) -> None:
    torch.manual_seed(0)
    targets = ["q_proj", "v_proj", "o_proj"] if name == "Mixtral" else None
    settings = LoRASettings(rank=5, alpha=8, target_modules=targets)
    fast, plain = pair_of_models(tiny(name), method, settings)
    batch, documents = packed_documents(LENGTHS, 96)
    expected = plain_results(plain, documents)
    for mode in ["nothing", "layers"]:
        model = copy.deepcopy(fast)
        assert fuse(model, [Recompute(mode)] * 3) == []
        assert_alike(fast_results(model, batch), expected, method)


TARGETS = [["o_proj"], ["down_proj", "q_proj"], ["k_proj", "o_proj", "up_proj"], ["gate_proj"]]


@pytest.mark.parametrize("method", ["LoRA", "QLoRA", "FP8"])
@pytest.mark.parametrize("targets", TARGETS, ids="+".join)
@pytest.mark.parametrize("name", ["Qwen2", "Phi-3"])
def test_layers_without_an_adapter_stay_in_the_chain(
    name: str, method: str, targets: list[str]
) -> None:
    torch.manual_seed(0)
    if name == "Phi-3":
        targets = ["qkv_proj"] if "q_proj" in targets else ["down_proj"]
    settings = LoRASettings(rank=5, alpha=8, target_modules=targets)
    fast, plain = pair_of_models(tiny(name), method, settings)
    batch, documents = packed_documents(LENGTHS, 96)
    fuse(fast, [Recompute.ELEMENTWISE] * 3)
    assert_alike(fast_results(fast, batch), plain_results(plain, documents), method)


def test_a_tied_head_gets_the_gradients_of_both_its_uses() -> None:
    torch.manual_seed(0)
    fast, plain = pair_of_models(tiny("Qwen2", tie_word_embeddings=True), "Full")
    batch, documents = packed_documents(LENGTHS, 96)
    expected = plain_results(plain, documents)
    fuse(fast, [Recompute.ELEMENTWISE] * 3)
    assert_alike(fast_results(fast, batch), expected, "Full")


@pytest.mark.parametrize("method", ["LoRA", "QLoRA", "FP8"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("tables", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"]])
def test_embedding_and_head_are_trained_beside_an_adapter(
    tables: list[Table], tied: bool, method: str
) -> None:
    torch.manual_seed(0)
    settings = LoRASettings(rank=5, alpha=8, modules_to_save=tables)
    fast, plain = pair_of_models(tiny("Qwen2", tie_word_embeddings=tied), method, settings)
    batch, documents = packed_documents(LENGTHS, 96)
    expected = plain_results(plain, documents)
    assert sum(p.shape == (96, 64) for p in trained(fast)) == (1 if tied else len(tables))
    for mode in MODES:
        fuse(fast, [Recompute(mode)] * 3)
        found = fast_results(fast, batch)
        assert_alike(found, expected, method)
        assert "LinearCrossEntropy" in type(found[1].grad_fn).__name__


def test_capped_logits_have_a_trained_head_too() -> None:
    torch.manual_seed(0)
    settings = LoRASettings(rank=5, alpha=8, modules_to_save=["lm_head"])
    fast, plain = pair_of_models(tiny("Gemma 2", tie_word_embeddings=True), "LoRA", settings)
    batch, documents = packed_documents(LENGTHS, 96)
    expected = plain_results(plain, documents)
    fuse(fast, [Recompute.LAYERS] * 3)
    assert_alike(fast_results(fast, batch), expected, "LoRA")


@pytest.mark.parametrize("name", ["Qwen2", "Qwen3", "Phi-3"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_what_is_computed_again_gives_the_same_bits(name: str, dropout: float) -> None:
    torch.manual_seed(0)
    settings = LoRASettings(rank=4, alpha=8, dropout=dropout)
    model, _ = pair_of_models(tiny(name), "LoRA", settings)
    batch, _ = packed_documents(LENGTHS, 96)
    results = []
    for modes in [["elementwise"] * 3, ["layers"] * 3, ["offload", "layers", "elementwise"]]:
        fast = copy.deepcopy(model).train()
        fuse(fast, list(map(Recompute, modes)))
        torch.manual_seed(1)
        results.append(fast_results(fast, batch))
    first, *others = results
    assert all(torch.equal(a, b) for o in others for a, b in zip(first, o, strict=True))


def test_dropout_is_drawn_anew_in_every_step_and_not_in_evaluation() -> None:
    torch.manual_seed(0)
    model, _ = pair_of_models(tiny("Qwen2"), "LoRA", LoRASettings(rank=4, alpha=8, dropout=0.3))
    batch, _ = packed_documents(LENGTHS, 96)
    fuse(model, [Recompute.LAYERS] * 3)
    drawn = [fast_results(model.train(), batch)[1] for _ in range(2)]
    whole = [fast_results(model.eval(), batch)[1] for _ in range(2)]
    assert len({loss.item() for loss in [*drawn, *whole]}) == 3


def test_a_gradient_is_copied_once_on_its_way_through_all_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    model, _ = pair_of_models(tiny("Qwen2"), "LoRA")
    batch, _ = packed_documents(LENGTHS, 96)
    fuse(model, [Recompute.ELEMENTWISE] * 3)
    copies, copy_ = [], Concatenated.as_gradient

    def counted(group: Concatenated, dy: torch.Tensor) -> torch.Tensor:
        copies.append(dy)
        return copy_(group, dy)

    monkeypatch.setattr(Concatenated, "as_gradient", counted)
    fast_results(model, batch)
    assert len(copies) == 1  # the last norm's, which knows of no group


def test_an_fp8_base_is_one_tensor_for_each_group() -> None:
    torch.manual_seed(0)
    model, _ = pair_of_models(tiny("Qwen2"), "FP8")
    (block, *_) = fuse(model, [Recompute.NOTHING] * 3)
    for group in block.groups:
        assert isinstance(group, Fp8Group)
        starts = {layer.weight.untyped_storage().data_ptr() for layer in group.layers}
        assert len(starts) == 1


@pytest.mark.parametrize(("name", "fusible"), [("Llama", True), ("Gemma 2", False)])
def test_layers_are_known_by_what_they_compute(name: str, fusible: bool) -> None:
    assert all(is_fusible(layer) is fusible for layer in decoder_layers(tiny(name)))


def test_another_activation_is_not_fused() -> None:
    torch.manual_seed(0)
    fast, plain = pair_of_models(tiny("Llama", hidden_act="gelu"), "LoRA")
    batch, documents = packed_documents(LENGTHS, 96)
    assert fuse(fast, [Recompute.LAYERS] * 3) == []
    assert_alike(fast_results(fast, batch), plain_results(plain, documents), "LoRA")


@pytest.mark.parametrize("name", ["Llama", "Qwen2", "Qwen3", "Mistral"])
def test_the_last_norm_is_ours_as_well(name: str) -> None:
    torch.manual_seed(0)
    model = tiny(name)
    norm, x = model.get_decoder().norm, torch.randn(2, 3, 64)
    before = norm(x)
    fuse(model, [Recompute.ELEMENTWISE] * 3)
    after = norm(x)
    assert relative_error(after, before) < 1e-6
    nodes = {type(node).__name__ for node, _ in after.grad_fn.next_functions}
    assert {type(after.grad_fn).__name__, *nodes} & {"NormBackward"}
