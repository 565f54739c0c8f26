"""Attention on packed documents by each back-end here: `python -m benchmarks.attention`.

Needs PyTorch only. For the heads of Qwen2.5-72B and 7B: one document per row, short documents, and
rows of both. Each back-end's output and gradients are compared with a reference in fp64, on memory
that held NaN before; then its forward alone and with its backward are timed. A back-end that cannot
says why.

FLOPs are those of causal attention within documents: for a document of n tokens 2 n² heads dim
forward, 2.5 times as many backward. So a back-end that computes across documents looks slower.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from latticeforge_trainer.models import attention
from latticeforge_trainer.models.documents import Attend, Boundaries, Options

HEADS = {"72b": (64, 8, 128), "7b": (28, 4, 128), "tiny": (4, 2, 16)}
"""Query heads, key and value heads, their size."""
MEAN_DOCUMENT = 300
CUDNN_DOCUMENTS = 64
"""cuDNN plans anew for another number of documents, so empty ones fill up to a multiple of this."""


@dataclass(frozen=True)
class Case:
    """One shape and one set of documents."""

    heads: str
    layout: str
    rows: int
    length: int
    softcap: float | None = None
    window: int | None = None

    def boundaries(self, seed: int) -> Boundaries:
        """The documents; others for each seed where they are random."""
        generator = torch.Generator().manual_seed(seed)
        dense = {"dense": self.rows, "packed": 0, "mixed": self.rows // 2}[self.layout]
        rows = [[self.length]] * dense
        rows += [list(_documents(generator, self.length)) for _ in range(self.rows - dense)]
        positions = [torch.cat([torch.arange(n) for n in row]) for row in rows]
        return Boundaries.of(torch.stack(positions))


def _documents(generator: torch.Generator, length: int) -> Iterator[int]:
    """Log-normal lengths that fill a row."""
    left, spread = length, 0.8
    while left:
        drawn = torch.empty(1).log_normal_(
            math.log(MEAN_DOCUMENT) - spread**2 / 2, spread, generator=generator
        )
        yield (document := min(left, max(1, int(drawn))))
        left -= document


@dataclass
class Figures:
    """What a back-end came to in a case."""

    case: Case
    backend: str
    chosen: bool = False
    """Whether training takes this one."""
    relative_error: dict[str, float] | None = None
    """Norm of the difference from fp64, over the norm, of the output and each gradient."""
    forward_ms: float | None = None
    both_ms: float | None = None
    both_ms_spread: float | None = None
    """Largest minus smallest."""
    tflops: float | None = None
    """Of forward and backward."""
    first_call_ms: float | None = None
    other_documents_ms: float | None = None
    """First forward and backward on documents not seen before: what planning anew costs."""
    error: str | None = None


class CudnnVarlen(torch.autograd.Function):
    """cuDNN's kernel for documents of different lengths, which PyTorch has but does not offer."""

    @staticmethod
    def forward(  # noqa: PLR0917  (autograd passes by position)
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, b: Boundaries, scale: float
    ) -> torch.Tensor:
        """Attention of [tokens, heads, dim]."""
        missing = -len(b.lengths) % CUDNN_DOCUMENTS
        cumulative = functional.pad(b.cumulative, (0, missing), value=q.shape[0])
        longest = 1 << (b.longest - 1).bit_length()
        ctx.options = {
            "cum_seq_q": cumulative,
            "cum_seq_k": cumulative,
            "max_q": longest,
            "max_k": longest,
            "dropout_p": 0.0,
            "is_causal": True,
            "scale": scale,
        }
        forward = torch.ops.aten._cudnn_attention_forward  # noqa: SLF001  (not offered)
        out, normalizers, _, _, _, _, seed, offset, _ = forward(
            query=q, key=k, value=v, attn_bias=None, compute_log_sumexp=True, **ctx.options
        )
        ctx.save_for_backward(q, k, v, out, normalizers, seed, offset)
        result: torch.Tensor = out
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The gradients of q, k and v."""
        q, k, v, out, normalizers, seed, offset = ctx.saved_tensors
        backward = torch.ops.aten._cudnn_attention_backward  # noqa: SLF001  (as above)
        slopes = backward(
            grad_out=gradients[0].contiguous(),
            query=q,
            key=k,
            value=v,
            out=out,
            logsumexp=normalizers,
            philox_seed=seed,
            philox_offset=offset,
            attn_bias=None,
            **ctx.options,
        )
        return (*slopes, None, None)


def cudnn_varlen(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, b: Boundaries, options: Options
) -> torch.Tensor:
    """The above, as a back-end."""
    apply: Any = CudnnVarlen.apply
    out: torch.Tensor = apply(q, k, v, b, options.scale)
    return out


def expanded(attend: Attend) -> Attend:
    """A back-end on keys and values repeated for each head."""

    def with_expanded(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, b: Boundaries, options: Options
    ) -> torch.Tensor:
        k, v = (part.repeat_interleave(q.shape[1] // part.shape[1], dim=1) for part in (k, v))
        return attend(q, k, v, b, options)

    return with_expanded


def offered(request: attention.Request) -> dict[str, Attend]:
    """The back-ends of training that serve a request."""
    return {b.name: b.attend for b in attention.BACKENDS if b.serves(request)}


def others(request: attention.Request) -> dict[str, Attend]:
    """What training does not use, for comparison."""
    if request.device.type != "cuda" or request.window or request.softcap:
        return {}
    equal = {
        "PyTorch's default SDPA": attention.as_batch,
        "cuDNN, equal lengths, k and v repeated": expanded(attention.attend_equal),
    }
    varlen = {
        "cuDNN varlen": cudnn_varlen,
        "cuDNN varlen, k and v repeated": expanded(cudnn_varlen),
    }
    return {**(equal if request.equal else {}), **varlen}


@dataclass(frozen=True)
class Inputs:
    """Fresh random tensors of a case."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    slope: torch.Tensor
    """The gradient of the output."""
    boundaries: Boundaries
    options: Options

    @classmethod
    def of(cls, case: Case, device: torch.device, seed: int) -> Inputs:
        """Inputs of a case."""
        heads, kv_heads, dim = HEADS[case.heads]
        generator = torch.Generator(device).manual_seed(seed)

        def draw(count: int) -> torch.Tensor:
            shape = (case.rows * case.length, count, dim)
            return torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16)

        q, k, v = (draw(n).requires_grad_() for n in (heads, kv_heads, kv_heads))
        boundaries = case.boundaries(seed).map(lambda tensor: tensor.to(device))
        return cls(q, k, v, draw(heads), boundaries, Options(dim**-0.5, case.window, case.softcap))

    def forward(self, attend: Attend) -> torch.Tensor:
        """A back-end's output."""
        return attend(self.q, self.k, self.v, self.boundaries, self.options)

    def both(self, attend: Attend) -> tuple[torch.Tensor, ...]:
        """A back-end's output and gradients."""
        out = self.forward(attend)
        return (out.detach(), *torch.autograd.grad(out, (self.q, self.k, self.v), self.slope))

    def flops(self) -> float:
        """Of a forward pass."""
        pairs = sum(_pairs(n, self.options.window) for n in self.boundaries.lengths)
        return 4.0 * pairs * self.q.shape[1] * self.q.shape[2]


