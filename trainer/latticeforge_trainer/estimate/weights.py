"""What weights take on a GPU while they are trained, or trained over."""

from __future__ import annotations

from typing import Literal

from latticeforge_trainer.contract import Method, Offload
from latticeforge_trainer.estimate.base_model import NF4_BYTES
from latticeforge_trainer.estimate.linears import Group, expert_parameters, groups_of, is_fused
from latticeforge_trainer.estimate.terms import Term, present
from latticeforge_trainer.estimate.training import Setup

ALIGNMENT = 16
"""Adapters' columns are padded to a multiple of this."""

CONCATENATED_ALIGNMENT = 64
"""The same where they lie in one matrix with the weights."""

DEQUANTIZED = "dequantized layers"
"""The term of NF4 layers that spare memory holds in 16 bits."""

Format = Literal["bf16", "nf4", "fp8"]


def base_format(setup: Setup) -> Format:
    """What the linear layers are made of."""
    if setup.payload.method is Method.QLORA:
        return "nf4"
    return "fp8" if setup.payload.lora and setup.payload.lora.base_dtype else "bf16"


def is_concatenated(setup: Setup) -> bool:
    """Whether adapters lie in one matrix with the weights; see `models.linears`."""
    return base_format(setup) != "fp8" and not setup.is_full and setup.strategy.zero_stage < 3


def loaded_weights(setup: Setup) -> tuple[Term, ...]:
    """Of everything that is not an adapter, as it is loaded."""
    parameters, groups, width = setup.model.parameters, groups_of(setup.model), setup.width
    linear = sum(count * group.parameters for count, group in groups)
    outputs = sum(count * group.outputs for count, group in groups)
    kind = base_format(setup)
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
    if base_format(setup) == "nf4":
        return _nf4(setup, spare if is_fused(setup.model) else 0)
    if is_concatenated(setup):
        room = sum(
            count * (group.widened(columns(setup, group)) - group.parameters)
            for count, group in groups_of(setup.model)
        )
        why = "columns and rows beside the weights, for one product of both"
        return present(Term("room for adapters", setup.width * room, why))
    copies = sum(count * _copies(setup, group) for count, group in groups_of(setup.model))
    return present(Term("adapters to multiply with", copies, f"in {setup.width} B each, padded"))


def columns(setup: Setup, group: Group) -> int:
    """Columns behind a group's operands."""
    alignment = CONCATENATED_ALIGNMENT if is_concatenated(setup) else ALIGNMENT
    return group.columns(setup.payload.lora, alignment)


def _nf4(setup: Setup, spare: int) -> tuple[Term, ...]:
    """As `training.recompute.unpack_spare` goes through the layers."""
    groups = groups_of(setup.model)
    sizes = [setup.width * group.widened(columns(setup, group)) for _, group in groups]
    kept = _unpacked(sizes, [count for count, _ in groups], spare)
    unpacked = sum(count * size for count, size in zip(kept, sizes, strict=True))
    rest = [(count - k, g) for k, (count, g) in zip(kept, groups, strict=True)]
    scratch = max((s for s, (count, _) in zip(sizes, rest, strict=True) if count), default=0)
    copies = sum(count * _copies(setup, group) for count, group in rest)
    of = f"{sum(kept)} of {sum(count for count, _ in groups)} matrices"
    return present(
        Term(DEQUANTIZED, unpacked, f"{of}, as many as spare memory holds"),
        Term("dequantization scratch", scratch, "the largest matrix that is not kept"),
        Term("adapters to multiply with", copies, f"in {setup.width} B each, padded"),
    )


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


def _copies(setup: Setup, group: Group) -> int:
    return setup.width * columns(setup, group) * (group.inputs + group.outputs)


def _sharded(setup: Setup, name: str, size: int, why: str) -> Term:
    if setup.strategy.zero_stage < 3:
        return Term(name, size, why)
    if setup.strategy.offload is Offload.ALL:
        return Term(name, 0, why)
    return Term(name, size // setup.world, f"{why} / {setup.world}")
