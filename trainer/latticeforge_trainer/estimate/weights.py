"""What weights take on a GPU while they are trained, or trained over."""

from __future__ import annotations

from typing import Literal

from latticeforge_trainer.contract import Method, Offload
from latticeforge_trainer.estimate.base_model import NF4_BYTES
from latticeforge_trainer.estimate.linears import Group, groups_of, unadapted_parameters
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
    model, parameters = run.model, run.model.parameters
    linear = sum(group.parameters for group in groups_of(model))
    scales = sum(group.outputs for group in groups_of(model)) if base_format(run) == "fp8" else 0
    each = {"bf16": run.width, "nf4": NF4_BYTES, "fp8": 1}[base_format(run)]
    layers = int(model.shape.layers * (linear * each + scales * 4))
    tables = parameters.embedding + parameters.head
    experts = unadapted_parameters(model.shape)
    width = run.width
    return present(
        _sharded(run, "linear layers", layers, f"{linear:,} a layer x {each:.4g} B"),
        _sharded(run, "embedding and head", tables * width, f"{tables:,} x {width} B"),
        _sharded(run, "experts and routers", experts * width, f"{experts:,} x {width} B"),
        Term("norms and biases", parameters.vectors * width, f"{parameters.vectors:,} x {width} B"),
    )


def placed_adapters(run: Run, spare: int) -> tuple[Term, ...]:
    """What fusing adds: room for adapters beside the weights, and for NF4 weights dequantized.

    Args:
        run: The run.
        spare: Bytes in which NF4 layers may be kept dequantized.
    """
    if run.is_full:
        return ()
    groups = groups_of(run.model)
    if base_format(run) == "nf4":
        return _nf4(run, groups, spare)
    if is_concatenated(run):
        room = sum(
            group.widened(columns(run, group)) - group.parameters
            for group in groups
            if group.adapted(run.payload.lora)
        )
        why = "columns and rows beside the weights, for one product of both"
        return present(
            Term("room for adapters", run.model.shape.layers * run.width * room, why),
        )
    copies = run.model.shape.layers * sum(_copies(run, group) for group in groups)
    return present(Term("adapters to multiply with", copies, f"in {run.width} B each, padded"))


def columns(run: Run, group: Group) -> int:
    """Columns behind a group's operands."""
    alignment = CONCATENATED_ALIGNMENT if is_concatenated(run) else ALIGNMENT
    return group.columns(run.payload.lora, alignment)


def _nf4(run: Run, groups: tuple[Group, ...], spare: int) -> tuple[Term, ...]:
    """As `training.recompute.unpack_spare` goes through the layers."""
    sizes = [run.width * group.widened(columns(run, group)) for group in groups]
    copies = [_copies(run, group) for group in groups]
    unpacked = packed = scratch = count = 0
    for _ in range(run.model.shape.layers):
        for size, copy in zip(sizes, copies, strict=True):
            if size <= spare - unpacked:
                unpacked, count = unpacked + size, count + 1
            else:
                packed, scratch = packed + copy, max(scratch, size)
    of = f"{count} of {run.model.shape.layers * len(groups)} matrices"
    return present(
        Term(DEQUANTIZED, unpacked, f"{of}, as many as spare memory holds"),
        Term("dequantization scratch", scratch, "the largest matrix that is not kept"),
        Term("adapters to multiply with", packed, f"in {run.width} B each, padded"),
    )


def _copies(run: Run, group: Group) -> int:
    return run.width * columns(run, group) * (group.inputs + group.outputs)


def _sharded(run: Run, name: str, size: int, why: str) -> Term:
    if run.strategy.zero_stage < 3:
        return Term(name, size, why)
    if run.strategy.offload is Offload.ALL:
        return Term(name, 0, why)
    return Term(name, size // run.world, f"{why} / {run.world}")
