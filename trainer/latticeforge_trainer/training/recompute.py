"""Chooses what each decoder layer computes again, by the memory at hand when training starts."""

from __future__ import annotations

import logging
from collections import Counter

import torch

from latticeforge_trainer.contract import Recompute, TrainConfig
from latticeforge_trainer.estimate.activations import Choice
from latticeforge_trainer.estimate.base_model import read_base_model
from latticeforge_trainer.estimate.recompute import choose_modes, margin
from latticeforge_trainer.estimate.shapes import model_shape
from latticeforge_trainer.estimate.training import Setup
from latticeforge_trainer.models.blocks import Block
from latticeforge_trainer.models.fused import decoder_layers
from latticeforge_trainer.models.linears import Nf4Group
from latticeforge_trainer.training.loss import TargetLoss

log = logging.getLogger(__name__)


def choose_recompute(config: TrainConfig, loss: TargetLoss) -> Choice:
    """What each decoder layer computes again.

    Args:
        config: The step; a mode that it names is taken for all layers.
        loss: The loss module, its optimizer made, nothing trained yet.
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
    model = read_base_model(text.to_dict())
    setup = Setup(model, config.payload, config.runtime.strategy)
    choice = choose_modes(setup, bytes_at_hand(device))
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
    return free + cached - margin(total)
