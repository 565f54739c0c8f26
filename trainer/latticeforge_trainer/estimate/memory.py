"""The peak of one GPU's memory in a training step of this trainer, term by term.

A step is looked at where its memory can peak: when the loss is taken (everything is kept, and
logits are there), in backward at each layer (what is kept goes, gradients come), and when weights
are updated. The largest of these is the peak, and its terms are what `Memory` lists.

`allocated` is `torch.cuda.max_memory_allocated`; `reserved` is `max_memory_reserved`, with what
lies between tensors. CUDA's context and NCCL's buffers are outside both; `capacity` is what they,
and a margin, leave of the chip.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from latticeforge_trainer.contract import Recompute
from latticeforge_trainer.estimate.activations import Choice, LayerMemory, layer_memory
from latticeforge_trainer.estimate.buckets import PREFETCH_BUCKET
from latticeforge_trainer.estimate.constants import FITTED, NCCL, SAFETY, WORKSPACES, Constants
from latticeforge_trainer.estimate.linears import expert_parameters, is_fused
from latticeforge_trainer.estimate.recompute import (
    bytes_gathered,
    bytes_of_head,
    choose_modes,
    margin,
    rows_kept,
)
from latticeforge_trainer.estimate.states import (
    all_gradients,
    gradient_bytes,
    in_update,
    later_states,
    reduction_buffers,
    standing_states,
    waiting_gradients,
)
from latticeforge_trainer.estimate.terms import Term, present, total
from latticeforge_trainer.estimate.training import Run
from latticeforge_trainer.estimate.weights import (
    loaded_weights,
    placed_adapters,
)


@dataclass(frozen=True)
class Memory:
    """What a GPU needs, and has."""

    terms: tuple[Term, ...]
    """At the peak; their sum is `allocated`."""
    allocated: int
    reserved: int
    context: int
    """Outside torch's allocator, in neither of the two."""
    capacity: int
    """What may be reserved."""
    modes: tuple[Recompute, ...]
    """What each decoder layer computes again."""

    @property
    def fits(self) -> bool:
        """Whether it runs."""
        return self.reserved <= self.capacity

    @property
    def free(self) -> int:
        """What is left; negative where it does not fit."""
        return self.capacity - self.reserved


def gpu_memory(run: Run, *, constants: Constants = FITTED) -> Memory:
    """The peak of each of a run's GPUs.

    Args:
        run: What is trained, and how.
        constants: What its formulas leave open.
    """
    workspaces = Term("workspaces", WORKSPACES, "of cuBLAS, 32 MiB for each of two threads")
    loaded = (*loaded_weights(run), *standing_states(run), workspaces)
    choice = choice_of(run, run.chip.memory_bytes - constants.context - total(loaded))
    standing = (*loaded, *later_states(run), *placed_adapters(run, choice.spare))
    peak = max(_moments(run, choice.modes), key=total)
    terms = present(*standing, *peak)
    allocated = total(terms)
    fragments = constants.fragments["full" if run.is_full else run.base_format]
    context = constants.context + (NCCL if run.world > 1 else 0)
    return Memory(
        terms=terms,
        allocated=allocated,
        reserved=allocated + int(fragments * math.sqrt(total(peak) * 2**30)),
        context=context,
        capacity=int(run.chip.memory_bytes * (1 - SAFETY)) - context,
        modes=tuple(choice.modes),
    )


def offloaded_layers(memory: Memory) -> int:
    """How many layers' inputs wait in host memory."""
    return memory.modes.count(Recompute.OFFLOAD)


def choice_of(run: Run, free: int) -> Choice:
    """What the trainer will choose to compute again, with so many bytes free."""
    if run.asked is not Recompute.AUTO:
        return Choice([run.asked] * run.model.shape.layers, 0)
    return choose_modes(run, free - margin(run.chip.memory_bytes))


def _moments(run: Run, modes: list[Recompute]) -> Iterator[tuple[Term, ...]]:
    """What is there beside weights and states, when it can be the most."""
    memory = layer_memory(run.model.shape, run.width)
    sizes = {mode: _kept(memory, mode) * rows_kept(run) for mode in set(modes)}
    kept = [sizes[mode] for mode in modes]
    yield _at_loss(run, modes, sum(kept))
    yield _in_backward(run, modes, kept, memory)
    yield (
        Term("gradients", all_gradients(run), "of everything that is trained"),
        Term("update", in_update(run), "a bucket of gradients in 32 bits"),
    )


