"""The two halves of a decoder layer as few autograd nodes, for architectures shaped like Llama.

    x → norm → q, k, v → rotate → attention → o → + x
    x → norm → gate, up → silu(gate) * up → down → + x

transformers' modules stay where they are, with their names and parameters; only the forward of
their decoder layers is replaced. What a norm or the gated product put out is not kept for backward
but computed again, which costs one pass over memory; `keep` keeps it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import nn

from latticeforge_trainer.kernels.elementwise import (
    rms_norm,
    rms_norm_backward,
    rotate,
    swiglu,
    swiglu_backward,
)
from latticeforge_trainer.models.attention import packed_attention
from latticeforge_trainer.models.documents import Boundaries
from latticeforge_trainer.models.linears import (
    Group,
    Kept,
    Linears,
    group_of,
    has_room,
    linears_backward,
)

LAYERS = frozenset(
    {"LlamaDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer", "MistralDecoderLayer"}
)
"""transformers' decoder layers that compute what stands above."""

Angles = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines of the positions, [rows or 1, length, dim] each."""


@dataclass
class Block:
    """A decoder layer's modules, with its linear layers in groups."""

    layer: Any
    query_key_value: Group
    output: Group
    gate_up: Group
    down: Group

    @classmethod
    def of(cls, layer: Any) -> Self:
        """Group a layer's modules; makes their weights neighbours in memory."""
        attention, mlp = layer.self_attn, layer.mlp
        return cls(
            layer,
            group_of([attention.q_proj, attention.k_proj, attention.v_proj]),
            group_of([attention.o_proj]),
            group_of([mlp.gate_proj, mlp.up_proj]),
            group_of([mlp.down_proj]),
        )

    @property
    def groups(self) -> tuple[Group, ...]:
        """Its linear layers."""
        return self.query_key_value, self.output, self.gate_up, self.down

    def forward(
        self, x: torch.Tensor, angles: Angles, boundaries: Boundaries, *, keep: bool
    ) -> torch.Tensor:
        """The layer's output for x [rows, length, hidden]."""
        return self.feed_forward(self.attention(x, angles, boundaries, keep), keep)

    def attention(
        self, x: torch.Tensor, angles: Angles, boundaries: Boundaries, keep: bool
    ) -> torch.Tensor:
        """X plus what attention adds."""
        shape = x.shape
        attention, norm = self.layer.self_attn, self.layer.input_layernorm
        cos, sin = (angle.flatten(0, -2) for angle in angles)
        normed_heads = hasattr(attention, "q_norm")  # Qwen3
        node: Any = QueryKeyValue.apply  # untyped in torch
        *heads, x = node(
            x.flatten(0, -2), norm.weight, norm.variance_epsilon, self.query_key_value,
            self.output, attention.head_dim, None if normed_heads else (cos, sin), keep,
            *self.query_key_value.tensors,
        )  # fmt: skip
        q, k, v = heads  # [tokens, heads, dim]
        if normed_heads:
            turn: Any = Rotate.apply  # untyped in torch
            q = turn(norm_last(q, attention.q_norm), cos, sin)
            k = turn(norm_last(k, attention.k_norm), cos, sin)
        out: Any = Output.apply  # untyped in torch
        y = packed_attention(
            q,
            k,
            v,
            boundaries,
            scale=attention.scaling,
            window=_window(attention),
        )
        y = out(y.flatten(1), self.output, *self.output.tensors)
        return torch.add(x, y).view(shape)

    def feed_forward(self, x: torch.Tensor, keep: bool) -> torch.Tensor:
        """X plus what the gated layers add."""
        norm = self.layer.post_attention_layernorm
        node: Any = FeedForward.apply  # untyped in torch
        y: torch.Tensor = node(
            x.flatten(0, -2), norm.weight, norm.variance_epsilon, self.gate_up, self.down,
            self.output, keep,
            *self.gate_up.tensors, *self.down.tensors,
        )  # fmt: skip
        return y.view(x.shape)


class QueryKeyValue(torch.autograd.Function):
    """Norm, the three layers and the rotation; and x itself, whose gradients meet here."""

    @staticmethod
    def forward(  # noqa: PLR0917  (autograd passes by position)
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        epsilon: float,
        group: Group,
        before: Group,
        dim: int,
        angles: Angles | None,
        keep: bool,
        *_tensors: torch.Tensor | None,
    ) -> tuple[torch.Tensor, ...]:
        """X [tokens, hidden] → q, k, v [tokens, heads, dim], and x."""
        normed = group.input_buffer(x)
        inverse = rms_norm(x, weight, epsilon, normed)
        y, kept = group.forward(normed)
        q, k, v = (part.view(len(x), -1, dim) for part in group.split(y))
        if angles is not None:
            rotate(q, q, *angles)
            rotate(k, k, *angles)
        ctx.weight, ctx.epsilon, ctx.angles = weight, epsilon, angles
        ctx.group, ctx.before = group, before
        ctx.save_for_backward(x, inverse, kept.low, kept.mask, normed if keep else None)
        return q, k, v, x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Of x, the norm's weight, and the group's tensors."""
        x, inverse, low, mask, normed = ctx.saved_tensors
        *of_heads, residual = gradients
        group, kept = ctx.group, Kept(low, mask)
        dy = group.gradient_buffer(x)
        for number, (part, gradient) in enumerate(zip(group.split(dy), of_heads, strict=True)):
            target = part.view(len(part), *gradient.shape[1:])
            if ctx.angles is not None and number < 2:
                rotate(gradient, target, *ctx.angles, back=True)
            else:
                target.copy_(gradient)
        of_norm, of_group = _through_norm(ctx, dy, kept, residual, (x, inverse, normed))
        return *of_norm, None, None, None, None, None, None, *of_group


class Output(Linears):
    """The layer behind attention, whose gradient comes from `FeedForward`."""

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Of x and the group's tensors."""
        return linears_backward(ctx, _with_room(gradients[0], ctx.group))


