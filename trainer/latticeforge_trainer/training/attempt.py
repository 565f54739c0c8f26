"""One attempt at one stage: builds everything, trains from the last checkpoint, seals the result.

`training.process.settle_environment` must have run before this module is imported.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch

from latticeforge_trainer.artifacts import Store
from latticeforge_trainer.contract import StepKind, TrainConfig, TrainResult
from latticeforge_trainer.data.packed import PackedData
from latticeforge_trainer.errors import Interrupted, OutOfMemory, UserError
from latticeforge_trainer.models.fused import fuse
from latticeforge_trainer.models.loading import ADAPTER_FOLDER, MODEL_FOLDER
from latticeforge_trainer.models.streaming import Report
from latticeforge_trainer.progress import Reporter
from latticeforge_trainer.training import export
from latticeforge_trainer.training.batches import BatchPlan, equal_steps
from latticeforge_trainer.training.checkpoints import Checkpoints
from latticeforge_trainer.training.deepspeed_config import deepspeed_config
from latticeforge_trainer.training.engine import Engine
from latticeforge_trainer.training.loop import CheckpointPolicy, Training
from latticeforge_trainer.training.loss import TargetLoss, check_packing
from latticeforge_trainer.training.meters import (
    LossHistory,
    ProgressMeter,
    Yardstick,
    stage_result,
)
from latticeforge_trainer.training.neftune import add_noise
from latticeforge_trainer.training.plain import PlainEngine
from latticeforge_trainer.training.process import (
    StopSignal,
    World,
    barrier,
    join_world,
    leave_world,
)
from latticeforge_trainer.training.recompute import choose_recompute, unpack_spare
from latticeforge_trainer.training.start import starting_folder, starting_model
from latticeforge_trainer.training.state import LossLog, TrainState
from latticeforge_trainer.training.validation import Validation

LOSSES = "losses.jsonl"


def train(config: TrainConfig, store: Store, reporter: Reporter) -> TrainResult:
    """Train one stage in this process, which may be one of several.

    Returns:
        What the artifact's manifest says.

    Raises:
        StepError: As `latticeforge_trainer.errors` describes.
    """
    reporter.update("loading the model")
    world = World.from_environment()
    with StopSignal() as stop, gpu_memory_as_step_error(config):
        device = join_world(world, deepspeed=config.runtime.strategy.zero_stage > 0)
        data = open_data(config, store)
        plan = make_plan(config, data, world)
        engine = make_engine(config, store, plan, device, loading_report(reporter))
        work = store.work(config.digest)
        checkpoints = Checkpoints(
            work / "checkpoints",
            keep=config.runtime.keep_checkpoints,
            world=world,
            engine=engine,
        )
        state = checkpoints.load_latest(fresh_state(config, world))
        losses = work / LOSSES
        shape = engine.loss.causal.config.get_text_config()
        yardstick = Yardstick.of(shape, config.payload.method, world.size, device)
        training = Training(
            engine=engine,
            data=data,
            payload=config.payload,
            plan=plan,
            world=world,
            state=state,
            policy=CheckpointPolicy(
                config.runtime.checkpoint_every_steps, config.runtime.checkpoint_every_seconds
            ),
            checkpoints=checkpoints,
            stop=stop,
            yardstick=yardstick,
            validation=Validation.of(store.path(config.runtime.data), data.epoch_ends, plan),
        )
        if world.is_first:
            training.hooks = [
                LossHistory(LossLog(losses, state.history)),
                ProgressMeter(reporter, plan.steps, yardstick),
            ]
        try:
            training.run()
        except Interrupted:  # all processes are, together
            leave_world()
            raise
        reporter.update("writing the result", 1.0)
        result = seal(config, store, engine, stage_result(state.history, yardstick), world)
        leave_world()
        return result


def open_data(config: TrainConfig, store: Store) -> PackedData:
    """The stage's packed data.

    Raises:
        UserError: There is none, or it was packed for another sequence length.
    """
    data = PackedData(store.require(config.runtime.data, "the packed data"))
    asked = config.payload.sequence_length
    if data.sequence_length != asked:
        raise UserError(f"the data is packed into {data.sequence_length} tokens, not {asked}")
    if not len(data):
        raise UserError("the packed data holds no sequence: is every sample longer than allowed?")
    return data


def make_plan(config: TrainConfig, data: PackedData, world: World) -> BatchPlan:
    """How this process cuts the stage into steps and micro-batches."""
    return BatchPlan(
        ends=data.step_ends or equal_steps(len(data), config.payload.sequences_per_step),
        micro_batch=config.runtime.strategy.micro_batch,
        rank=world.rank,
        world=world.size,
    )


def loading_report(reporter: Reporter) -> Report:
    """How far loading is, as progress: of the step itself nothing is done yet."""

    def report(loaded: int, total: int) -> None:
        sizes = f"{loaded / 2**30:.1f} of {total / 2**30:.1f} GiB"
        reporter.update(f"loading the model: {sizes}")

    return report


def make_engine(
    config: TrainConfig, store: Store, plan: BatchPlan, device: torch.device, report: Report
) -> Engine:
    """The engine around the stage's starting model."""
    payload, strategy = config.payload, config.runtime.strategy
    ds_config = deepspeed_config(
        strategy,
        accumulation=plan.accumulation,
        max_grad_norm=payload.max_grad_norm,
        cuda=device.type == "cuda",
    )
    loss = TargetLoss(starting_model(config, store, device, ds_config, report))
    if payload.neftune_noise_alpha is not None:
        add_noise(loss.causal.get_input_embeddings(), payload.neftune_noise_alpha)
    engine: Engine
    if strategy.zero_stage == 0:
        engine = PlainEngine(loss, payload, accumulation=plan.accumulation, processes=plan.world)
    else:
        from latticeforge_trainer.training.sharded import ShardedEngine  # noqa: PLC0415  (DeepSpeed)

        engine = ShardedEngine(loss, payload, ds_config, device)
    choice = choose_recompute(config, loss)
    unpack_spare(fuse(loss.model, choice.modes), choice.spare, loss.causal.dtype)
    check_packing(loss, device, loss.causal.config.get_text_config().vocab_size)
    return engine


def fresh_state(config: TrainConfig, world: World) -> TrainState:
    """The state before the first step."""
    strategy = config.runtime.strategy
    return TrainState(
        world=world.size, zero_stage=strategy.zero_stage, precision=strategy.precision
    )


def seal(
    config: TrainConfig, store: Store, engine: Engine, result: TrainResult, world: World
) -> TrainResult:
    """Write the artifact, and drop the checkpoints; a collective."""
    with store.create(config.digest) if world.is_first else nullcontext() as staging:
        source = starting_folder(config, store)
        target: Path | None = staging.folder if staging else None
        if config.payload.method.is_adapter:
            export.export_adapter(engine, source, target and target / ADAPTER_FOLDER)
        else:
            export.export_model(engine, source, target and target / MODEL_FOLDER)
        if staging:
            shutil.copyfile(store.work(config.digest) / LOSSES, staging.folder / LOSSES)
            staging.seal(StepKind.TRAIN, result)
            store.forget_work(config.digest)
    barrier(world)
    return result


@contextmanager
def gpu_memory_as_step_error(config: TrainConfig) -> Iterator[None]:
    """Turn torch's out-of-memory error into the contract's."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        strategy = config.runtime.strategy
        raise OutOfMemory(
            f"out of GPU memory with micro-batch {strategy.micro_batch}, sequence length "
            f"{config.payload.sequence_length}, ZeRO-{strategy.zero_stage}"
        ) from error
