"""Edits of a stack that would make it fit, or train faster; each is planned, none is guessed.

They are tried in the order in which a user would rather make them: more of the same hardware first,
then another method, then what changes the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from latticeforge_operator.api import GPUPool, StackedTrainingSpec, Stage
from latticeforge_operator.api.base import parse_quantity
from latticeforge_operator.api.training import LoRA, Storage
from latticeforge_operator.core.planning.options import Request, option_of
from latticeforge_operator.core.planning.placement import WITHOUT_FP8
from latticeforge_operator.core.planning.plan import Alternative, Option
from latticeforge_operator.core.planning.words import rounded_up
from latticeforge_trainer.contract import Method
from latticeforge_trainer.estimate.base_model import why_untrainable
from latticeforge_trainer.estimate.terms import GIB, total

MOST_NODES = 8
"""Nodes that are tried where the pool does not say how many it has."""

SHORTEST = 512
"""Tokens: a sequence is not advised to be cut below this."""

PLENTY = "16Ti"
"""Host memory that any node's need fits in."""

_HOST_STEP = 64 * GIB
"""What needed host memory is rounded up to."""


@dataclass(frozen=True)
class _Edit:
    change: str
    request: Request
    pool: GPUPool
    gpus: int
    lossy: bool = False


def that_fit(
    request: Request, option: Option, others: Sequence[GPUPool] = ()
) -> Iterator[Alternative]:
    """Edits that would make a refused option fit, the first of each kind that does.

    Args:
        request: What was asked for.
        option: The option that is refused.
        others: Pools that the stack did not ask for.
    """
    pool, gpus = option.pool, option.gpus
    for edits in (
        _more_storage(request, pool, gpus),
        _more_gpus(request, pool, gpus),
        _more_host(request, pool, gpus),
        _another_pool(request, others, gpus),
        _smaller_method(request, pool, gpus),
        _no_gates(request, pool, gpus),
        _int8(request, pool, gpus),
        _shorter(request, pool, gpus),
    ):
        planned = map(_planned, edits)
        yield from islice((other for other in planned if other.option.refusal is None), 1)


def that_are_faster(request: Request, option: Option, most: int) -> Iterator[Alternative]:
    """Edits that would make a feasible option faster: more nodes, and what is lossy.

    Args:
        request: What was asked for.
        option: The option that is chosen.
        most: GPUs of the pool that have been looked at already.
    """
    pool, gpus = option.pool, option.gpus
    for edits in (
        _more_gpus(request, pool, most),
        _int8(request, pool, gpus),
        _fp8(request, pool, gpus),
    ):
        planned = map(_planned, edits)
        yield from islice((other for other in planned if _is_faster(other.option, option)), 1)


def _is_faster(other: Option, option: Option) -> bool:
    return other.refusal is None and other.seconds.expected < option.seconds.expected


def _planned(edit: _Edit) -> Alternative:
    """What comes of an edit, on a volume as large as it then needs."""
    option = option_of(edit.request, edit.pool, edit.gpus)
    storage, needed = edit.request.spec.storage, total(option.disk)
    if storage.size is None or needed <= parse_quantity(storage.size):
        return Alternative(edit.change, option, edit.lossy)
    size = rounded_up(needed)
    spec = edit.request.spec.model_copy(update={"storage": Storage(size=size)})
    option = option_of(replace(edit.request, spec=spec), edit.pool, edit.gpus)
    changes = ", ".join(filter(None, [edit.change, f"storage.size: {size}"]))
    return Alternative(changes, option, edit.lossy)


def _more_storage(request: Request, pool: GPUPool, gpus: int) -> Iterator[_Edit]:
    yield _Edit("", request, pool, gpus)  # a volume that is large enough is all


def _more_gpus(request: Request, pool: GPUPool, gpus: int) -> Iterator[_Edit]:
    per_node = pool.spec.gpus_per_node
    most = per_node * (pool.nodes or MOST_NODES)
    more = gpus * 2
    while more <= most:
        if more <= per_node or more % per_node == 0:
            nodes = f" ({more // per_node} nodes)" if more > per_node else ""
            spec = _with_compute(request.spec, gpus=more, pool=pool.name)
            yield _Edit(f"compute.gpus: {more}{nodes}", replace(request, spec=spec), pool, more)
        more *= 2


