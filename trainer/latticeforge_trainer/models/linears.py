"""Linear layers that share an input, with adapters, as one product forward and one backward.

    y = x Wᵀ + b + s dropout(x) Aᵀ Bᵀ          W: the layers' weights, one below the other

PEFT computes the adapter beside the layer: y is written, read and written again, and so is the
gradient of x. Here the adapter's few columns lie behind those of the operands, in one matrix

    M = | W  B |        [x | s x Aᵀ] [W | B]ᵀ = y          forward
        | A    |        [dy | s dy B] [W ; A] = dx         backward

so that the product sums over them too, and an adapter costs what reading x and dy costs. A frozen
16-bit base lives in M for good; an NF4 base is dequantized into a scratch M for each product. In
FP8, and where weights are trained or partitioned, adapters are added in a second product.

A group's `forward` and `backward_*` are plain functions of tensors: the autograd nodes around them
(`models.blocks`) decide what is kept. Buffers come from the group, so that room for the adapter's
columns is behind what others write.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import nn

from latticeforge_trainer.kernels import fp8, nf4
from latticeforge_trainer.kernels.elementwise import Product
from latticeforge_trainer.models.fp8 import Fp8Linear


@dataclass
class Adapter:
    """LoRA's two matrices beside a layer."""

    a: torch.Tensor
    """[rank, in]."""
    b: torch.Tensor
    """[out, rank]."""
    scale: float
    dropout: nn.Module

    @property
    def rank(self) -> int:
        """Also while ZeRO-3 holds the matrices in partitions."""
        shape: torch.Size = getattr(self.a, "ds_shape", self.a.shape)
        return shape[0]


def adapter_of(module: nn.Module) -> Adapter | None:
    """The adapter that PEFT has put around a linear layer; None: there is none."""
    if not hasattr(module, "base_layer"):
        return None
    adapted: Any = module
    (name,) = adapted.active_adapters
    return Adapter(
        adapted.lora_A[name].weight,
        adapted.lora_B[name].weight,
        adapted.scaling[name],
        adapted.lora_dropout[name],
    )


def base_of(module: nn.Module) -> nn.Linear:
    """The linear layer that a module is, or is an adapter around.

    Raises:
        TypeError: It is neither.
    """
    base = getattr(module, "base_layer", module)
    if not isinstance(base, nn.Linear):
        raise TypeError(f"{type(base).__name__} is no linear layer")
    return base


@dataclass
class Kept:
    """What a group's backward needs beside its input."""

    low: torch.Tensor | None = None
    """s dropout(x) Aᵀ of all adapters, [tokens, ranks]; None: no adapter."""
    mask: torch.Tensor | None = None
    """Dropout's mask over the adapters' input, bool [tokens, in]; None: no dropout."""
    back: torch.Tensor | None = None
    """s dy B, [tokens, ranks]; made in backward."""


