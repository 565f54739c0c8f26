"""Chooses what each decoder layer computes again, by the memory at hand when training starts."""

from __future__ import annotations

import logging
from collections import Counter

import torch
from torch import nn

from latticeforge_trainer.contract import Method, Recompute, TrainConfig
from latticeforge_trainer.estimate.activations import Choice, choose, layer_memory
from latticeforge_trainer.estimate.shapes import ModelShape, model_shape
from latticeforge_trainer.models.blocks import Block
from latticeforge_trainer.models.fused import decoder_layers, is_fusible
from latticeforge_trainer.models.linears import Nf4Group
from latticeforge_trainer.training.head import LOGITS_AT_ONCE
from latticeforge_trainer.training.loss import TargetLoss

log = logging.getLogger(__name__)

MARGIN = 0.04
"""Share of the device's memory that is planned for nothing: fragments, libraries' own buffers."""

UNFUSED = 2
"""How many times as much a layer keeps that runs as transformers wrote it."""


def choose_recompute(
    config: TrainConfig, loss: TargetLoss, tokens: int, *, accumulates: bool
) -> Choice:
    """What each decoder layer computes again.

    Args:
        config: The step; a mode that it names is taken for all layers.
        loss: The loss module, its optimizer made, nothing trained yet.
        tokens: Of a micro-batch.
        accumulates: Whether a step has several micro-batches, so that gradients of those before
            stand beside what a forward keeps.
    """
    layers = decoder_layers(loss.model)
    asked = config.runtime.strategy.recompute
    device = next(loss.parameters()).device
    if asked is not Recompute.AUTO:
        return Choice([asked] * len(layers), 0)
    if device.type != "cuda":
        return Choice([Recompute.ELEMENTWISE] * len(layers), 0)
    text = loss.causal.config.get_text_config()
    shape = model_shape(text.to_dict())
    if shape is None or shape.sparse_layers:
        log.info(
            "%s: what its layers keep is not known, so each is computed again", text.model_type
        )
        return Choice([Recompute.LAYERS] * len(layers), 0)
    factor = 1 if all(map(is_fusible, layers)) else UNFUSED
    budget = bytes_at_hand(device) - bytes_to_come(config, loss, accumulates=accumulates)
    budget -= bytes_of_head(shape, tokens, trained=config.payload.lora is None)
    quantized = config.payload.method is Method.QLORA
    choice = choose(layer_memory(shape), len(layers), tokens * factor, budget, most=not quantized)
    counts = Counter(mode.value for mode in choice.modes)
    said = ", ".join(f"{mode} in {count}" for mode, count in counts.items())
    log.info("computed again in backward: %s of %d layers", said, len(layers))
    return choice


def unpack_spare(blocks: list[Block], spare: int, dtype: torch.dtype) -> None:
    """Keep NF4 layers dequantized as far as spare memory goes: they are for every product else."""
    groups = [g for block in blocks for g in block.groups if isinstance(g, Nf4Group)]
    for group in groups:
        if group.unpacked_bytes > spare:
            continue
        group.unpack(dtype)
        spare -= group.unpacked_bytes


def bytes_at_hand(device: torch.device) -> int:
    """What can still be allocated on a GPU, less the margin."""
    free, total = torch.cuda.mem_get_info(device)
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(free + cached - MARGIN * total)


def bytes_to_come(config: TrainConfig, loss: nn.Module, *, accumulates: bool) -> int:
    """What the first step will add for moments, and for gradients that are there in forward.

    With one micro-batch a step, a layer's gradients come as what it kept goes.
    """
    count = sum(p.numel() for p in loss.parameters() if p.requires_grad)
    exact = config.payload.optimizer_states == "fp32"
    states = 8 if exact else 4.25  # two moments; or in 8 bits, with scales and the weights' rest
    return int(count * (states + (4 if accumulates else 0)))


def bytes_of_head(shape: ModelShape, tokens: int, *, trained: bool) -> int:
    """What the head and the loss take: their input and its gradient, logits, and dW if trained."""
    logits = min(LOGITS_AT_ONCE, tokens * shape.vocabulary)
    gradient = 6 * shape.vocabulary * shape.hidden if trained else 0
    return 2 * (2 * tokens * shape.hidden + logits) + gradient