def _more_host(request: Request, pool: GPUPool, gpus: int) -> Iterator[_Edit]:
    plenty = option_of(request, _with_host(pool, PLENTY), gpus)
    if len(plenty.stages) < len(request.spec.stages):
        return
    share = pool.spec.gpus_per_node / plenty.stages[0].strategy.processes
    needed = max(total(stage.host) for stage in plenty.stages) * share
    size = f"{math.ceil(needed / _HOST_STEP) * _HOST_STEP // GIB}Gi"
    change = f"hostMemory: {size} or more on the nodes of pool {pool.name}"
    yield _Edit(change, request, _with_host(pool, size), gpus)


def _another_pool(request: Request, pools: Sequence[GPUPool], gpus: int) -> Iterator[_Edit]:
    for pool in pools:
        spec = _with_compute(request.spec, pool=pool.name)
        yield _Edit(f"compute.pool: {pool.name}", replace(request, spec=spec), pool, gpus)


def _no_gates(request: Request, pool: GPUPool, gpus: int) -> Iterator[_Edit]:
    def ungated(stage: Stage) -> Stage:
        return stage.model_copy(update={"evaluate": []})

    yield from _edited(request, pool, gpus, "no evaluate, and so no gate,", ungated)


def _smaller_method(request: Request, pool: GPUPool, gpus: int) -> Iterator[_Edit]:
    for method in (Method.LORA, Method.QLORA):
        if why_untrainable(request.model.quantization, method) is not None:
            continue

        def smaller(stage: Stage, method: Method = method) -> Stage:
            order = list(Method)
            if order.index(stage.method) >= order.index(method):
                return stage
            parameters = stage.hyperparameters.model_copy(update={"optimizer_states": "FP32"})
            return stage.model_copy(update={"method": method, "hyperparameters": parameters})

        yield from _edited(request, pool, gpus, f"method: {method}", smaller)


def _int8(request: Request, pool: GPUPool, gpus: int) -> Iterator[_Edit]:
    def smaller(stage: Stage) -> Stage:
        if stage.method is not Method.FULL:
            return stage
        parameters = stage.hyperparameters.model_copy(update={"optimizer_states": "INT8"})
        return stage.model_copy(update={"hyperparameters": parameters})

    yield from _edited(request, pool, gpus, "optimizerStates: INT8", smaller, lossy=True)


def _fp8(request: Request, pool: GPUPool, gpus: int) -> Iterator[_Edit]:
    if pool.spec.accelerator in WITHOUT_FP8 or request.model.quantization is not None:
        return

    def faster(stage: Stage) -> Stage:
        if not stage.method.is_adapter:
            return stage
        lora = (stage.lora or LoRA()).model_copy(update={"base_dtype": "FP8"})
        return stage.model_copy(update={"method": Method.LORA, "lora": lora})

    yield from _edited(
        request, pool, gpus, "method: LoRA with lora.baseDtype: FP8", faster, lossy=True
    )


def _shorter(request: Request, pool: GPUPool, gpus: int) -> Iterator[_Edit]:
    longest = max(stage.hyperparameters.sequence_length for stage in request.spec.stages)
    while longest // 2 >= SHORTEST:
        longest //= 2

        def shorter(stage: Stage, longest: int = longest) -> Stage:
            if stage.hyperparameters.sequence_length <= longest:
                return stage
            parameters = stage.hyperparameters.model_copy(update={"sequence_length": longest})
            return stage.model_copy(update={"hyperparameters": parameters})

        yield from _edited(request, pool, gpus, f"sequenceLength: {longest}", shorter, lossy=True)


def _edited(
    request: Request,
    pool: GPUPool,
    gpus: int,
    change: str,
    edit: Callable[[Stage], Stage],
    *,
    lossy: bool = False,
) -> Iterator[_Edit]:
    """The stack with an edit of its stages, if it changes any."""
    stages = [edit(stage) for stage in request.spec.stages]
    changed = [new.name for old, new in zip(request.spec.stages, stages, strict=True) if new != old]
    if not changed:
        return
    spec = request.spec.model_copy(update={"stages": stages})
    where = f" in stage {', '.join(changed)}"
    yield _Edit(f"{change}{where}", replace(request, spec=spec), pool, gpus, lossy)


def _with_host(pool: GPUPool, size: str) -> GPUPool:
    spec = pool.spec.model_copy(update={"host_memory": size})
    return pool.model_copy(update={"spec": spec})


def _with_compute(spec: StackedTrainingSpec, **fields: object) -> StackedTrainingSpec:
    return spec.model_copy(update={"compute": spec.compute.model_copy(update=fields)})
