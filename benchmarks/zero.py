"""The trainer under DeepSpeed's ZeRO stages on several GPUs of one machine, beside the planner.

    python -m benchmarks.zero --processes 2 --output zero.json
    python -m benchmarks.zero --shape 7.6B --cases Full-3,LoRA-2 --checkpoint 0

Each row is a whole `train` step on random weights and tokens, as the operator's pods run it: loaded
from safetensors, 20 steps, a checkpoint after the 14th written beside the others, the result
exported. Host memory for the checkpoint is locked beside the first steps. Speed is the median of
the steps after three warm-ups; memory is the first process's peak; the stall is how much longer
than that median the step behind the checkpoint took.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.planner_runs import chip_of, planned
from benchmarks.trainer import (
    GIB,
    PEAK_FLOPS,
    SHAPES,
    Run,
    flops_per_token,
    random_model,
    train_config,
)
from latticeforge_trainer.artifacts import Store
from latticeforge_trainer.contract import StepKind, TrainConfig, TrainRuntime, digest_of
from latticeforge_trainer.estimate.memory import gpu_memory
from latticeforge_trainer.estimate.speed import speed
from latticeforge_trainer.models.shards import ShardWriter
from latticeforge_trainer.training.state import read_losses

WARM_UPS = 3


@dataclass(frozen=True)
class Case:
    """One row."""

    shape: str
    processes: int
    micro_batch: int
    sequence: int
    method: str
    zero_stage: int

    @property
    def tokens(self) -> int:
        """Of a step."""
        return self.sequence * self.micro_batch * self.processes

    @property
    def run(self) -> Run:
        """The same without ZeRO."""
        how = self.micro_batch, "elementwise", self.sequence, self.processes
        return Run("zero", "ours", self.shape, self.method, *how, states="fp32")


METHODS = [(method, stage) for method in ("Full", "LoRA") for stage in (3, 2, 1, 0)]


def methods(names: str) -> list[tuple[str, int]]:
    """Methods and ZeRO stages as the command line names them, such as `Full-3,LoRA-0`."""
    named = {f"{method}-{stage}": (method, stage) for method, stage in METHODS}
    try:
        return [named[name] for name in names.split(",")]
    except KeyError as missing:
        raise argparse.ArgumentTypeError(f"no {missing}: one of {', '.join(named)}") from None


def main() -> None:
    """Run every case; what one came to is printed and written at once."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shape", default="1.5B", choices=list(SHAPES))
    parser.add_argument("--processes", type=int, default=max(1, torch.cuda.device_count()))
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--sequence", type=int, default=4096)
    parser.add_argument("--cases", type=methods, default=METHODS, help="such as Full-3,LoRA-0")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--checkpoint", type=int, default=14, help="after so many steps; 0: none")
    parser.add_argument("--seconds", type=float, default=600, help="start no case after so long")
    parser.add_argument("--folder", type=Path, help="where models and checkpoints lie")
    parser.add_argument("--output", type=Path, help="JSON of every row")
    options = parser.parse_args()
    if options.checkpoint >= options.steps:
        parser.error("a checkpoint's stall shows in the step behind it: --steps after --checkpoint")
    end = time.monotonic() + options.seconds
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        store = Store(Path(folder))
        write_model(store.root / "base", options.shape)
        how = options.shape, options.processes, options.micro_batch, options.sequence
        cases = [Case(*how, *method) for method in options.cases]
        data = write_data(store, cases[0], options.steps)
        for case in cases:
            if time.monotonic() > end:
                print(f"{case}: not run, the time is up")
                continue
            row = asdict(case) | measure(case, store, data, options.checkpoint)
            rows.append(row)
            print(line_of(row), flush=True)
            if options.output:
                options.output.write_text(json.dumps(rows, indent=1) + "\n")


def write_model(folder: Path, shape: str) -> None:
    """A model of random weights, in safetensors."""
    folder.mkdir()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = random_model(Run("", "ours", shape, "Full", 1), device)
    model.config.architectures = ["Qwen2ForCausalLM"]
    model.config.save_pretrained(folder)
    writer = ShardWriter(folder, shard_bytes=2**30)
    for name, tensor in model.named_parameters():  # a tied head once
        writer.add(name, tensor.detach().cpu())
    writer.finish()