def _pairs(length: int, window: int | None) -> float:
    """Pairs of tokens in sight of each other, the diagonal counted half as is usual."""
    hidden = 0 if window is None else max(0, length - window)
    return (length**2 - hidden**2) / 2


def reference(inputs: Inputs) -> tuple[torch.Tensor, ...]:
    """Output and gradients in fp64, document by document and one key head at a time."""
    group = inputs.q.shape[1] // inputs.k.shape[1]
    results = [
        torch.empty_like(t, dtype=torch.float64) for t in (inputs.q, inputs.q, inputs.k, inputs.k)
    ]
    start = 0
    for length in inputs.boundaries.lengths:
        rows = slice(start, start + length)
        for head in range(inputs.k.shape[1]):
            heads = slice(head * group, (head + 1) * group)
            parts = [inputs.q[rows, heads], inputs.k[rows, head], inputs.v[rows, head]]
            q, k, v = leaves = [part.detach().double().requires_grad_() for part in parts]
            out = _reference_attention(q.transpose(0, 1), k, v, inputs.options).transpose(0, 1)
            slopes = torch.autograd.grad(out, leaves, inputs.slope[rows, heads].double())
            results[0][rows, heads], results[1][rows, heads] = out.detach(), slopes[0]
            results[2][rows, head], results[3][rows, head] = slopes[1:]
        start += length
    return tuple(results)


def _reference_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: Options
) -> torch.Tensor:
    scores = q @ k.T * options.scale  # [group, length, length]
    if options.softcap:
        scores = options.softcap * torch.tanh(scores / options.softcap)
    index = torch.arange(len(k), device=k.device)
    ago = index[:, None] - index
    hidden = (ago < 0) | (ago >= (options.window or len(k)))
    return scores.masked_fill(hidden, float("-inf")).softmax(-1) @ v


def relative_errors(
    found: tuple[torch.Tensor, ...], wanted: tuple[torch.Tensor, ...]
) -> dict[str, float]:
    """Of output and gradients, by name; NaN if a value is not finite."""
    return {
        name: float((mine.double() - true).norm() / true.norm())
        for name, mine, true in zip(("out", "dq", "dk", "dv"), found, wanted, strict=True)
    }