def _at_loss(run: Run, modes: list[Recompute], kept: int) -> tuple[Term, ...]:
    shape, width = run.model.shape, run.width
    last = width * run.tokens * shape.hidden
    gathered = bytes_gathered(run) if run.strategy.zero_stage == 3 else 0
    return (
        _activations(run, modes, kept),
        Term("gradients", waiting_gradients(run), "of the micro-batches before"),
        Term(
            "head and loss",
            bytes_of_head(run) + last,
            "logits of a piece, hidden states, their gradients",
        ),
        Term("gathered weights", gathered, "the head, layers soon used again, the next ones"),
    )


def _in_backward(
    run: Run, modes: list[Recompute], kept: list[int], memory: LayerMemory
) -> tuple[Term, ...]:
    """At the layer where what is still kept and what has come of gradients are the most."""
    shape, waiting = run.model.shape, waiting_gradients(run)
    of_layer = (run.trained - run.trained_tables) / shape.layers
    of_head = shape.vocabulary * shape.hidden if run.trains_head else 0
    peak = (0, 0, 0, 0)
    for layer in _ends(modes):
        below = sum(kept[: layer + 1])
        passed = (len(modes) - 1 - layer) * of_layer
        gradients = waiting or gradient_bytes(run, of_head, passed)
        again = _again(run, modes[layer], memory)
        peak = max(peak, (below + gradients + again, below, gradients, again))
    _, below, gradients, again = peak
    return (
        _activations(run, modes, below),
        Term("gradients", gradients, "of what backward has passed"),
        Term("recomputed layer", again, "what one layer keeps without recomputation"),
        Term("a layer's backward", _passing(run), "gradients of its gated product and output"),
        Term("reduction buckets", reduction_buffers(run), "of 16-bit gradients"),
        Term("gathered weights", _gathered(run), "a layer, its gradients, the next matrices"),
    )


def _ends(modes: list[Recompute]) -> Iterator[int]:
    """The first and the last layer of each mode: between them, all that changes does so evenly."""
    start = 0
    for _, layers in groupby(modes):
        end = start + sum(1 for _ in layers)
        yield from (start, end - 1)
        start = end


_KEPT = {
    Recompute.NOTHING: "nothing",
    Recompute.ELEMENTWISE: "elementwise",
    Recompute.LAYERS: "input",
}


def _kept(memory: LayerMemory, mode: Recompute) -> int:
    size: int = getattr(memory, _KEPT[mode]) if mode in _KEPT else 0  # none: it is on the host
    return size


def _again(run: Run, mode: Recompute, memory: LayerMemory) -> int:
    if mode not in {Recompute.LAYERS, Recompute.OFFLOAD}:
        return 0
    return (memory.elementwise - _kept(memory, mode)) * rows_kept(run)


def _passing(run: Run) -> int:
    """What a layer's backward needs at most beside what was kept.

    In the gated product: the gradients of product, gate and up, the product again, the output's.
    Over FP8 also, one step later: a quantized gradient and a transposed weight.
    """
    shape, width = run.model.shape, run.width
    inner, hidden = shape.intermediate, shape.hidden
    if not is_fused(run.model):
        return layer_memory(shape, width).passing * rows_kept(run)
    room = sum(placed.columns for placed in run.groups) if run.is_concatenated else 0
    gated = run.tokens * width * (4 * inner + hidden + room)
    gated += width * inner * hidden if run.is_full else 0  # the down projection's gradient
    if run.base_format != "fp8":
        return gated
    through_norm = run.tokens * (width * (2 * inner + 3 * hidden) + 2 * inner) + 2 * inner * hidden
    return max(gated, through_norm)


def _gathered(run: Run) -> int:
    if run.strategy.zero_stage < 3:
        return 0
    groups = [placed.group for placed in run.groups]
    weights = sum(placed.count * placed.group.parameters for placed in run.groups)
    layer = (weights + expert_parameters(run.model.shape)) // run.model.shape.layers
    matrix = max(width * group.inputs for group in groups for width in group.widths)
    trained = layer + matrix if run.is_full else 0  # its gradients, one of them flattened
    return run.width * (layer + max(PREFETCH_BUCKET, matrix) + trained)


def _activations(run: Run, modes: list[Recompute], size: int) -> Term:
    kinds = ", ".join(f"{modes.count(mode)} x {mode.value}" for mode in dict.fromkeys(modes))
    return Term("activations", size, f"{run.tokens} tokens in {len(modes)} layers: {kinds}")
