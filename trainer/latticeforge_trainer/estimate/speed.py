"""How fast this trainer trains: the time of a step by what it is spent on.

A roofline by parts: products and attention at a share of the chip's peak, everything else at a
share of its memory bandwidth, each by what it computes or moves. Below them all lies what the host
needs to launch a layer's kernels, which small models wait for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from latticeforge_trainer.contract import Offload, Recompute
from latticeforge_trainer.estimate.buckets import SUB_GROUP
from latticeforge_trainer.estimate.constants import FITTED, Constants
from latticeforge_trainer.estimate.flops import attention_flops
from latticeforge_trainer.estimate.linears import is_fused
from latticeforge_trainer.estimate.memory import Memory, gpu_memory
from latticeforge_trainer.estimate.training import Run
from latticeforge_trainer.estimate.weights import DEQUANTIZED

WIDE_HEAD = 128
"""Numbers of a head from which on attention reaches its share of the peak."""


@dataclass(frozen=True)
class Time:
    """A part of a step."""

    name: str
    seconds: float
    why: str


@dataclass(frozen=True)
class Speed:
    """What a run reaches."""

    tokens_per_second: float
    """Of all GPUs together."""
    seconds_per_step: float
    terms: tuple[Time, ...]
    """Of a step; they add up to its seconds."""


def speed(
    run: Run,
    document_length: float | None = None,
    *,
    memory: Memory | None = None,
    constants: Constants = FITTED,
) -> Speed:
    """How fast a run trains.

    Args:
        run: What is trained, and how.
        document_length: Mean tokens of a document; None: one fills a sequence.
        memory: The run's, if it is known already: it says what is computed again.
        constants: What the chip reaches of its data sheet.
    """
    memory = memory or gpu_memory(run, constants=constants)
    parts = [*_micro_batch(run, memory, document_length, constants), *_gathering(run, constants)]
    count = run.micro_batches
    times = [Time(p.name, count * p.seconds, f"{count} x {p.why}") for p in parts]
    times += _per_step(run, constants)
    idle = _launching(run, memory, constants) - _sum(times)
    times.append(Time("waiting for the host", idle, "to launch the kernels of all layers"))
    times = [time for time in times if time.seconds > 0]
    seconds = _sum(times)
    tokens = run.payload.sequences_per_step * run.payload.sequence_length
    return Speed(tokens / seconds, seconds, tuple(times))


def _sum(times: list[Time]) -> float:
    return sum(time.seconds for time in times)


def _micro_batch(
    run: Run, memory: Memory, document_length: float | None, constants: Constants
) -> Iterator[Time]:
    """What the GPU computes for one micro-batch."""
    shape, chip, tokens = run.model.shape, run.chip, run.tokens
    again = _again(memory)
    passes, of_head = (6 if trained else 4 for trained in (run.is_full, run.trains_head))
    table = shape.vocabulary * shape.hidden
    linear = shape.linear_parameters - table
    kind = run.base_format
    bf16 = constants.products * chip.peak_flops
    fp8 = constants.fp8_products * chip.fp8_flops if kind == "fp8" and chip.fp8_flops else bf16
    seconds = ((passes + 2 * again) * linear / fp8 + of_head * table / bf16) * tokens
    yield Time("products", seconds, f"{passes + 2 * again:.1f} FLOPs per weight and token")

    length = min(document_length or run.payload.sequence_length, run.payload.sequence_length)
    share = constants.attention if document_length is None else constants.packed_attention
    share *= length / (length + constants.attention_ramp)
    share *= math.sqrt(min(1.0, shape.head_dim / WIDE_HEAD))
    flops = attention_flops(shape, round(length)) / round(length) * tokens * (1 + 2 / 7 * again)
    yield Time("attention", flops / (share * chip.peak_flops), f"in documents of {length:,.0f}")

    inner = _inner(run)
    slower = (constants.pending if kind == "fp8" else 1) * (1 if is_fused(run.model) else 2)
    moved = 18 * tokens * shape.layers * inner * (1 + again / 3) * slower
    yield Time("gated products", _streamed(run, moved, constants.traffic), f"{moved / 1e9:.0f} GB")
    moved = 70 * tokens * shape.layers * shape.hidden * (1 + again / 3)
    yield Time(
        "norms and copies", _streamed(run, moved, constants.small_traffic), f"{moved / 1e9:.0f} GB"
    )
    yield from _of_adapters(run, again, constants)
    if kind == "nf4":
        kept = sum(term.bytes for term in memory.terms if term.name == DEQUANTIZED)
        moved = 2.5 * (2 + again) * max(0.0, linear - kept / run.width)
        seconds = _streamed(run, moved, constants.dequantize)
        yield Time("dequantization", seconds, f"{moved / 1e9:.0f} GB")


def _launching(run: Run, memory: Memory, constants: Constants) -> float:
    """Seconds in which the host launches the kernels of a step.

    Counted in a layer's with adapters: without, there are fewer, the update included; a forward is
    two fifths of them; and AdamW with 8-bit moments goes through parameters one by one, as long as
    a third. Under ZeRO-3 DeepSpeed's hooks come on top, around every matrix.
    """
    each = (0.85 if run.is_full else 1) * (1 + 0.4 * _again(memory))
    update = 1 / 3 if run.payload.optimizer_states == "int8" else 0
    launched = constants.launch * run.model.shape.layers * (run.micro_batches * each + update)
    if run.strategy.zero_stage < 3:
        return launched
    hooked = sum(placed.layers * (3 if placed.columns else 1) for placed in run.groups)
    return launched + constants.hooked_matrix * run.micro_batches * hooked


def _of_adapters(run: Run, again: float, constants: Constants) -> Iterator[Time]:
    """What small matrices cost beside the large ones: everything is read once more."""
    if run.is_full:
        return
    operands = sum(p.count * (p.group.inputs + p.group.outputs) for p in run.groups if p.columns)
    moved = 4 * run.tokens * operands * (1 + again / 4)
    yield Time("adapters", _streamed(run, moved, constants.traffic), f"{moved / 1e9:.0f} GB")
    if run.base_format == "fp8":
        moved = sum(
            p.count * (3 * run.tokens * (p.group.inputs + p.group.outputs) + 2 * p.group.parameters)
            for p in run.groups
        )
        seconds = _streamed(run, moved, constants.quantize)
        yield Time("FP8 quantization", seconds, f"{moved / 1e9:.0f} GB")


def _inner(run: Run) -> float:
    """Width of a layer's gated products that a token goes through, in the mean over layers."""
    shape = run.model.shape
    sparse = shape.active_experts * shape.expert_width + shape.shared_width
    return (shape.dense_layers * shape.intermediate + shape.sparse_layers * sparse) / shape.layers


