"""Chooses what each decoder layer computes again, by the memory at hand when training starts."""

from __future__ import annotations

import logging
from collections import Counter

import torch
from torch import nn

from latticeforge_trainer.contract import Recompute, TrainConfig
from latticeforge_trainer.estimate.activations import Choice, choose, layer_memory
from latticeforge_trainer.estimate.shapes import model_shape
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


def choose_recompute(config: TrainConfig, loss: TargetLoss, tokens: int) -> Choice:
    """What each decoder layer computes again.

    Args:
        config: The step; a mode that it names is taken for all layers.
        loss: The loss module, its optimizer made, nothing trained yet.
        tokens: Of a micro-batch.
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
    head = 2 * (2 * tokens * shape.hidden + min(LOGITS_AT_ONCE, tokens * shape.vocabulary))
    budget = bytes_at_hand(device) - bytes_to_come(config, loss) - head
    quantized = config.payload.method.value == "QLoRA"
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


def bytes_to_come(config: TrainConfig, loss: nn.Module) -> int:
    """What the first step will add for gradients and moments."""
    count = sum(p.numel() for p in loss.parameters() if p.requires_grad)
    moments = 8 if config.payload.optimizer_states == "fp32" else 5  # int8: with the weights' rest
    return count * (4 + moments)
