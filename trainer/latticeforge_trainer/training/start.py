"""The model that a stage starts from, made ready for its method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from latticeforge_trainer.artifacts import Store
from latticeforge_trainer.contract import Method, Strategy, TrainConfig, TrainPayload
from latticeforge_trainer.errors import UserError
from latticeforge_trainer.estimate.base_model import why_untrainable
from latticeforge_trainer.estimate.training import conflict
from latticeforge_trainer.models.loading import (
    ADAPTER_FOLDER,
    load_weights,
    quantization_of,
    source_folder,
)
from latticeforge_trainer.models.streaming import Report

FP8_CAPABILITY = (8, 9)
"""Of the first GPUs with 8-bit products: Ada, then Hopper."""


def starting_folder(config: TrainConfig, store: Store) -> Path:
    """The folder of the model that the stage starts from."""
    return source_folder(store, config.runtime.base_path, config.runtime.upstream_model)


def starting_model(
    config: TrainConfig,
    store: Store,
    device: torch.device,
    ds_config: dict[str, Any],
    report: Report,
) -> nn.Module:
    """Load the stage's model: whole, or frozen with an adapter on top.

    Args:
        config: The step.
        store: Where the model lies.
        device: Where it goes; under ZeRO-3, this process's part of it.
        ds_config: DeepSpeed's configuration.
        report: Called with the bytes that are loaded, and those that will be.

    Raises:
        UserError: Method and model do not go together.
    """
    payload, strategy = config.payload, config.runtime.strategy
    folder = starting_folder(config, store)
    refuse_mismatch(payload, quantization_of(folder), strategy)
    base_dtype = payload.lora.base_dtype if payload.lora else None
    if base_dtype is not None:
        refuse_without_fp8(device)
    dtype = torch.bfloat16 if strategy.precision == "bf16" else torch.float32
    model = load_weights(
        folder,
        dtype=dtype,
        quantize="nf4" if payload.method is Method.QLORA else base_dtype,
        device=device,
        partition=ds_config if strategy.zero_stage == 3 else None,
        report=report,
    )
    return model if payload.lora is None else _with_adapter(model, config, store)


def refuse_mismatch(payload: TrainPayload, quantization: str | None, strategy: Strategy) -> None:
    """Refuse what cannot be trained.

    Raises:
        UserError: With what to do instead.
    """
    why = conflict(payload, strategy.zero_stage, strategy.offload)
    if why is not None:
        raise UserError(why)
    why = why_untrainable(quantization, payload.method)
    if why is not None:
        raise UserError(f"the base {why}")


def refuse_without_fp8(device: torch.device) -> None:
    """Refuse a GPU without 8-bit products; on a CPU they are imitated.

    Raises:
        UserError: With what to do instead.
    """
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < FP8_CAPABILITY:
        raise UserError(
            f"lora.baseDtype FP8 needs a GPU with 8-bit products, and this is an "
            f"{torch.cuda.get_device_name(device)}: use H100, H200 or L40S, or leave baseDtype out"
        )


def _with_adapter(model: Any, config: TrainConfig, store: Store) -> nn.Module:
    from latticeforge_trainer.models import adapters  # noqa: PLC0415  (two seconds of PEFT)

    payload, upstream = config.payload, config.runtime.upstream_adapter
    torch.manual_seed(payload.seed)  # for a fresh adapter's random half
    if payload.lora is None or payload.continue_adapter != (upstream is not None):
        raise UserError(
            "continueAdapter and an upstream adapter come together: merge the previous stage's "
            "adapter (handoff Merge) to train a fresh one on top of it"
        )
    if upstream is None:
        return adapters.add_adapter(model, payload.lora)
    folder = store.require(upstream, "the adapter to continue") / ADAPTER_FOLDER
    return adapters.continue_adapter(model, folder, payload.lora)
