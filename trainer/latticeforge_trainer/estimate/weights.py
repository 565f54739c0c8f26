"""What weights take on a GPU while they are trained, or trained over."""

from __future__ import annotations

from latticeforge_trainer.contract import Offload
from latticeforge_trainer.estimate.base_model import NF4_BYTES
from latticeforge_trainer.estimate.linears import expert_parameters, is_fused
from latticeforge_trainer.estimate.terms import Term, present
from latticeforge_trainer.estimate.training import Setup

DEQUANTIZED = "dequantized layers"
"""The term of NF4 layers that spare memory holds in 16 bits."""


def loaded_weights(setup: Setup) -> tuple[Term, ...]:
    """Of everything that is not an adapter, as it is loaded."""
    parameters, width = setup.model.parameters, setup.width
    linear = sum(placed.count * placed.group.parameters for placed in setup.groups)
    outputs = sum(placed.count * placed.group.outputs for placed in setup.groups)
    kind = setup.base_format
    each = {"bf16": width, "nf4": NF4_BYTES, "fp8": 1}[kind]
    size = int(linear * each) + (4 * outputs if kind == "fp8" else 0)  # FP8's scales
    tables = parameters.embedding + parameters.head
    experts = expert_parameters(setup.model.shape)
    vectors = parameters.vectors
    return present(
        _sharded(setup, "linear layers", size, f"{linear:,} x {each:.4g} B"),
        _sharded(setup, "embedding and head", tables * width, f"{tables:,} x {width} B"),
        _sharded(setup, "experts and routers", experts * width, f"{experts:,} x {width} B"),
        Term("norms and biases", vectors * width, f"{vectors:,} x {width} B"),
    )


def placed_adapters(setup: Setup, spare: int) -> tuple[Term, ...]:
    """What fusing adds: room for adapters beside the weights, and for NF4 weights dequantized.

    Args:
        setup: What is trained, and how.
        spare: Bytes in which NF4 layers may be kept dequantized.
    """
    if setup.is_full:
        return ()
    if setup.base_format == "nf4":
        return _nf4(setup, spare if is_fused(setup.model) else 0)
    if setup.is_concatenated:
        room = sum(p.count * (p.matrix - p.group.parameters) for p in setup.groups)
        why = "columns and rows beside the weights, for one product of both"
        return present(Term("room for adapters", setup.width * room, why))
    return present(_copies(setup, [placed.count for placed in setup.groups]))


def _nf4(setup: Setup, spare: int) -> tuple[Term, ...]:
    """As `training.recompute.unpack_spare` goes through the layers."""
    sizes = [setup.width * placed.matrix for placed in setup.groups]
    counts = [placed.count for placed in setup.groups]
    kept = _unpacked(sizes, counts, spare)
    left = [count - k for count, k in zip(counts, kept, strict=True)]
    unpacked = sum(k * size for k, size in zip(kept, sizes, strict=True))
    scratch = max((size for size, count in zip(sizes, left, strict=True) if count), default=0)
    why = f"{sum(kept)} of {sum(counts)} matrices, as many as spare memory holds"
    return present(
        Term(DEQUANTIZED, unpacked, why),
        Term("dequantization scratch", scratch, "the largest matrix that is not kept"),
        _copies(setup, left),
    )


def _copies(setup: Setup, counts: list[int]) -> Term:
    """Adapters in the type that is computed in, of so many layers of each group."""
    numbers = sum(n * placed.copies for n, placed in zip(counts, setup.groups, strict=True))
    why = f"{numbers:,} x {setup.width} B, padded"
    return Term("adapters to multiply with", setup.width * numbers, why)


def _unpacked(sizes: list[int], counts: list[int], spare: int) -> list[int]:
    """How many matrices of each size fit, layer by layer, each that still does."""
    whole = min([*counts, spare // sum(sizes)])
    spare -= whole * sum(sizes)
    kept = [whole] * len(sizes)
    for _ in range(max(counts) - whole):
        for number, size in enumerate(sizes):
            if kept[number] < counts[number] and size <= spare:
                kept[number] += 1
                spare -= size
        if spare < min(sizes):
            break
    return kept


def _sharded(setup: Setup, name: str, size: int, why: str) -> Term:
    if setup.strategy.zero_stage < 3:
        return Term(name, size, why)
    if setup.strategy.offload is Offload.ALL:
        return Term(name, 0, why)
    return Term(name, size // setup.world, f"{why} / {setup.world}")
