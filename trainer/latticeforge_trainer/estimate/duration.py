"""How long everything takes that is not training, in seconds: bytes and tokens at stated rates."""

from __future__ import annotations

from latticeforge_trainer.estimate.base_model import BaseModel
from latticeforge_trainer.estimate.constants import RATES, Rates
from latticeforge_trainer.estimate.disk import state_bytes
from latticeforge_trainer.estimate.training import Run

WAITING = 0.1
"""Most of the time that training waits for checkpoints, as a share."""


def checkpoint_interval(every: float, stall: float) -> float:
    """Seconds from one checkpoint to the next.

    Args:
        every: As asked for.
        stall: Seconds that training stands still for one: what takes long is written less often.
    """
    return max(every, stall / WAITING)


def loading_seconds(run: Run, rates: Rates = RATES) -> float:
    """From a train pod's start to its first step: each node reads the model once."""
    return rates.start + run.model.stored_bytes / rates.disk_read


def checkpoint_seconds(run: Run, host_left: int | None, rates: Rates = RATES) -> float:
    """How long training stands still for one checkpoint: until the host has room for the rest.

    Args:
        run: What is trained, and how.
        host_left: Bytes of each pod's memory that nothing else takes; the trainer uses half of
            them. None: it is not known, and taken to be enough.
        rates: What is assumed.
    """
    if host_left is None:
        return 0.0
    nodes = run.strategy.nodes if run.is_full and run.strategy.zero_stage else 1
    beyond = state_bytes(run.payload, run.trained) - nodes * (host_left // 2)
    return max(0, beyond) / rates.disk_write


def writing_seconds(run: Run, rates: Rates = RATES) -> float:
    """From a checkpoint's begin until it is complete, while training goes on."""
    return state_bytes(run.payload, run.trained) / rates.disk_write


def result_seconds(run: Run, rates: Rates = RATES) -> float:
    """Writing what was trained, in 16 bits, by the first process."""
    return run.width * run.trained / rates.disk_write


def download_seconds(model: BaseModel, rates: Rates = RATES) -> float:
    """Bringing a base model from the Hub."""
    return model.stored_bytes / rates.hub_download


def merge_seconds(model: BaseModel, rates: Rates = RATES) -> float:
    """Folding an adapter into the weights, and comparing the two models."""
    size = 2 * model.parameters.total
    return rates.start + size / rates.merge + 2 * size / rates.disk_read


def upload_seconds(size: int, rates: Rates = RATES) -> float:
    """Publishing so many bytes."""
    return rates.start + size / rates.hub_upload


def evaluation_seconds(
    model: BaseModel,
    *,
    problems: int,
    tokens: int,
    models: int = 1,
    batch_size: int = 32,
    rates: Rates = RATES,
) -> float:
    """Asking models a suite's problems.

    Args:
        model: One of them.
        problems: How many.
        tokens: Of an answer, at most.
        models: How many are asked.
        batch_size: Problems that are asked at a time.
        rates: What is assumed.
    """
    batches = -(-problems // batch_size)
    each = batches * tokens / rates.generation_steps
    return rates.start + models * (2 * model.parameters.total / rates.disk_read + each)