class Group:
    """Linear layers with one input; each product is made layer by layer, adapters added after.

    Args:
        modules: `nn.Linear`, or PEFT's layers around one.

    Attributes:
        alignment: Adapters are padded to a multiple of so many columns.
    """

    alignment = 16

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.layers = [base_of(module) for module in modules]
        self.adapters = [adapter_of(module) for module in modules]
        present = [adapter for adapter in self.adapters if adapter is not None]
        self._scale = present[0].scale if present else 1.0
        self._dropout = present[0].dropout if present else None
        self.inputs: int = self.layers[0].in_features
        self._rows = _slices(layer.out_features for layer in self.layers)
        self._ranks = _slices(0 if a is None else a.rank for a in self.adapters)
        self.outputs: int = self._rows[-1].stop
        self.ranks: int = -(-self._ranks[-1].stop // self.alignment) * self.alignment
        self._a: Any = None
        self._b: Any = None

    @property
    def tensors(self) -> list[torch.Tensor | None]:
        """All that may need a gradient: of each layer its weight, bias, A and B."""
        return [
            tensor
            for layer, adapter in zip(self.layers, self.adapters, strict=True)
            for tensor in (
                layer.weight if layer.weight.requires_grad else None,
                layer.bias,
                None if adapter is None else adapter.a,
                None if adapter is None else adapter.b,
            )
        ]

    def split(self, y: torch.Tensor) -> list[torch.Tensor]:
        """Each layer's columns of an output [tokens, out]."""
        return [y[:, rows] for rows in self._rows]

    def input_buffer(self, like: torch.Tensor) -> torch.Tensor:
        """Room for an input [tokens, in], of the type of `like` [tokens, …]."""
        return like.new_empty(len(like), self.inputs)

    def gradient_buffer(self, like: torch.Tensor) -> torch.Tensor:
        """Room for an output's gradient [tokens, out], of the type of `like` [tokens, …]."""
        return like.new_empty(len(like), self.outputs)

    def as_input(self, x: torch.Tensor) -> torch.Tensor:
        """An input from elsewhere as `forward` takes it."""
        return x

    def as_gradient(self, dy: torch.Tensor) -> torch.Tensor:
        """An output's gradient from elsewhere as `backward_input` takes it."""
        return dy.contiguous()

    def forward(self, x: torch.Tensor, *, late: bool = False) -> tuple[torch.Tensor, Kept]:
        """Outputs of all layers side by side, [tokens, out].

        Args:
            x: The input, in an `input_buffer`.
            late: Whether to leave out `pending`.
        """
        y = self._multiply(x)
        kept = Kept()
        if self.ranks:
            a, b = self._refreshed(x)
            kept.low, kept.mask = self._low(x, a, x.new_empty(len(x), self.ranks))
            if not late:
                y.addmm_(kept.low, b.t())
        return self._biased(y), kept

    def backward_input(self, dy: torch.Tensor, kept: Kept, *, late: bool = False) -> torch.Tensor:
        """The input's gradient [tokens, in].

        Args:
            dy: The outputs', in a `gradient_buffer`.
            kept: From `forward`.
            late: Whether to leave out `pending_back`.
        """
        dx = self._multiply_back(dy)
        if self.ranks:
            kept.back = self._back(dy, dy.new_empty(len(dy), self.ranks))
            if kept.mask is not None:
                dx += self._through_dropout(kept)
            elif not late:
                dx.addmm_(kept.back, self._a)
        return dx

    def pending(self, kept: Kept) -> Product | None:
        """What a late `forward` has left out."""
        return Product(kept.low, self._b.t()) if kept.low is not None else None

    def pending_back(self, kept: Kept) -> Product | None:
        """What a late `backward_input` has left out."""
        if kept.back is None or kept.mask is not None:
            return None
        return Product(kept.back, self._a)

    def backward_parameters(
        self, x: torch.Tensor, dy: torch.Tensor, kept: Kept
    ) -> list[torch.Tensor | None]:
        """The gradients of `tensors`; `backward_input` comes first, if it comes at all."""
        da = db = None
        if kept.low is not None:
            if kept.back is None:
                kept.back = self._back(dy, dy.new_empty(len(dy), self.ranks))
            dropped = x if kept.mask is None else x * kept.mask / self._share()
            da = kept.back.t() @ dropped  # [ranks, in]
            db = dy.t() @ kept.low  # [out, ranks]
        results: list[torch.Tensor | None] = []
        for layer, adapter, rows, ranks in self._parts():
            part = dy[:, rows]
            bias = layer.bias
            results += [
                part.t() @ x if layer.weight.requires_grad else None,
                part.sum(0) if bias is not None and bias.requires_grad else None,
                None if da is None or adapter is None else da[ranks],
                None if db is None or adapter is None else db[rows, ranks],
            ]
        return results

    def _multiply(self, x: torch.Tensor) -> torch.Tensor:
        """X Wᵀ, [tokens, out]."""
        y = x.new_empty(len(x), self.outputs)
        for layer, rows in zip(self.layers, self._rows, strict=True):
            torch.mm(x, layer.weight.t(), out=y[:, rows])
        return y

    def _multiply_back(self, dy: torch.Tensor) -> torch.Tensor:
        """Dy W, [tokens, in]."""
        dx = None
        for layer, rows in zip(self.layers, self._rows, strict=True):
            part = dy[:, rows]
            dx = part @ layer.weight if dx is None else dx.addmm_(part, layer.weight)
        assert dx is not None  # noqa: S101  (a group has layers)
        return dx

    def _parts(self) -> list[tuple[nn.Linear, Adapter | None, slice, slice]]:
        return list(zip(self.layers, self.adapters, self._rows, self._ranks, strict=True))

    def _biased(self, y: torch.Tensor) -> torch.Tensor:
        biases: list[torch.Tensor] = [x.bias for x in self.layers if x.bias is not None]
        if len(biases) == len(self.layers):
            return y.add_(torch.cat(biases).to(y.dtype))
        for layer, rows in zip(self.layers, self._rows, strict=True):
            if layer.bias is not None:
                y[:, rows] += layer.bias
        return y

    def _low(
        self, x: torch.Tensor, a: torch.Tensor, out: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """S dropout(x) Aᵀ in `out`, and dropout's mask."""
        mask = None
        if isinstance(self._dropout, nn.Dropout) and self._dropout.training and self._dropout.p:
            x, mask = torch.native_dropout(x, self._dropout.p, train=True)
        return torch.addmm(out, x, a.t(), beta=0, alpha=self._scale, out=out), mask

    def _back(self, dy: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """S dy B in `out`."""
        return torch.addmm(out, dy, self._b, beta=0, alpha=self._scale, out=out)

    def _through_dropout(self, kept: Kept) -> torch.Tensor:
        """What reaches the input through the adapters, where that was partly dropped."""
        through: torch.Tensor = (kept.back @ self._a) * kept.mask / self._share()
        return through

    def _share(self) -> float:
        """Of the inputs that dropout keeps."""
        return 1 - float(self._dropout.p) if isinstance(self._dropout, nn.Dropout) else 1.0

    def _refreshed(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The adapters as they are now, in the type of `like`; backward finds them so again.

        The A of all layers below one another, [ranks, in]; each B in its layer's rows and its own
        columns, [out, ranks].
        """
        if self._a is None or self._a.dtype is not like.dtype:
            self._a = like.new_zeros(self.ranks, self.inputs)
            self._b = like.new_zeros(self.outputs, self.ranks)
        for _, adapter, rows, ranks in self._parts():
            if adapter is not None:
                self._a[ranks] = adapter.a.detach()
                self._b[rows, ranks] = adapter.b.detach()
        return self._a, self._b


class Fp8Group(Group):
    """Layers in FP8: their weights one below the other, quantized operands shared."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__(modules)
        layers: list[Any] = list(self.layers)
        bytes_ = torch.cat([layer.weight.data for layer in layers])
        self._weight = bytes_.view(fp8.E4M3)
        self._scales = torch.cat([layer.weight_scale for layer in layers])
        for layer, rows in zip(layers, self._rows, strict=True):
            layer.weight.data, layer.weight_scale = bytes_[rows], self._scales[rows]

    def _multiply(self, x: torch.Tensor) -> torch.Tensor:
        return fp8.product(*fp8.quantize_rows(x), self._weight, self._scales, x.dtype)

    def _multiply_back(self, dy: torch.Tensor) -> torch.Tensor:
        q, scale = fp8.quantize_rows(dy, self._scales.flatten())
        back = fp8.transposed(self._weight)  # [in, out]
        return fp8.product(q, scale, back, scale.new_ones(len(back), 1), dy.dtype)


class Concatenated(Group):
    """Frozen 16-bit layers with adapters, in the matrix M above."""

    alignment = 64  # so that every row of an operand begins a line of the cache

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__(modules)
        self._keep(self.layers[0].weight)
        for layer, rows in zip(self.layers, self._rows, strict=True):
            self._matrix[rows, : self.inputs] = layer.weight
            layer.weight.data = self._matrix[rows, : self.inputs]

    def input_buffer(self, like: torch.Tensor) -> torch.Tensor:
        """As `Group`'s, with room for the adapters' columns behind each row."""
        return _rows_with_room(like, self.inputs, self.ranks)

    def gradient_buffer(self, like: torch.Tensor) -> torch.Tensor:
        """As `Group`'s, with room for the adapters' columns behind each row."""
        return _rows_with_room(like, self.outputs, self.ranks)

    def as_input(self, x: torch.Tensor) -> torch.Tensor:
        """A copy with room behind its rows."""
        return self.input_buffer(x).copy_(x)

    def as_gradient(self, dy: torch.Tensor) -> torch.Tensor:
        """A copy with room behind its rows."""
        return self.gradient_buffer(dy).copy_(dy)

    def forward(self, x: torch.Tensor, *, late: bool = False) -> tuple[torch.Tensor, Kept]:
        """See `Group`; nothing is ever late."""
        del late
        a, _ = self._refreshed(x)
        wide = _widened(x, self.ranks)
        low, mask = self._low(x, a, wide[:, self.inputs :])
        y = wide @ self._filled(x)[: self.outputs].t()
        return self._biased(y), Kept(low.clone(), mask)  # not a view, which would keep x

    def backward_input(self, dy: torch.Tensor, kept: Kept, *, late: bool = False) -> torch.Tensor:
        """See `Group`; nothing is ever late."""
        del late
        wide = _widened(dy, self.ranks)
        kept.back = self._back(dy, wide[:, self.outputs :])
        m = self._filled(dy)
        if kept.mask is None:
            return wide @ m[:, : self.inputs]
        dx = dy @ m[: self.outputs, : self.inputs]
        dx += self._through_dropout(kept)
        return dx

    def pending(self, kept: Kept) -> Product | None:
        """See `Group`."""
        del kept
        return None

    def pending_back(self, kept: Kept) -> Product | None:
        """See `Group`."""
        del kept
        return None

    def _keep(self, like: torch.Tensor) -> None:
        """Make an M for good, and the adapters parts of it."""
        self._matrix = like.new_zeros(self.outputs + self.ranks, self.inputs + self.ranks)
        self._a = self._matrix[self.outputs :, : self.inputs]
        self._b = self._matrix[: self.outputs, self.inputs :]

    def _filled(self, _like: torch.Tensor) -> torch.Tensor:
        """M, with the adapters as they were last refreshed."""
        return self._matrix


class Nf4Group(Concatenated):
    """Layers in NF4, whose M is made anew for each product, in memory that all groups share."""

    _memory: dict[tuple[torch.device, torch.dtype], torch.Tensor] = {}  # noqa: RUF012  (shared)

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        Group.__init__(self, modules)
        self._matrix: Any = None

    @property
    def unpacked_bytes(self) -> int:
        """What `unpack` takes, in 16 bits."""
        return 2 * (self.outputs + self.ranks) * (self.inputs + self.ranks)

    def unpack(self, dtype: torch.dtype) -> None:
        """Keep M for good, where there is memory for it."""
        like = torch.empty(0, dtype=dtype, device=self.layers[0].weight.device)
        self._keep(like)
        self._dequantize(self._matrix)

    def _filled(self, like: torch.Tensor) -> torch.Tensor:
        if self._matrix is not None:
            whole: torch.Tensor = self._matrix
            return whole
        m = self._scratch(like)
        self._dequantize(m)
        m[self.outputs :, : self.inputs] = self._a
        m[: self.outputs, self.inputs :] = self._b
        return m

    def _dequantize(self, m: torch.Tensor) -> None:
        for layer, rows in zip(self.layers, self._rows, strict=True):
            weight: Any = layer.weight
            nf4.dequantize(weight.data, weight.quant_state, m[rows, : self.inputs])

    def _scratch(self, like: torch.Tensor) -> torch.Tensor:
        shape = self.outputs + self.ranks, self.inputs + self.ranks
        key, size = (like.device, like.dtype), shape[0] * shape[1]
        if key not in self._memory or self._memory[key].numel() < size:
            self._memory.pop(key, None)  # before the larger one is made
            self._memory[key] = like.new_empty(size)
        return self._memory[key][:size].view(shape)


def group_of(modules: Sequence[nn.Module]) -> Group:
    """The group that computes some modules fastest; make it once, it may move their weights."""
    layers = [base_of(module) for module in modules]
    adapters = [adapter_of(module) for module in modules]
    if all(isinstance(layer, Fp8Linear) for layer in layers):
        return Fp8Group(modules)
    if all(hasattr(layer.weight, "quant_state") for layer in layers):
        return Nf4Group(modules)
    frozen = not any(layer.weight.requires_grad for layer in layers)
    whole = not any(hasattr(layer.weight, "ds_id") for layer in layers)
    if frozen and whole and any(adapters):
        return Concatenated(modules)
    return Group(modules)


class Linears(torch.autograd.Function):
    """A group as a node of its own."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, group: Group, *_tensors: torch.Tensor | None
    ) -> torch.Tensor:
        """X [tokens, in] → [tokens, out]."""
        y, kept = group.forward(group.as_input(x))
        ctx.group = group
        ctx.save_for_backward(x, kept.low, kept.mask)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Of x and the group's tensors."""
        return linears_backward(ctx, ctx.group.as_gradient(gradients[0]))


def linears_backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    """The results of `Linears.backward`, from a gradient in a `gradient_buffer`."""
    x, *kept_tensors = ctx.saved_tensors
    group, kept = ctx.group, Kept(*kept_tensors)
    dx = group.backward_input(dy, kept) if ctx.needs_input_grad[0] else None
    return dx, None, *group.backward_parameters(x, dy, kept)


def apply(x: torch.Tensor, group: Group) -> torch.Tensor:
    """The outputs [..., out] of a group, side by side, for x [..., in]."""
    node: Any = Linears.apply  # untyped in torch
    y: torch.Tensor = node(x.flatten(0, -2), group, *group.tensors)
    return y.view(*x.shape[:-1], -1)


def _slices(sizes: Any) -> list[slice]:
    """Where parts of these sizes lie behind one another."""
    return [slice(*ends) for ends in pairwise([0, *accumulate(sizes)])]


def _rows_with_room(like: torch.Tensor, width: int, columns: int) -> torch.Tensor:
    """Rows [tokens, width] with columns behind them that only a group writes."""
    buffer: Any = like.new_empty(len(like), width + columns)
    buffer.of_a_group = True  # nothing else tells it from a tensor of others that is as wide
    rows: torch.Tensor = buffer[:, :width]
    return rows


def has_room(x: torch.Tensor, stride: int) -> bool:
    """Whether rows are all of a group's buffer whose rows lie `stride` apart."""
    buffer = x._base  # noqa: SLF001  (torch has no other name for what a view is of)
    whole = x.stride() == (stride, 1) and x.storage_offset() == 0
    return whole and getattr(buffer, "of_a_group", False)


def _widened(x: torch.Tensor, columns: int) -> torch.Tensor:
    """Rows with the columns behind them, which a buffer of a group has."""
    rows, width = x.shape
    return x.as_strided((rows, width + columns), x.stride())
