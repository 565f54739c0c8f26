"""Writes what training leaves behind: a 16-bit model, or an adapter in PEFT's format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from latticeforge_trainer.models.shards import ShardWriter, copy_companions
from latticeforge_trainer.training.engine import Engine


def export_model(engine: Engine, source: Path, target: Path | None) -> None:
    """Write the trained model in 16 bits, gathering one parameter at a time; a collective.

    Args:
        engine: The engine.
        source: Folder of the model that training started from, for its tokenizer.
        target: Where to; None on the processes that do not write.
    """
    model = engine.loss.causal
    writer = None
    if target is not None:
        copy_companions(source, target)
        model.config.dtype = torch.bfloat16
        model.config.save_pretrained(target)
        writer = ShardWriter(target)
    # Tied weights are one parameter, and so appear once, under the first of their names.
    for name, parameter in model.named_parameters():
        with engine.gathered([parameter]):
            if writer is not None:
                writer.add(name, parameter.detach().to("cpu", torch.bfloat16, copy=True))
    if writer is not None:
        kept = model.state_dict(keep_vars=True).keys()  # buffers that are computed are not kept
        for name, buffer in model.named_buffers():
            if name in kept:
                writer.add(name, buffer.detach().cpu())
        writer.finish()


def export_adapter(engine: Engine, source: Path, target: Path | None) -> None:
    """Write the trained adapter in PEFT's format, in the base's own precision; a collective.

    Args:
        engine: The engine.
        source: Folder of the model under the adapter, for its tokenizer and name.
        target: Where to; None on the processes that do not write.
    """
    from latticeforge_trainer.models.adapters import save_adapter  # noqa: PLC0415  (loads PEFT)

    weights = {}
    # Under both names where two are tied, as PEFT writes and reads them.
    for name, parameter in engine.loss.model.named_parameters(remove_duplicate=False):
        if not parameter.requires_grad:
            continue
        with engine.gathered([parameter]):
            if target is not None:
                dtype = engine.loss.causal.dtype
                weights[name] = parameter.detach().to("cpu", dtype, copy=True)
    if target is not None:
        copy_companions(source, target)
        model: Any = engine.loss.model  # PEFT's wrapper
        save_adapter(model, weights, target, source.name)
