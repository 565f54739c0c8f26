"""One option: the whole stack on so many GPUs of one pool, or why it cannot be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from latticeforge_operator.api import GPUPool, StackedTrainingSpec
from latticeforge_operator.api.base import is_on_hub, parse_quantity
from latticeforge_operator.core.planning import words
from latticeforge_operator.core.planning.history import History
from latticeforge_operator.core.planning.placement import PlanError, pods_of, unserved
from latticeforge_operator.core.planning.plan import Misfit, Option, StageData, StagePlan
from latticeforge_operator.core.planning.search import Site, Task, least, search
from latticeforge_operator.core.planning.timing import Context, training_only, works_of
from latticeforge_operator.core.steps import Step, line
from latticeforge_trainer.contract import StepKind, TrainPayload
from latticeforge_trainer.estimate.base_model import BaseModel
from latticeforge_trainer.estimate.chips import Chip, chip
from latticeforge_trainer.estimate.constants import CONTEXT, SAFETY
from latticeforge_trainer.estimate.disk import base_disk, disk
from latticeforge_trainer.estimate.terms import GIB, Term, total

GENERATION = GIB
"""What answering a few prompts takes beside the weights; batches are halved until they fit."""


@dataclass(frozen=True)
class Request:
    """What is to be planned."""

    spec: StackedTrainingSpec
    model: BaseModel
    data: Mapping[str, StageData] = field(default_factory=dict)
    history: History = field(default_factory=History)
    headroom: float = 0.0

    @cached_property
    def steps(self) -> list[Step]:
        """The line of steps."""
        return line(self.spec, quantized=self.model.quantization is not None)

    def tasks(self, pool: GPUPool) -> list[Task]:
        """The stages to be trained."""
        base = self.spec.base.model
        return [
            Task(
                step.stage.name,
                step.payload,
                self.model,
                self.data.get(step.stage.name, StageData()),
                self.history.factor(base, step.payload.method, pool.name),
            )
            for step in self.steps
            if isinstance(step.payload, TrainPayload) and step.stage is not None
        ]


def option_of(request: Request, pool: GPUPool, gpus: int) -> Option:
    """The stack on `gpus` GPUs of a pool, refused if it does not fit or costs too much."""
    option = Option(pool, gpus)
    try:
        site = site_of(request, pool, gpus)
    except PlanError as error:
        return replace(option, refusal=str(error))
    stages: list[StagePlan] = []
    searched: dict[str, StagePlan | list[Misfit]] = {}
    for task in request.tasks(pool):
        if task.shape not in searched:  # stages of one stack are often alike
            searched[task.shape] = search(task, site)
        found = searched[task.shape]
        if isinstance(found, list):
            why = words.misfit(site, task, found)
            return replace(
                option,
                stages=tuple(stages),
                refusal=f"{words.unfit(site, task)}: {why}",
                reason=f"{task.stage} does not fit: {why}",
                misfit=least(found),
            )
        stages.append(task.taken(found))
    option = replace(option, stages=tuple(stages), disk=_disk(request, stages))
    option = _timed(request, option)
    return replace(option, refusal=_refusal(request, option, site.chip))


def site_of(request: Request, pool: GPUPool, gpus: int) -> Site:
    """So many GPUs of a pool, in pods.

    Raises:
        PlanError: The pool does not serve the stack, or they do not divide into pods.
    """
    if why := unserved(request.spec, pool):
        raise PlanError(why)
    nodes, processes = pods_of(gpus, pool)
    return Site(pool, chip(pool.spec.accelerator.value), nodes, processes, request.headroom)


def _timed(request: Request, option: Option) -> Option:
    if any(stage.data.tokens is None for stage in option.stages):
        return replace(option, works=training_only(option.stages), per_million=True)
    context = Context(
        request.model,
        {stage.stage: stage for stage in option.stages},
        spot=option.pool.spec.spot,
        local=not is_on_hub(request.spec.base.model),
    )
    return replace(option, works=works_of(request.steps, context))


def _disk(request: Request, stages: Sequence[StagePlan]) -> tuple[Term, ...]:
    """What the volume holds in the end, over all stages."""
    merges = [step.stage for step in request.steps if step.kind is StepKind.MERGE]
    merged = {stage.name for stage in merges if stage is not None}
    terms = [base_disk(request.model)]
    for stage in stages:
        packed = stage.data.sequences or 0
        own = disk(
            request.model,
            stage.run.payload,
            packed_tokens=packed * stage.run.payload.sequence_length or stage.data.tokens or 0,
            merges=stage.stage in merged,
        )
        terms += [replace(term, name=f"{stage.stage}: {term.name}") for term in own]
    return tuple(terms)


def _refusal(request: Request, option: Option, gpu: Chip) -> str | None:
    """The first reason against an option that trains."""
    return (
        _too_large_to_evaluate(request, option, gpu)
        or _too_large_for_volume(request.spec, option)
        or words.too_slow(request.spec, option)
        or words.too_dear(request.spec, option)
    )


def _too_large_to_evaluate(request: Request, option: Option, gpu: Chip) -> str | None:
    """An evaluate step holds one GPU, which has to hold the whole model."""
    step = next((s for s in request.steps if s.kind is StepKind.EVALUATE), None)
    if step is None or step.stage is None:
        return None
    quantized = step.weights.adapter is not None and request.model.quantization is not None
    size = request.model.stored_bytes if quantized else 2 * request.model.parameters.total
    capacity = int(gpu.memory_bytes * (1 - SAFETY)) - CONTEXT
    if size + GENERATION <= capacity:
        return None
    return words.too_large_to_evaluate(step.stage.name, size + GENERATION, capacity, option.pool)


def _too_large_for_volume(spec: StackedTrainingSpec, option: Option) -> str | None:
    if spec.storage.size is None:
        return None
    needed, size = total(option.disk), parse_quantity(spec.storage.size)
    return words.too_large_for_volume(option.disk, needed, spec) if needed > size else None
