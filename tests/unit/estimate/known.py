"""Configs of known models, and runs of them."""

from __future__ import annotations

from typing import Any

from latticeforge_trainer.contract import LoRASettings, Method, Strategy, TrainPayload
from latticeforge_trainer.estimate.base_model import read_base_model
from latticeforge_trainer.estimate.chips import chip
from latticeforge_trainer.estimate.training import Run


def config(kind: str, vocabulary: int, hidden: int, intermediate: int, **fields: Any) -> Any:
    sizes = {"vocab_size": vocabulary, "hidden_size": hidden, "intermediate_size": intermediate}
    return {"model_type": kind} | sizes | fields


def layers(number: int, heads: int, kv_heads: int) -> dict[str, int]:
    return {
        "num_hidden_layers": number,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
    }


UNTIED = {"tie_word_embeddings": False}
MODELS = {
    "Qwen2.5-0.5B": config(
        "qwen2", 151_936, 896, 4864, **layers(24, 14, 2), tie_word_embeddings=True
    ),
    "Qwen2.5-7B": config("qwen2", 152_064, 3584, 18_944, **layers(28, 28, 4), **UNTIED),
    "Qwen2.5-72B": config("qwen2", 152_064, 8192, 29_568, **layers(80, 64, 8), **UNTIED),
    "Llama-3.1-8B": config("llama", 128_256, 4096, 14_336, **layers(32, 32, 8), **UNTIED),
    "Llama-3.1-70B": config("llama", 128_256, 8192, 28_672, **layers(80, 64, 8), **UNTIED),
    "Mistral-7B": config("mistral", 32_000, 4096, 14_336, **layers(32, 32, 8), **UNTIED),
    "Gemma-2-9B": config("gemma2", 256_000, 3584, 14_336, **layers(42, 16, 8), head_dim=256),
    "Mixtral-8x7B": config(
        "mixtral",
        32_000,
        4096,
        14_336,
        **layers(32, 32, 8),
        num_local_experts=8,
        num_experts_per_tok=2,
    ),
    "Qwen3-30B-A3B": config(
        "qwen3_moe",
        151_936,
        2048,
        6144,
        **layers(48, 32, 4),
        head_dim=128,
        num_experts=128,
        num_experts_per_tok=8,
        moe_intermediate_size=768,
        **UNTIED,
    ),
}


def run(
    model: str,
    method: str,
    micro_batch: int = 1,
    *,
    sequence: int = 4096,
    accelerator: str = "H200",
    states: str = "",
    accumulation: int = 1,
    lora: dict[str, Any] | None = None,
    **strategy: Any,
) -> Run:
    """A run; method `FP8` is LoRA over an FP8 base."""
    fp8 = {"base_dtype": "fp8"} if method == "FP8" else {}
    of = Method.LORA if fp8 else Method(method)
    how = Strategy(micro_batch=micro_batch, **strategy)
    world = how.processes * how.nodes
    payload = TrainPayload.model_validate(
        {
            "method": of,
            "learning_rate": 1e-5,
            "sequence_length": sequence,
            "global_batch_tokens": sequence * micro_batch * world * accumulation,
            "lora": LoRASettings(**(fp8 | (lora or {}))) if of.is_adapter else None,
            "optimizer_states": states or "fp32",
        }
    )
    return Run(read_base_model(MODELS[model]), payload, how, chip(accelerator))
