"""Puts what is read into the model: as it is, in NF4, in FP8, or this rank's part of it.

A placement takes the tensors of one module at a time, so a quantized layer exists in 16 bits only
between two of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from latticeforge_trainer.errors import UserError
from latticeforge_trainer.models.skeleton import mark_loaded, put
from latticeforge_trainer.models.streaming import Loaded


class Placement:
    """Puts tensors into their module in the types that the module declares.

    Args:
        model: The model.
    """

    def __init__(self, model: Any) -> None:
        self.model = model

    def place(self, name: str, tensors: Loaded) -> None:
        """Fill a module with what is stored for it."""
        module = self.model.get_submodule(name)
        for leaf, tensor in tensors.items():
            put(module, leaf, tensor.to(getattr(module, leaf).dtype))


class NF4Placement(Placement):
    """Quantizes the weights of bitsandbytes' layers, or takes them over as they are stored."""

    def place(self, name: str, tensors: Loaded) -> None:
        """Fill a module with what is stored for it."""
        from bitsandbytes.nn.modules import Linear4bit  # noqa: PLC0415  (seconds; only QLoRA needs it)

        module = self.model.get_submodule(name)
        if isinstance(module, Linear4bit):
            parts = {leaf: tensors.pop(leaf) for leaf in list(tensors) if leaf.startswith("weight")}
            put(module, "weight", _nf4_weight(module, parts))
        super().place(name, tensors)


class FP8Placement(Placement):
    """Makes every linear layer but the head one with a frozen 8-bit weight."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self._layers = {name for name, _ in linear_layers(model)}

    def place(self, name: str, tensors: Loaded) -> None:
        """Fill a module with what is stored for it."""
        super().place(name, tensors)
        if name in self._layers:
            to_fp8(self.model, name)


def linear_layers(model: Any) -> Iterator[tuple[str, nn.Linear]]:
    """Every linear layer but the head."""
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if type(module) is nn.Linear and module is not head:
            yield name, module


def to_fp8(model: Any, name: str) -> None:
    """Replace one linear layer by its 8-bit form."""
    from latticeforge_trainer.models.fp8 import Fp8Linear  # noqa: PLC0415  (only FP8 bases need it)

    linear = model.get_submodule(name)
    bias = None if linear.bias is None else linear.bias.detach()
    layer = Fp8Linear.from_weight(linear.weight.detach(), bias)
    for tensor in (*layer.parameters(), *layer.buffers()):
        mark_loaded(tensor)
    model.set_submodule(name, layer)


def _nf4_weight(layer: Any, parts: Loaded) -> Any:
    from bitsandbytes.nn.modules import Params4bit  # noqa: PLC0415  (as above)

    weight, empty = parts.pop("weight"), layer.weight
    if parts:
        stored = Params4bit.from_prequantized(weight, parts, device=weight.device, module=layer)
        shape = layer.out_features, layer.in_features
        if tuple(stored.quant_state.shape) != shape:
            raise UserError(
                f"a layer's NF4 weight stands for {list(stored.quant_state.shape)}, but the config "
                f"makes it {list(shape)}: they are of different models"
            )
        return stored
    made: Any = Params4bit(
        weight.to(empty.dtype),
        requires_grad=False,
        compress_statistics=empty.compress_statistics,
        quant_type=empty.quant_type,
        quant_storage=empty.quant_storage,
        module=layer,
    )
    return made.to(weight.device)  # which quantizes
