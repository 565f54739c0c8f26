"""Puts the fast paths under a transformers model, whose modules and names stay as they are.

    model = fuse(model, [Recompute.ELEMENTWISE] * layers)

Decoder layers shaped like Llama's run as `models.blocks`. In other architectures every adapter runs
through `models.linears`, and Liger's kernels replace what they know of the rest.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import nn

from latticeforge_trainer.contract import Recompute
from latticeforge_trainer.models import blocks, linears
from latticeforge_trainer.models.fp8 import Fp8Linear
from latticeforge_trainer.models.recompute import run_layer

log = logging.getLogger(__name__)

TRAINED_COPY = ".modules_to_save."
"""In the names of what PEFT trains in full beside an adapter."""


def causal_of(model: nn.Module) -> Any:
    """The transformers model, whatever is wrapped around it."""
    unwrap: Any = getattr(model, "get_base_model", None)
    return unwrap() if unwrap else model


def trained_copy(module: Any) -> Any:
    """What PEFT trains in full in a module's place; the module itself if there is none."""
    copies = getattr(module, "modules_to_save", None)
    return module if copies is None else copies[module.active_adapter]


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The decoder layers of a causal language model, or of a PEFT model around one."""
    return list(causal_of(model).get_decoder().layers)


def is_fusible(layer: nn.Module) -> bool:
    """Whether a decoder layer computes what `models.blocks` does."""
    if type(layer).__name__ not in blocks.LAYERS:
        return False
    mlp: Any = layer.mlp
    return type(mlp.act_fn).__name__ in {"SiLU", "SiLUActivation"}


def fuse(model: nn.Module, modes: Sequence[Recompute]) -> list[blocks.Block]:
    """Replace the forward of every decoder layer and adapter by the fast paths.

    Args:
        model: Ready to train: adapters on top, what is frozen frozen.
        modes: What each decoder layer computes again; none is AUTO.

    Returns:
        The decoder layers that run as blocks.
    """
    layers = decoder_layers(model)
    if not all(map(is_fusible, layers)):
        _fuse_parts(model, layers, modes)
        return []
    made = [blocks.Block.of(layer) for layer in layers]
    for layer, block, mode in zip(layers, made, modes, strict=True):
        run = partial(_layer_forward, block=block, mode=mode, dropouts=_dropouts(layer))
        layer.forward = MethodType(run, layer)
    _fuse_norms(model)
    return made


def _layer_forward(
    _layer: nn.Module,
    hidden_states: torch.Tensor,
    *,
    block: blocks.Block,
    mode: Recompute,
    dropouts: Sequence[nn.Dropout],
    position_embeddings: tuple[torch.Tensor, torch.Tensor],
    boundaries: Any,
    **_unused: Any,
) -> torch.Tensor:
    """A decoder layer's forward; without a cache or a mask, as training calls it."""
    run = partial(
        block.forward,
        angles=position_embeddings,
        boundaries=boundaries,
        keep=mode is Recompute.NOTHING,
    )
    return run_layer(run, hidden_states, mode, random=_draws(dropouts))


def _dropouts(layer: nn.Module) -> list[nn.Dropout]:
    """Those that may draw: to look for them in every forward took 3 % of the host's time."""
    return [part for part in layer.modules() if isinstance(part, nn.Dropout) and part.p]


def _draws(dropouts: Sequence[nn.Dropout]) -> bool:
    return any(part.training for part in dropouts)


def _fuse_norms(model: nn.Module) -> None:
    """The norm behind the last layer; those of the layers are part of their blocks."""
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
            module.forward = MethodType(_norm_forward, module)


def _norm_forward(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return blocks.norm_last(x, module)


def _fuse_parts(model: nn.Module, layers: Sequence[nn.Module], modes: Sequence[Recompute]) -> None:
    """What can be done where a layer's own forward must stay."""
    log.info("%s: its layers run as transformers wrote them", type(layers[0]).__name__)
    if next(model.parameters()).is_cuda:
        _apply_liger(model)
    for name, module in model.named_modules():
        adapted = hasattr(module, "lora_A") and isinstance(module.base_layer, nn.Linear)
        if adapted or (isinstance(module, Fp8Linear) and not name.endswith("base_layer")):
            run = partial(_adapted_forward, group=linears.group_of([module]))
            module.forward = MethodType(run, module)
    for layer, mode in zip(layers, modes, strict=True):
        whole = mode in {Recompute.LAYERS, Recompute.OFFLOAD}
        if whole:
            again = partial(_recomputed, run=layer.forward, mode=mode, dropouts=_dropouts(layer))
            layer.forward = MethodType(again, layer)


def _recomputed(
    _layer: nn.Module,
    x: torch.Tensor,
    *,
    run: Callable[..., torch.Tensor],
    mode: Recompute,
    dropouts: Sequence[nn.Dropout],
    **more: Any,
) -> torch.Tensor:
    return run_layer(partial(run, **more), x, mode, random=_draws(dropouts))


def _adapted_forward(_module: nn.Module, x: torch.Tensor, *, group: linears.Group) -> torch.Tensor:
    return linears.apply(x, group)


def _apply_liger(model: nn.Module) -> None:
    """Liger's norms, rotary embeddings and gated products, for the architectures that it knows."""
    from liger_kernel.transformers import _apply_liger_kernel_to_instance  # noqa: PLC0415  (Triton)

    # The loss is ours: on learned tokens only.
    parts = {"cross_entropy": False, "fused_linear_cross_entropy": False}
    # PEFT wraps a parameter, as experts have them, in a module that names it.
    if any(hasattr(module, "parameter_name") for module in model.modules()):
        parts["swiglu"] = False  # Liger would put its experts in the wrapper's place
    _apply_liger_kernel_to_instance(model=causal_of(model), **parts)