class FeedForward(torch.autograd.Function):
    """Norm, the gated layers and the sum with x."""

    @staticmethod
    def forward(  # noqa: PLR0917  (autograd passes by position)
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        epsilon: float,
        gate_up: Group,
        down: Group,
        before: Group,
        keep: bool,
        *_tensors: torch.Tensor | None,
    ) -> torch.Tensor:
        """[tokens, hidden] → [tokens, hidden]."""
        normed = gate_up.input_buffer(x)
        inverse = rms_norm(x, weight, epsilon, normed)
        inner, kept_up = gate_up.forward(normed, late=True)
        product = down.input_buffer(x)
        swiglu(inner, product, gate_up.pending(kept_up))
        y, kept_down = down.forward(product)
        ctx.weight, ctx.epsilon, ctx.before = weight, epsilon, before
        ctx.group, ctx.down = gate_up, down
        ctx.save_for_backward(
            x, inverse, inner, kept_up.low, kept_up.mask, kept_down.low, kept_down.mask,
            *((normed, product) if keep else (None, None)),
        )  # fmt: skip
        return y.add_(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Of x, the norm's weight, and the groups' tensors."""
        x, inverse, inner, low_up, mask_up, low_down, mask_down, normed, product = ctx.saved_tensors
        gate_up, down, (residual,) = ctx.group, ctx.down, gradients
        kept_up, kept_down = Kept(low_up, mask_up), Kept(low_down, mask_down)
        dy = _with_room(residual, down)
        dproduct = down.backward_input(dy, kept_down, late=True)
        dinner = gate_up.gradient_buffer(x)
        again = torch.empty_like(dproduct)
        swiglu_backward(
            inner,
            dproduct,
            dinner,
            again,
            pending=gate_up.pending(kept_up),
            pending_dy=down.pending_back(kept_down),
        )
        of_down = down.backward_parameters(again if product is None else product, dy, kept_down)
        del dproduct, again, product, dy
        of_norm, of_up = _through_norm(ctx, dinner, kept_up, residual, (x, inverse, normed))
        return *of_norm, None, None, None, None, None, *of_up, *of_down


def _through_norm(
    ctx: Any,
    dy: torch.Tensor,
    kept: Kept,
    residual: torch.Tensor,
    saved: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None],
) -> tuple[tuple[torch.Tensor | None, torch.Tensor | None], list[torch.Tensor | None]]:
    """Of x and the norm's weight, and of the group behind the norm.

    Args:
        ctx: Of the node.
        dy: Of the group's outputs, in a `gradient_buffer`.
        kept: By the group.
        residual: Of x beside the norm.
        saved: x, 1 / rms(x), and what the norm put out; None: it is computed again.
    """
    x, inverse, normed = saved
    want_x, want_weight, *_ = ctx.needs_input_grad
    dx = dweight = None
    if want_x or want_weight:
        dx = ctx.before.gradient_buffer(x)
        dweight = rms_norm_backward(
            ctx.group.backward_input(dy, kept), x, ctx.weight, inverse, dx,
            residual=residual, want_weight=want_weight,
        )  # fmt: skip
    if normed is None:
        normed = torch.empty_like(x)
        rms_norm(x, ctx.weight, ctx.epsilon, normed)
    return (dx, dweight), ctx.group.backward_parameters(normed, dy, kept)


class Norm(torch.autograd.Function):
    """RMSNorm over the last dimension."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        """[rows, width] → [rows, width]."""
        y = torch.empty_like(x)
        inverse = rms_norm(x, weight, epsilon, y)
        ctx.save_for_backward(x, inverse)
        ctx.weight = weight
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Of x and weight."""
        x, inverse = ctx.saved_tensors
        dx = torch.empty_like(x)
        dweight = rms_norm_backward(
            gradients[0].contiguous(),
            x,
            ctx.weight,
            inverse,
            dx,
            want_weight=ctx.needs_input_grad[1],
        )
        return dx, dweight, None


class Rotate(torch.autograd.Function):
    """Rotary embeddings, where something stands between the layers and them."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """[tokens, heads, dim] → the same."""
        y = torch.empty_like(x)
        rotate(x, y, cos, sin)
        ctx.save_for_backward(cos, sin)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The same angles, turned back."""
        dx = torch.empty_like(gradients[0])
        rotate(gradients[0], dx, *ctx.saved_tensors, back=True)
        return dx, None, None


def norm_last(x: torch.Tensor, norm: nn.Module) -> torch.Tensor:
    """RMSNorm over the last dimension, with a module's weight."""
    node: Any = Norm.apply  # untyped in torch
    rows = x.reshape(-1, x.shape[-1])
    y: torch.Tensor = node(rows, norm.weight, norm.variance_epsilon)
    return y.view(x.shape)


def _window(attention: Any) -> int | None:
    """Tokens that a token sees; None: all. Llama's config may name a window that it never used."""
    holder = attention.config if type(attention).__name__ == "MistralAttention" else attention
    return getattr(holder, "sliding_window", None)


def _with_room(dy: torch.Tensor, group: Group) -> torch.Tensor:
    """A gradient in a buffer of its group: the nodes here make them so, for they know the group.

    Others' gradients are copied: behind their rows may be what somebody still needs.
    """
    return dy if has_room(dy, group.gradient_buffer(dy[:0]).stride(0)) else group.as_gradient(dy)