def write_data(store: Store, case: Case, steps: int) -> str:
    """Packed random tokens, one document in each sequence, for all steps; returns their digest."""
    digest = digest_of("random tokens")
    rows = steps * case.micro_batch * case.processes
    shape = rows, case.sequence
    vocabulary = SHAPES[case.shape].vocabulary
    tokens = np.random.default_rng(0).integers(0, vocabulary, shape, dtype=np.int32)
    positions = np.broadcast_to(np.arange(case.sequence, dtype=np.int32), shape)
    with store.create(digest) as staging:
        np.save(staging.folder / "input_ids.npy", tokens)
        np.save(staging.folder / "loss_mask.npy", (positions > 0).astype(np.uint8))
        np.save(staging.folder / "position_ids.npy", positions)
        np.save(staging.folder / "lengths.npy", np.full(rows, case.sequence, np.int32))
        staging.seal(StepKind.PREPARE, None)
    return digest


def measure(case: Case, store: Store, data: str, checkpoint: int) -> dict[str, Any]:
    """Run a case's `train` step by torchrun, and read what it left."""
    config = sharded(case, data, checkpoint)
    path = store.root / f"{config.digest[:12]}.json"
    path.write_text(json.dumps(config.to_json()))
    command = [sys.executable, "-m", "torch.distributed.run"]
    command += [f"--nproc-per-node={case.processes}", "-m", "latticeforge_trainer", "train"]
    command += ["--config", str(path), "--store", str(store.root)]
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    manifest = store.manifest(config.digest)
    if done.returncode or manifest is None:
        return {"error": done.stderr[-3000:]}
    steps = read_losses(store.path(config.digest) / "losses.jsonl")
    rates = [step["tokens"] / step["seconds"] for step in steps[WARM_UPS:]]
    seconds = [step["seconds"] + step["secondsByPhase"].get("checkpoint", 0) for step in steps]
    result = manifest.to_json()["result"]
    figures = {
        "gpu": result.get("gpu"),
        "tokens_per_second": statistics.median(rates),
        "tokens_per_second_range": [min(rates), max(rates)],
        "step_seconds": seconds,
        "stall_seconds": stall(seconds, checkpoint),
        "first_loss": steps[0]["loss"],
        "last_loss": steps[-1]["loss"],
        "whole_seconds": time.monotonic() - started,
        "torch": torch.__version__,
    }
    if result.get("gpu"):
        per_gpu = figures["tokens_per_second"] / case.processes
        figures["mfu"] = per_gpu * flops_per_token(case.run) / PEAK_FLOPS
        figures["allocated_gib"] = result["peakMemoryAllocatedBytes"] / GIB
        figures["reserved_gib"] = result["peakMemoryReservedBytes"] / GIB
        figures["predicted"] = prediction(case, result["gpu"])
    return figures


def stall(seconds: list[float], checkpoint: int) -> float | None:
    """How much longer than others the step behind a checkpoint took, if there was one."""
    return seconds[checkpoint] - statistics.median(seconds[WARM_UPS:]) if checkpoint else None


def sharded(case: Case, data: str, checkpoint: int) -> TrainConfig:
    """The step of a case, with a checkpoint after so many steps; 0: none."""
    config: TrainConfig = train_config(case.run)
    runtime = TrainRuntime(
        base_path="./base",
        data=data,
        strategy=config.runtime.strategy.model_copy(update={"zero_stage": case.zero_stage}),
        checkpoint_every_steps=checkpoint or None,
    )
    return config.model_copy(update={"digest": digest_of(asdict(case)), "runtime": runtime})


def prediction(case: Case, gpu: str) -> dict[str, float]:
    """What the planner says of it."""
    run = planned(case.run, chip_of(gpu))
    run = replace(run, strategy=run.strategy.model_copy(update={"zero_stage": case.zero_stage}))
    memory = gpu_memory(run)
    return {
        "allocated_gib": memory.allocated / GIB,
        "reserved_gib": memory.reserved / GIB,
        "tokens_per_second": speed(run).tokens_per_second,
    }


def line_of(row: dict[str, Any]) -> str:
    """What a person watches."""
    name = f"{row['method']:5} ZeRO-{row['zero_stage']}"
    if "error" in row:
        return f"{name}  {row['error']}"
    low, high = row["tokens_per_second_range"]
    line = f"{name}  {row['tokens_per_second']:9,.0f} tokens/s [{low:,.0f}, {high:,.0f}]"
    if row["stall_seconds"] is not None:
        line += f"  stall {row['stall_seconds']:.2f} s"
    line += f"  loss {row['first_loss']:.4f}"
    line += f" -> {row['last_loss']:.4f}  whole {row['whole_seconds']:.0f} s"
    if "predicted" in row:
        said = row["predicted"]
        line += f"  MFU {row['mfu']:.1%}  {row['allocated_gib']:.1f} / {row['reserved_gib']:.1f}"
        line += f" GiB, predicted {said['allocated_gib']:.1f} / {said['reserved_gib']:.1f}"
        line += f", {said['tokens_per_second']:,.0f} tokens/s"
    return line


if __name__ == "__main__":
    main()
