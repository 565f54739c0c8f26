"""How fast this trainer trains: the time of a step by what it is spent on."""

from __future__ import annotations

from dataclasses import dataclass

from latticeforge_trainer.contract import Method, Offload, Recompute
from latticeforge_trainer.estimate import constants
from latticeforge_trainer.estimate.linears import is_fused
from latticeforge_trainer.estimate.memory import gpu_memory
from latticeforge_trainer.estimate.training import Run
from latticeforge_trainer.estimate.weights import base_format


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


def speed(run: Run, document_length: float | None = None) -> Speed:
    """How fast a run trains.

    Args:
        run: What is trained, and how.
        document_length: Mean tokens of a document; None: one fills a sequence.
    """
    count = run.micro_batches
    times = [
        Time(part.name, count * part.seconds, f"{count} x {part.why}")
        for part in _micro_batch(run, document_length or run.payload.sequence_length)
    ]
    times += _per_step(run)
    seconds = sum(time.seconds for time in times)
    tokens = run.payload.sequences_per_step * run.payload.sequence_length
    kept = tuple(time for time in times if time.seconds > 0)
    return Speed(tokens / seconds, seconds, kept)


def _micro_batch(run: Run, length: float) -> list[Time]:
    shape, chip, tokens = run.model.shape, run.chip, run.tokens
    modes = gpu_memory(run).modes
    whole = sum(mode in {Recompute.LAYERS, Recompute.OFFLOAD} for mode in modes) / len(modes)
    passes = (6 if run.is_full else 4) + 2 * whole
    head = shape.vocabulary * shape.hidden
    linear = shape.linear_parameters - head
    fp8 = base_format(run) == "fp8" and chip.fp8_flops
    rate = constants.PRODUCTS * (fp8 or chip.peak_flops)
    products = passes * linear * tokens / rate
    products += (6 if run.is_full else 4) * head * tokens / (constants.PRODUCTS * chip.peak_flops)
    of_pairs = 6 * shape.attention_width * shape.layers * min(length, run.payload.sequence_length)
    attention = of_pairs * tokens / (constants.ATTENTION * chip.peak_flops) * (1 + whole * 2 / 7)
    inner = (
        shape.intermediate
        if not shape.sparse_layers
        else (shape.active_experts * shape.expert_width + shape.shared_width)
    )
    moved = tokens * shape.layers * 2 * (9 * inner + 16 * shape.hidden) * (1 + whole / 3)
    elementwise = moved / (constants.TRAFFIC * chip.memory_bandwidth)
    elementwise *= 1 if is_fused(run.model) else 2
    unpacking = 0.0
    if run.payload.method is Method.QLORA:
        unpacking = 2 * (2 + whole) * linear / (constants.TRAFFIC * chip.memory_bandwidth)
    floor = constants.LAUNCH * shape.layers
    idle = max(0.0, floor - products - attention - elementwise - unpacking)
    return [
        Time("products", products, f"{passes:.1f} FLOPs for each weight and token"),
        Time("attention", attention, f"documents of {length:,.0f} tokens"),
        Time("elementwise", elementwise, f"{moved / 1e9:,.0f} GB through memory"),
        Time("dequantization", unpacking, "NF4 to 16 bits for each product"),
        Time("waiting for the host", idle, f"{shape.layers} layers' kernels"),
        Time("gathering", _gathering(run), "weights of all layers, twice"),
    ]


def _gathering(run: Run) -> float:
    if run.strategy.zero_stage < 3 or run.world == 1:
        return 0.0
    moved = 3 * run.width * run.model.parameters.total * (1 - 1 / run.world)
    return constants.EXPOSED * moved / (constants.LINKS * _link(run))


def _per_step(run: Run) -> list[Time]:
    moved = 2 * 4 * run.trained * (1 - 1 / run.world)
    reduction = moved / (constants.LINKS * _link(run)) if run.strategy.zero_stage < 3 else 0.0
    own = run.trained / (run.world if run.strategy.zero_stage else 1)
    if run.strategy.offload is not Offload.NONE and run.strategy.zero_stage:
        update = own * run.strategy.processes / constants.HOST_ADAM
        update += 6 * own / run.chip.host_bandwidth
    else:
        update = 34 * own / (constants.TRAFFIC * run.chip.memory_bandwidth)
    return [
        Time("gradients' reduction", reduction, f"{run.trained:,} gradients"),
        Time("update", update, f"AdamW on {own:,.0f} parameters"),
    ]


def _link(run: Run) -> float:
    return run.chip.link_bandwidth if run.strategy.nodes == 1 else run.chip.network_bandwidth
