"""Causal attention within documents that lie behind one another on one token axis.

A micro-batch's rows are flattened, and attention is told where documents begin and end: it computes
nothing across them and needs no mask. Which kernel does so is looked up in `BACKENDS`, by what is
asked for and what the machine has; the choice is made once for each kind of request.

The number and the lengths of documents change with every step. They reach kernels as tensors and
launch parameters only, so nothing is compiled again because of them. For the same reason compiled
code calls this as it is.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from latticeforge_trainer.models.documents import Attend, Boundaries, Options
from latticeforge_trainer.models.flex import attend_flex


@dataclass(frozen=True)
class Request:
    """What the choice of a kernel depends on."""

    device: torch.device
    dtype: torch.dtype
    dim: int
    equal: bool
    """Whether all documents have one length."""
    window: bool
    softcap: bool

    @property
    def fused(self) -> bool:
        """Whether it is something that fused CUDA kernels are written for."""
        return (
            self.device.type == "cuda"
            and self.dtype in (torch.bfloat16, torch.float16)
            and self.dim % 8 == 0
            and self.dim <= 256
        )

    @property
    def capability(self) -> int:
        """Major compute capability of the device."""
        return torch.cuda.get_device_capability(self.device)[0]


@dataclass(frozen=True)
class Backend:
    """One way to compute attention."""

    name: str
    serves: Callable[[Request], bool]
    """Whether it can, on this machine."""
    attend: Attend


# Or it would be compiled again for each number of documents.
@torch.compiler.disable  # type: ignore[untyped-decorator]  # torch says nothing of it
def packed_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    boundaries: Boundaries,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """Attention of each token to itself and those before it in its document.

    Args:
        q: [tokens, heads, dim].
        k: [tokens, kv_heads, dim]; each serves heads / kv_heads consecutive heads of `q`.
        v: [tokens, kv_heads, v_dim].
        boundaries: Of the documents.
        scale: Of the scores.
        window: Tokens that a token sees, itself included.
        softcap: Bound of the scores, which approach it like tanh.

    Returns:
        [tokens, heads, v_dim].
    """
    if window is not None and window >= boundaries.longest:
        window = None  # no token is cut off, and more kernels serve
    width = max(q.shape[-1], v.shape[-1])  # kernels want one size of heads
    request = Request(
        q.device, q.dtype, width, boundaries.equal, window is not None, softcap is not None
    )
    wide = _widened(q, width), _widened(k, width), _widened(v, width)
    out = choose(request).attend(*wide, boundaries, Options(scale, window, softcap))
    return out[..., : v.shape[-1]]


def _widened(part: torch.Tensor, width: int) -> torch.Tensor:
    missing = width - part.shape[-1]
    return functional.pad(part, (0, missing)) if missing else part


@cache
def choose(request: Request) -> Backend:
    """The first back-end of the table that serves a request."""
    return next(backend for backend in BACKENDS if backend.serves(request))


def _package(name: str, function: str) -> Attend:
    """Attention by a function of a FlashAttention package."""

    def attend(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, b: Boundaries, options: Options
    ) -> torch.Tensor:
        result = getattr(importlib.import_module(name), function)(
            q,
            k,
            v,
            b.cumulative,
            b.cumulative,
            b.longest,
            b.longest,
            softmax_scale=options.scale,
            causal=True,
            window_size=_window(options),
            softcap=options.softcap or 0.0,
        )
        # Some versions of FlashAttention 3 return the softmax's normalizers as well.
        out: torch.Tensor = result[0] if isinstance(result, tuple) else result
        return out

    return attend


def _torch_varlen(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, b: Boundaries, options: Options
) -> torch.Tensor:
    """PyTorch's own kernel for documents of different lengths."""
    function = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    # Before it asked to be told of grouped heads, it just computed them.
    grouped = {"enable_gqa": True} if "enable_gqa" in _varlen_parameters() else {}
    out: torch.Tensor = function(
        q,
        k,
        v,
        b.cumulative,
        b.cumulative,
        b.longest,
        b.longest,
        scale=options.scale,
        window_size=_window(options),
        **grouped,
    )
    return out


