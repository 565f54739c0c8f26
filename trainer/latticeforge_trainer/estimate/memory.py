"""The peak of one GPU's memory in a training step of this trainer, term by term.

A step is looked at where its memory can peak: when the loss is taken (everything is kept, and
logits are there), in backward behind each layer (what is kept goes, gradients come), and when
weights are updated. The largest of these is the peak, and its terms are what `Memory` lists.

`allocated` is `torch.cuda.max_memory_allocated`; `reserved` is `max_memory_reserved`, with what lies
between tensors. CUDA's context and NCCL's buffers are outside both; `capacity` is what they, and a
margin, leave of the chip.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

from latticeforge_trainer.contract import Method, Offload, Recompute
from latticeforge_trainer.estimate import constants
from latticeforge_trainer.estimate.activations import Choice, LayerMemory, layer_memory
from latticeforge_trainer.estimate.linears import is_fused
from latticeforge_trainer.estimate.recompute import (
    UNFUSED,
    choose_modes,
    logits_at_once,
    margin,
)
from latticeforge_trainer.estimate.states import later_states, standing_states
from latticeforge_trainer.estimate.terms import Term, present, total
from latticeforge_trainer.estimate.training import Run
from latticeforge_trainer.estimate.weights import base_format, unpack, weights


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


def gpu_memory(run: Run) -> Memory:
    """The peak of each of a run's GPUs."""
    standing = (*weights(run), *standing_states(run))
    context = constants.CONTEXT + (constants.NCCL if run.world > 1 else 0)
    choice = _choice(run, run.chip.memory_bytes - context - total(standing))
    standing += (*later_states(run), *unpack(run, choice.spare))
    peak = max(_moments(run, choice.modes), key=total)
    terms = present(*standing, *peak)
    allocated = total(terms)
    fragments = constants.FRAGMENTS["full" if run.is_full else base_format(run)]
    return Memory(
        terms=terms,
        allocated=allocated,
        reserved=int(allocated * (1 + fragments)),
        context=context,
        capacity=int(run.chip.memory_bytes * (1 - constants.SAFETY)) - context,
        modes=tuple(choice.modes),
    )


def _choice(run: Run, free: int) -> Choice:
    shape = run.model.shape
    if run.asked is not Recompute.AUTO:
        return Choice([run.asked] * shape.layers, 0)
    return choose_modes(
        shape,
        run.payload,
        tokens=run.tokens,
        at_hand=free - margin(run.chip.memory_bytes),
        trained=run.trained,
        accumulates=run.accumulates,
        fused=is_fused(run.model),
    )


def _moments(run: Run, modes: list[Recompute]) -> Iterator[tuple[Term, ...]]:
    """What is there beside weights and states, when it can be the most."""
    shape, width = run.model.shape, run.width
    memory = layer_memory(shape, width)
    rows = run.tokens * (1 if is_fused(run.model) else UNFUSED)
    kept = [_kept(memory, mode) * rows for mode in modes]
    standing = _gradients(run) if run.accumulates else 0
    logits = width * logits_at_once(shape, run.tokens)
    hidden = width * run.tokens * shape.hidden
    table = shape.vocabulary * shape.hidden
    yield (
        _activations(sum(kept), run, modes),
        Term("gradients", standing, "of the micro-batches before"),
        Term("head", 3 * hidden + logits + (6 * table if run.is_full else 0), "logits and loss"),
    )
    of_layer = (_gradients(run) - (_head_gradient(run))) // shape.layers
    best = (0, 0, 0, 0)
    for layer, below in enumerate(accumulate(kept)):
        gradients = standing or _head_gradient(run) + (shape.layers - 1 - layer) * of_layer
        again = memory.elementwise * rows if modes[layer] in _WHOLE else 0
        best = max(best, (below + gradients + again, below, gradients, again))
    _, below, gradients, again = best
    yield (
        _activations(below, run, modes),
        Term("gradients", gradients, "of the layers that backward has passed"),
        Term("recomputed layer", again, f"{memory.elementwise} B for each token"),
        Term("backward of a layer", memory.passing * rows, f"{memory.passing} B for each token"),
    )
    yield (
        Term("gradients", _gradients(run), "of everything that is trained"),
        Term("update", _update(run), "gradients of a bucket in 32 bits"),
    )


_WHOLE = {Recompute.LAYERS, Recompute.OFFLOAD}


def _kept(memory: LayerMemory, mode: Recompute) -> int:
    return {
        Recompute.NOTHING: memory.nothing,
        Recompute.ELEMENTWISE: memory.elementwise,
        Recompute.LAYERS: memory.input,
        Recompute.OFFLOAD: 0,
    }[mode]


def _activations(size: int, run: Run, modes: list[Recompute]) -> Term:
    kinds = ", ".join(f"{modes.count(mode)} x {mode.value}" for mode in dict.fromkeys(modes))
    return Term("activations", size, f"{run.tokens} tokens in {len(modes)} layers: {kinds}")


def _gradients(run: Run) -> int:
    if run.strategy.zero_stage >= 2:
        return 0  # among the states: each process holds its part
    wide = not run.is_full or run.accumulates or run.world > 1 or run.strategy.zero_stage
    return run.trained * (4 if wide else run.width)


def _head_gradient(run: Run) -> int:
    table = run.model.shape.vocabulary * run.model.shape.hidden
    return table * run.width if run.is_full else 0


def _update(run: Run) -> int:
    bucket = min(run.trained, 100_000_000)
    if run.payload.method is Method.FULL and run.payload.optimizer_states == "fp32":
        return 4 * max(bucket, run.model.shape.vocabulary * run.model.shape.hidden)
    return 4 * bucket if run.world > 1 and run.strategy.offload is Offload.NONE else 0
