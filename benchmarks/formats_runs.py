"""Trains the quickstart's `cic` stage over bases in several formats, for `benchmarks.formats`.

Whatever is finished in the store is not trained again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from latticeforge_trainer.artifacts import Store
from latticeforge_trainer.contract import (
    DataSource,
    LoRASettings,
    Method,
    ModelSource,
    PrepareConfig,
    PreparePayload,
    PrepareRuntime,
    Recompute,
    StepKind,
    TrainConfig,
    TrainPayload,
    TrainRuntime,
    step_digest,
)
from latticeforge_trainer.domain.datasets import write_dataset
from latticeforge_trainer.progress import LogSink, Reporter
from latticeforge_trainer.steps import prepare, train
from latticeforge_trainer.training.state import read_losses

MODEL = "./models/SmolLM2-135M-Instruct"
SEEDS = (0, 1)
"""Of the adapter's random half."""
ORDERS = (1, 2)
"""Seeds of further orders of the samples, beside 0."""
HELD_OUT = 48
"""Problems of the stage's kind that it is not trained on."""


@dataclass(frozen=True)
class Format:
    """What a base is held and multiplied in."""

    method: Method
    base_dtype: Literal["fp8"] | None = None


BF16 = Format(Method.LORA)
FORMATS = {
    "bf16": BF16,
    "FP8": Format(Method.LORA, "fp8"),
    "NF4": Format(Method.QLORA),
}
OTHER_SEED, OTHER_ORDER = "bf16, other seed", "bf16, other order"

DATA = {"./data/cic.jsonl": 4.0, "./data/math.jsonl": 1.0}
"""The stage's mixture, and all else of it, as in examples/quickstart.yaml."""
SEQUENCE_LENGTH = 1024


@dataclass
class Run:
    """One trained adapter."""

    format: str
    seed: int
    """Of the adapter's random half, or of an other order."""
    losses: list[float]
    """Of every step."""
    held_out: float
    """Over the 16-bit base."""
    held_out_own: float
    """Over the format it was trained over."""
    adapter: Path


def measure(store: Store) -> tuple[dict[str, float], list[Run]]:
    """Train over every format with every seed.

    Returns:
        The held-out loss of the base in every format, and the runs.
    """
    file = "data/held-out-cic.jsonl"
    write_dataset("cic", HELD_OUT, 2, "heldout", store.root / file)
    data, held_out = packed(store, DATA, 0), packed(store, {f"./{file}": 1.0}, 0)
    untrained = {
        name: held_out_loss(store, train_config(kind, 0, data), held_out)
        for name, kind in FORMATS.items()
    }
    runs = [
        trained(store, name, seed, train_config(kind, seed, data), held_out)
        for seed in SEEDS
        for name, kind in FORMATS.items()
    ]
    for order in ORDERS:
        config = train_config(BF16, 0, packed(store, DATA, order))
        runs.append(trained(store, OTHER_ORDER, order, config, held_out))
    return untrained, runs


def packed(store: Store, mixture: dict[str, float], order: int) -> str:
    """The digest of a mixture, packed for the stage in one of its orders."""
    payload = PreparePayload(
        base=ModelSource(model=MODEL),
        data=[DataSource(source=source, weight=weight) for source, weight in mixture.items()],
        sequence_length=SEQUENCE_LENGTH,
        epochs=1,
        seed=order,
    )
    config = PrepareConfig(
        training="benchmarks/formats",
        stage="cic",
        digest=step_digest(StepKind.PREPARE, payload.to_json(), []),
        payload=payload,
        runtime=PrepareRuntime(method=Method.LORA),
    )
    result: Any  # a step declares no more than some StepResult
    result, _ = prepare.run(config, store, Reporter(StepKind.PREPARE, config.digest, LogSink()))
    return str(result.artifact)


def train_config(kind: Format, seed: int, data: str) -> TrainConfig:
    """The stage over a base in some format, at the quickstart's rate for LoRA."""
    payload = TrainPayload(
        method=kind.method,
        learning_rate=1e-3,
        warmup_ratio=0.1,
        sequence_length=SEQUENCE_LENGTH,
        global_batch_tokens=1024,
        lora=LoRASettings(rank=16, alpha=32, base_dtype=kind.base_dtype),
        seed=seed,
    )
    return TrainConfig(
        training="benchmarks/formats",
        stage="cic",
        digest=step_digest(StepKind.TRAIN, payload.to_json(), [data]),
        payload=payload,
        runtime=TrainRuntime(base_path=MODEL, data=data),
    )


def trained(store: Store, name: str, seed: int, config: TrainConfig, held_out: str) -> Run:
    """Train, unless that is done, and ask what held-out data comes to."""
    train.run(config, store, Reporter(StepKind.TRAIN, config.digest, LogSink()))
    folder = store.require(config.digest, "the trained adapter")
    run = Run(
        format=name,
        seed=seed,
        losses=[line["loss"] for line in read_losses(folder / "losses.jsonl")],
        held_out=held_out_loss(store, continued(config, BF16), held_out),
        held_out_own=held_out_loss(store, continued(config, FORMATS.get(name, BF16)), held_out),
        adapter=folder / "adapter",
    )
    print(f"{name}, seed {seed}: held-out loss {run.held_out:.4f}", flush=True)
    return run


def held_out_loss(store: Store, config: TrainConfig, data: str) -> float:
    """Mean loss on packed data of the model that a step starts from."""
    import torch  # noqa: PLC0415  (after settle_environment)

    from latticeforge_trainer.data.packed import PackedData  # noqa: PLC0415  (as above)
    from latticeforge_trainer.models.fused import decoder_layers, fuse  # noqa: PLC0415  (as above)
    from latticeforge_trainer.models.loading import default_device  # noqa: PLC0415  (as above)
    from latticeforge_trainer.training import batches  # noqa: PLC0415  (as above)
    from latticeforge_trainer.training.loss import TargetLoss  # noqa: PLC0415  (as above)
    from latticeforge_trainer.training.start import starting_model  # noqa: PLC0415  (as above)

    device = default_device()
    loss = TargetLoss(starting_model(config, store, device, {}, lambda _done, _total: None))
    fuse(loss.model, [Recompute.NOTHING] * len(decoder_layers(loss.model)))
    loss.train()  # there is no dropout; evaluation has bitsandbytes repack NF4 weights on a CPU
    sequences = PackedData(store.require(data, "the held-out data"))
    total = 0.0
    with torch.no_grad():
        for number in range(len(sequences)):
            total += loss(batches.make_micro_batch(sequences, [number]).to(device)).item()
    return total / batches.count_targets(sequences, list(range(len(sequences))))


def continued(done: TrainConfig, kind: Format) -> TrainConfig:
    """The step that would go on training an adapter over a base in some format."""
    lora = done.payload.lora and done.payload.lora.model_copy(
        update={"base_dtype": kind.base_dtype}
    )
    payload = {"method": kind.method, "lora": lora, "continue_adapter": True}
    return done.model_copy(
        update={
            "payload": done.payload.model_copy(update=payload),
            "runtime": done.runtime.model_copy(update={"upstream_adapter": done.digest}),
        }
    )