@cache
def _varlen_parameters() -> frozenset[str]:
    """What this PyTorch's `varlen_attn` can be told; nothing where there is none."""
    if not _installed("torch.nn.attention.varlen"):
        return frozenset()
    function = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    return frozenset(inspect.signature(function).parameters)


def _window(options: Options) -> tuple[int, int]:
    """What a token sees to the left and right of itself, as FlashAttention counts it."""
    return (-1 if options.window is None else options.window - 1, 0)


def attend_equal(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, b: Boundaries, options: Options
) -> torch.Tensor:
    """Documents of one length, by cuDNN, which is the fastest at it on Hopper."""
    with sdpa_kernel([SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION], set_priority=True):
        return as_batch(q, k, v, b, options)


def as_batch(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, b: Boundaries, options: Options
) -> torch.Tensor:
    """Documents of one length as a batch, by whichever kernel PyTorch takes."""
    q, k, v = (part.view(-1, b.longest, *part.shape[1:]).transpose(1, 2) for part in (q, k, v))
    out = functional.scaled_dot_product_attention(
        q, k, v, is_causal=True, scale=options.scale, enable_gqa=True
    )  # [documents, heads, length, dim]
    return out.transpose(1, 2).flatten(0, 1)


def _plain(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, b: Boundaries, options: Options
) -> torch.Tensor:
    """PyTorch's attention on any device, on the documents of each length together."""
    same: dict[int, list[int]] = {}
    for number, length in enumerate(b.lengths):
        same.setdefault(length, []).append(number)
    parts = [torch.split_with_sizes(part, b.lengths) for part in (q, k, v)]
    outs: list[torch.Tensor] = [q] * len(b.lengths)
    for numbers in same.values():
        batch = [torch.stack([part[n] for n in numbers]).transpose(1, 2) for part in parts]
        results = _batch_attention(batch, options).transpose(1, 2)
        for number, out in zip(numbers, results, strict=True):
            outs[number] = out
    return torch.cat(outs)


def _batch_attention(qkv: Sequence[torch.Tensor], options: Options) -> torch.Tensor:
    """Attention of [documents, heads, length, dim]."""
    q, k, v = qkv
    length = q.shape[2]
    mask = None
    if options.window is not None and options.window < length:
        index = torch.arange(length, device=q.device)
        ago = index[:, None] - index
        mask = (ago >= 0) & (ago < options.window)
    if options.softcap is None:
        return functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=options.scale, enable_gqa=True
        )
    if mask is None:
        mask = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
    k, v = (part.repeat_interleave(q.shape[1] // part.shape[1], dim=1) for part in (k, v))
    scores = (q @ k.transpose(2, 3)).float() * options.scale
    scores = options.softcap * torch.tanh(scores / options.softcap)
    return scores.masked_fill(~mask, float("-inf")).softmax(-1).to(v.dtype) @ v


BACKENDS: tuple[Backend, ...] = (
    Backend(
        "FlashAttention 3",
        lambda r: r.fused and r.capability == 9 and _installed("flash_attn_interface"),
        _package("flash_attn_interface", "flash_attn_varlen_func"),
    ),
    Backend(
        "cuDNN, equal lengths",
        lambda r: r.fused and r.equal and not r.window and not r.softcap and r.capability >= 8,
        attend_equal,
    ),
    Backend(
        "FlashAttention 2",
        lambda r: r.fused and r.capability >= 8 and _installed("flash_attn"),
        _package("flash_attn", "flash_attn_varlen_func"),
    ),
    Backend(
        "PyTorch varlen",
        lambda r: (
            r.fused
            and not r.softcap
            and r.capability >= 8
            and "window_size" in _varlen_parameters()
        ),
        _torch_varlen,
    ),
    Backend("flex attention", lambda r: r.fused and _power_of_two(r.dim), attend_flex),
    Backend("plain", lambda _: True, _plain),
)
"""In order of preference."""


def _installed(package: str) -> bool:
    return find_spec(package) is not None


def _power_of_two(number: int) -> bool:
    return number & (number - 1) == 0