def poison(inputs: Inputs) -> None:
    """Leave NaN in the memory that outputs will be put in."""
    for tensor in (inputs.q, inputs.q, inputs.k, inputs.v):
        torch.full_like(tensor, float("nan"))


def milliseconds(step: Callable[[], object], device: torch.device) -> float:
    """How long a step takes on the device."""
    if device.type == "cpu":
        started = time.perf_counter()
        step()
        return (time.perf_counter() - started) * 1e3
    event: Any = torch.cuda.Event  # untyped in torch
    begin, end = event(enable_timing=True), event(enable_timing=True)
    begin.record()
    step()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end))


def measure(case: Case, name: str, attend: Attend, device: torch.device, repeats: int) -> Figures:
    """Check and time one back-end."""
    figures = Figures(case, name)
    try:
        inputs, other = Inputs.of(case, device, 1), Inputs.of(case, device, 2)
        poison(inputs)
        figures.first_call_ms = milliseconds(lambda: inputs.both(attend), device)
        figures.relative_error = relative_errors(inputs.both(attend), reference(inputs))
        figures.other_documents_ms = milliseconds(lambda: other.both(attend), device)
        for _ in range(3):
            inputs.both(attend)
        forward = [milliseconds(lambda: inputs.forward(attend), device) for _ in range(repeats)]
        both = [milliseconds(lambda: inputs.both(attend), device) for _ in range(repeats)]
    except Exception as error:  # noqa: BLE001  (the others' figures are wanted all the same)
        figures.error = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
        return figures
    figures.forward_ms, figures.both_ms = statistics.median(forward), statistics.median(both)
    figures.both_ms_spread = max(both) - min(both)
    figures.tflops = 3.5 * inputs.flops() / figures.both_ms / 1e9
    return figures


def cases(heads: list[str], rows: int, length: int) -> Iterator[Case]:
    """What is measured."""
    for name in heads:
        for layout in ("dense", "packed", "mixed"):
            yield Case(name, layout, rows, length)
        yield Case(name, "mixed", rows, length, window=length // 4)
        yield Case(name, "mixed", rows, length, softcap=50.0)


def show(figures: Figures) -> None:
    """One line of the table."""
    print(f"{'*' if figures.chosen else ' '} {figures.backend:<40}", end="")
    if figures.error:
        print(figures.error)
        return
    errors = figures.relative_error or {}
    print(
        f"{figures.tflops:>8.1f} {figures.forward_ms:>9.2f} {figures.both_ms:>9.2f}"
        f" {figures.both_ms_spread:>8.2f} {figures.other_documents_ms:>9.1f}"
        f" {figures.first_call_ms:>9.0f} {max(errors.values()):>9.1e}"
    )


def compare(
    wanted: Iterator[Case],
    device: torch.device,
    choose: Callable[[attention.Request], dict[str, Attend]],
    repeats: int,
) -> Iterator[Figures]:
    """Measure and show some back-ends in each case."""
    for case in wanted:
        boundaries, dim = case.boundaries(1), HEADS[case.heads][2]
        limited = case.window is not None, case.softcap is not None
        request = attention.Request(device, torch.bfloat16, dim, boundaries.equal, *limited)
        if not (candidates := choose(request)):
            continue
        print(f"\n{case}, {len(boundaries.lengths)} documents")
        print(
            f"  {'back-end':<40}{'TFLOP/s':>8} {'forward':>9} {'both':>9} {'spread':>8}"
            f" {'new docs':>9} {'first':>9} {'error':>9}"
        )
        for name, attend in candidates.items():
            figures = measure(case, name, attend, device, repeats)
            figures.chosen = name == attention.choose(request).name
            show(figures)
            yield figures


def main() -> None:
    """Measure attention on packed documents."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--heads", nargs="+", default=["72b", "7b"], choices=list(HEADS))
    parser.add_argument("--rows", type=int, default=4, help="rows of a micro-batch")
    parser.add_argument("--length", type=int, default=4096, help="tokens of a row")
    parser.add_argument("--repeats", type=int, default=20, help="timed, after 3 that are not")
    parser.add_argument("--output", type=Path, help="where to write the figures, as JSON")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cudnn: Any = torch.backends.cudnn  # untyped in torch
    about = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        "torch": torch.__version__,
        "cudnn": cudnn.version(),
    }
    print(about)
    print(
        "* what training takes; milliseconds are medians; error is the largest of out, dq, dk, dv"
    )
    found: list[Figures] = []
    # Others last: a kernel that writes where it should not ends the process's use of the device.
    for choose in (offered, others):
        wanted = cases(options.heads, options.rows, options.length)
        found += compare(wanted, device, choose, options.repeats)
        if options.output:
            figures = [asdict(each) for each in found]
            options.output.write_text(json.dumps({**about, "figures": figures}, indent=2))


if __name__ == "__main__":
    main()
