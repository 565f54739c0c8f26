"""What weights take on a GPU while they are trained, or trained over."""

from __future__ import annotations

from typing import Literal

from latticeforge_trainer.contract import Method, Offload
from latticeforge_trainer.estimate.base_model import NF4_BYTES
from latticeforge_trainer.estimate.linears import Group, expert_parameters, groups_of, is_fused
from latticeforge_trainer.estimate.terms import Term, present
from latticeforge_trainer.estimate.training import Run

ALIGNMENT = 16
"""Adapters' columns are padded to a multiple of this."""

CONCATENATED_ALIGNMENT = 64
"""The same where they lie in one matrix with the weights."""

DEQUANTIZED = "dequantized layers"
"""The term of NF4 layers that spare memory holds in 16 bits."""

Format = Literal["bf16", "nf4", "fp8"]


def base_format(run: Run) -> Format:
    """What the linear layers are made of."""
    if run.payload.method is Method.QLORA:
        return "nf4"
    return "fp8" if run.payload.lora and run.payload.lora.base_dtype else "bf16"


def is_concatenated(run: Run) -> bool:
    """Whether adapters lie in one matrix with the weights; see `models.linears`."""
    return base_format(run) != "fp8" and not run.is_full and run.strategy.zero_stage < 3


def loaded_weights(run: Run) -> tuple[Term, ...]:
    """Of everything that is not an adapter, as it is loaded."""
    parameters, groups, width = run.model.parameters, groups_of(run.model), run.width
    linear = sum(count * group.parameters for count, group in groups)
    outputs = sum(count * group.outputs for count, group in groups)
    kind = base_format(run)
    each = {"bf16": width, "nf4": NF4_BYTES, "fp8": 1}[kind]
    size = int(linear * each) + (4 * outputs if kind == "fp8" else 0)  # FP8's scales
    tables = parameters.embedding + parameters.head
    experts = expert_parameters(run.model.shape)
    vectors = parameters.vectors
    return present(
        _sharded(run, "linear layers", size, f"{linear:,} x {each:.4g} B"),
        _sharded(run, "embedding and head", tables * width, f"{tables:,} x {width} B"),
        _sharded(run, "experts and routers", experts * width, f"{experts:,} x {width} B"),
        Term("norms and biases", vectors * width, f"{vectors:,} x {width} B"),
    )


def placed_adapters(run: Run, spare: int) -> tuple[Term, ...]:
    """What fusing adds: room for adapters beside the weights, and for NF4 weights dequantized.

    Args:
        run: The run.
        spare: Bytes in which NF4 layers may be kept dequantized.
    """
    if run.is_full:
        return ()
    if base_format(run) == "nf4":
        return _nf4(run, spare if is_fused(run.model) else 0)
    if is_concatenated(run):
        room = sum(
            count * (group.widened(columns(run, group)) - group.parameters)
            for count, group in groups_of(run.model)
        )
        why = "columns and rows beside the weights, for one product of both"
        return present(Term("room for adapters", run.width * room, why))
    copies = sum(count * _copies(run, group) for count, group in groups_of(run.model))
    return present(Term("adapters to multiply with", copies, f"in {run.width} B each, padded"))


def columns(run: Run, group: Group) -> int:
    """Columns behind a group's operands."""
    alignment = CONCATENATED_ALIGNMENT if is_concatenated(run) else ALIGNMENT
    return group.columns(run.payload.lora, alignment)


def _nf4(run: Run, spare: int) -> tuple[Term, ...]:
    """As `training.recompute.unpack_spare` goes through the layers."""
    groups = groups_of(run.model)
    sizes = [run.width * group.widened(columns(run, group)) for _, group in groups]
    kept = _unpacked(sizes, [count for count, _ in groups], spare)
    unpacked = sum(count * size for count, size in zip(kept, sizes, strict=True))
    rest = [(count - k, g) for k, (count, g) in zip(kept, groups, strict=True)]
    scratch = max((s for s, (count, _) in zip(sizes, rest, strict=True) if count), default=0)
    copies = sum(count * _copies(run, group) for count, group in rest)
    of = f"{sum(kept)} of {sum(count for count, _ in groups)} matrices"
    return present(
        Term(DEQUANTIZED, unpacked, f"{of}, as many as spare memory holds"),
        Term("dequantization scratch", scratch, "the largest matrix that is not kept"),
        Term("adapters to multiply with", copies, f"in {run.width} B each, padded"),
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


def _copies(run: Run, group: Group) -> int:
    return run.width * columns(run, group) * (group.inputs + group.outputs)


def _sharded(run: Run, name: str, size: int, why: str) -> Term:
    if run.strategy.zero_stage < 3:
        return Term(name, size, why)
    if run.strategy.offload is Offload.ALL:
        return Term(name, 0, why)
    return Term(name, size // run.world, f"{why} / {run.world}")
