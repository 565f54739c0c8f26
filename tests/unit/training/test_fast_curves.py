"""Fifty steps on the fast paths and on transformers' and PEFT's own layers: the same losses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.fixtures.fast_paths import packed_documents, quantize
from transformers import AutoModelForCausalLM

from latticeforge_trainer.contract import LoRASettings, Method, Recompute, TrainPayload
from latticeforge_trainer.models.adapters import add_adapter
from latticeforge_trainer.models.fused import fuse
from latticeforge_trainer.training.batches import MicroBatch
from latticeforge_trainer.training.loss import TargetLoss
from latticeforge_trainer.training.plain import PlainEngine

STEPS = 50
RATE = {Method.FULL: 3e-4, Method.LORA: 2e-3, Method.QLORA: 2e-3}
"""Small enough that rounding does not grow: by larger ones, bf16 goes elsewhere than fp32."""


def losses(folder: Path, method: Method, dtype: torch.dtype, *, fast: bool) -> list[float]:
    """The loss of every step, from the same seed."""
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    quantize(model, method)
    lora = LoRASettings(rank=4, alpha=8) if method.is_adapter else None
    if lora is not None:
        model = add_adapter(model, lora)
    payload = TrainPayload(
        method=method, lora=lora, learning_rate=1, sequence_length=32, global_batch_tokens=64
    )
    engine = PlainEngine(TargetLoss(model), payload, accumulation=1, processes=1)
    if fast:
        fuse(model, [Recompute.LAYERS, Recompute.ELEMENTWISE])
    torch.manual_seed(1)
    batches = [counting() for _ in range(STEPS)]
    found = []
    for batch in batches:
        share = engine.forward(batch, len(batch.targets))
        engine.backward(share, last=True)
        engine.update(RATE[method])
        found.append(share.item())
    return found


def counting() -> MicroBatch:
    """Documents of numbers in their order, from anywhere on."""
    batch, documents = packed_documents([(12, 20), (32,)], 16)
    rows = torch.cat([(d[0] + torch.arange(len(d))) % 16 for d in documents])
    targets = rows[batch.sources + 1]
    return replace(batch, input_ids=rows.view(2, 32), targets=targets)


@pytest.mark.parametrize("method", Method)
@pytest.mark.parametrize(
    ("dtype", "limit"), [(torch.float32, 1e-4), (torch.bfloat16, 5e-3)], ids=["fp32", "bf16"]
)
def test_the_loss_is_that_of_the_plain_path(
    method: Method, dtype: torch.dtype, limit: float, tiny_model: Path
) -> None:
    fast, plain = (losses(tiny_model, method, dtype, fast=which) for which in (True, False))

    assert plain[-1] < plain[0] - 1  # so it has learned, and could have gone another way
    apart = max(abs(a - b) / b for a, b in zip(fast, plain, strict=True))
    assert apart < limit, (apart, plain[0], plain[-1])