def _streamed(run: Run, size: float, share: float) -> float:
    return size / (share * run.chip.memory_bandwidth)


def _again(memory: Memory) -> float:
    """The share of layers that are computed again as a whole."""
    whole = {Recompute.LAYERS, Recompute.OFFLOAD}
    return sum(mode in whole for mode in memory.modes) / len(memory.modes)


def _gathering(run: Run, constants: Constants) -> Iterator[Time]:
    """ZeRO-3: every micro-batch gathers the weights twice and scatters their gradients."""
    if run.strategy.zero_stage < 3:
        return
    passes = 3 if run.is_full else 2
    moved = passes * run.width * run.model.parameters.total * (1 - 1 / run.world)
    seconds = constants.exposed * moved / (constants.links * _link(run))
    if run.strategy.offload is Offload.ALL:
        seconds += passes * run.width * run.model.parameters.total / run.world / _host(run)
    yield Time("gathering", seconds, f"{moved / 1e9:.0f} GB, partly hidden")
    count = sum(placed.layers for placed in run.groups)
    yield Time("hooks", count * constants.gathered_matrix, f"DeepSpeed's, of {count} matrices")


def _per_step(run: Run, constants: Constants) -> Iterator[Time]:
    """What is done once for all micro-batches."""
    stage = run.strategy.zero_stage
    if stage < 3:
        # Gradients are sent twice, in 32 bits by ZeRO 0; the others send the new weights as well.
        each = 3 * run.width if stage else 2 * 4
        moved = each * run.trained * (1 - 1 / run.world)
        seconds = moved / (constants.links * _link(run))
        yield Time("reduction", seconds, f"of {run.trained:,} gradients")
    if run.is_full and (run.accumulates or run.world > 1):
        summed = run.trained / (run.world if stage > 1 else 1)
        passes = 18 * run.micro_batches - 12  # 6 of them to turn 16 bits into 32
        # ZeRO 1 converts all for the reduction and back, clips and clears what is not its own.
        passes += 36 if stage == 1 and not run.offloads else 0
        seconds = _streamed(run, summed * passes, constants.traffic)
        yield Time("accumulation", seconds, "of gradients in 32 bits")
    own = run.trained / (run.world if stage else 1)
    if stage:
        count = math.ceil(own / SUB_GROUP) if stage == 3 else 0
        seconds = constants.sharded_update + count * constants.sub_group
        yield Time("waiting for the update", seconds, "and then for the host; DeepSpeed's")
    if run.offloads:
        seconds = own * run.strategy.processes / constants.host_update + 6 * own / _host(run)
        yield Time("update", seconds, f"of {own:,.0f} parameters, on the host")
        return
    small = run.payload.optimizer_states == "int8"
    share = constants.int8_update if small else constants.traffic
    moved = own * (22 if small else 50)  # gradients' norm and clipping, states, weights
    yield Time("update", _streamed(run, moved, share), f"of {own:,.0f} parameters")


def _link(run: Run) -> float:
    return run.chip.link_bandwidth if run.strategy.nodes == 1 else run.chip.network_bandwidth


def _host(run: Run) -> float:
    return run.chip.host_bandwidth
