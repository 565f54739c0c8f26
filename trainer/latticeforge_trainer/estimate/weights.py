"""What weights take on a GPU while they are trained, or trained over."""

from __future__ import annotations

from typing import Literal

from latticeforge_trainer.contract import LoRASettings, Method, Offload
from latticeforge_trainer.estimate.base_model import NF4_BYTES
from latticeforge_trainer.estimate.linears import Group, groups_of, unadapted_parameters
from latticeforge_trainer.estimate.terms import Term, present
from latticeforge_trainer.estimate.training import Run

NEIGHBOURS = 64
"""Adapters' columns in one matrix with the weights are padded to a multiple of this."""

APART = 16
"""And where they are multiplied on their own."""

Format = Literal["bf16", "nf4", "fp8"]


def base_format(run: Run) -> Format:
    """What the linear layers are made of."""
    if run.payload.method is Method.QLORA:
        return "nf4"
    return "fp8" if run.payload.lora and run.payload.lora.base_dtype else "bf16"


def columns(run: Run, group: Group) -> int:
    """Columns behind a group's operands."""
    return group.columns(run.payload.lora, NEIGHBOURS if _concatenated(run) else APART)


def weights(run: Run) -> tuple[Term, ...]:
    """Of everything that is not an adapter."""
    model, shape, share = run.model, run.model.shape, _share(run)
    if run.strategy.zero_stage == 3 and run.strategy.offload is Offload.ALL:
        return ()
    tables = model.parameters.embedding + model.parameters.head
    rest = model.parameters.vectors + unadapted_parameters(shape)
    of_layer = sum(_linear_bytes(run, group) for group in groups_of(model))
    linear = int(shape.layers * of_layer * share)
    kind = base_format(run)
    return present(
        Term("linear layers", linear, f"{model.parameters.attention:,} + … in {kind}"),
        Term("embedding and head", int(run.width * tables * share), f"{tables:,} x {run.width} B"),
        Term("norms, biases, experts", int(run.width * rest * share), f"{rest:,} x {run.width} B"),
    )


def unpack(run: Run, spare: int) -> tuple[Term, ...]:
    """NF4 layers kept dequantized in spare memory, and the scratch of those that are not."""
    if base_format(run) != "nf4":
        return ()
    groups = groups_of(run.model)
    sizes = [run.width * group.widened(columns(run, group)) for group in groups]
    taken, left = 0, 0
    for _ in range(run.model.shape.layers):
        for size in sizes:
            if size <= spare - taken:
                taken += size
            else:
                left = max(left, size)
    return present(
        Term("dequantized layers", taken, "as many as spare memory holds"),
        Term("dequantization scratch", left, "the largest matrix of those that are not"),
    )


def _linear_bytes(run: Run, group: Group) -> float:
    lora: LoRASettings | None = run.payload.lora
    kind, behind = base_format(run), columns(run, group)
    if kind == "nf4":
        packed = NF4_BYTES * group.parameters
        return packed + 2 * behind * (group.inputs + group.outputs)
    if kind == "fp8":
        packed = group.parameters + 4 * group.outputs
        return packed + 2 * behind * (group.inputs + group.outputs)
    if _concatenated(run) and group.adapted(lora):
        return run.width * group.widened(behind)
    return run.width * (group.parameters + behind * (group.inputs + group.outputs))


def _concatenated(run: Run) -> bool:
    return base_format(run) != "fp8" and not run.is_full and run.strategy.zero_stage < 3


def _share(run: Run) -> float:
    return 1 / run.world if run.strategy.zero_stage == 3 else 1.0
