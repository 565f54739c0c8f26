"""How fast a model is loaded, ours beside transformers': `python -m benchmarks.loading`.

Makes a model of random weights unless it is given one, and loads it in a fresh process each time:
16-bit and quantized to NF4, with its files in the page cache (warm) and dropped from it (cold; what
a disk keeps for itself cannot be dropped). What is loaded is bf16, on the GPU if there is one.

Peak memory is the process's resident set above what importing the libraries took; it counts the
pages of a mapped file, which the kernel can take back.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, Qwen2Config

from latticeforge_trainer.models.detour import load_with_transformers
from latticeforge_trainer.models.loading import default_device, load_weights
from latticeforge_trainer.models.shards import ShardWriter

LOADERS = ("transformers", "ours")
KINDS = ("bf16", "nf4")


@dataclass
class Figures:
    """What one load came to."""

    seconds: float
    peak_gib: float
    """Resident memory at its peak, above where it began."""
    gpu_gib: float
    """GPU memory at its peak, as reserved; 0 without a GPU."""


def make_random_model(folder: Path, gigabytes: float) -> None:
    """Write a Qwen2 of random bf16 weights, of as many layers as it takes."""
    config = Qwen2Config(
        vocab_size=32768,
        hidden_size=2048,
        intermediate_size=8192,
        num_attention_heads=16,
        num_key_value_heads=4,
        num_hidden_layers=max(1, round((gigabytes - 0.27) / 0.121)),
        tie_word_embeddings=False,
    )
    config.architectures = ["Qwen2ForCausalLM"]
    config.dtype = torch.bfloat16
    config.save_pretrained(folder)
    build: Any = AutoModelForCausalLM.from_config  # untyped
    with torch.device("meta"):
        empty = build(config)
    writer = ShardWriter(folder, shard_bytes=2**30)
    for name, tensor in empty.state_dict().items():
        writer.add(name, torch.empty(tensor.shape, dtype=torch.bfloat16).normal_(std=0.02))
    writer.finish()


def drop_from_page_cache(folder: Path) -> None:
    """Have the kernel forget what it holds of a folder's weights."""
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def load_once(folder: Path, loader: str, kind: str) -> Figures:
    """Load the model in this process, which has loaded nothing else."""
    device, quantize = default_device(), "nf4" if kind == "nf4" else None
    if device.type == "cuda":
        torch.zeros(1, device=device)  # makes the context, which is not loading
    if quantize is not None:
        import bitsandbytes  # noqa: F401, PLC0415  (as above)
    before = peak_memory()
    started = time.perf_counter()
    if loader == "ours":
        model = load_weights(folder, quantize="nf4" if quantize else None, device=device)
    else:
        model = load_with_transformers(
            folder,
            dtype=torch.bfloat16,
            stored=None,
            quantize=quantize,
            device=device,
            partition=None,
        )
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    else:
        touch(model)  # pages of a mapped file are read when they are first used
    seconds = time.perf_counter() - started
    gpu = torch.cuda.max_memory_reserved(device) if device.type == "cuda" else 0
    return Figures(seconds, peak_memory() - before, gpu / 2**30)


def touch(model: torch.nn.Module) -> None:
    """Read one number of every page of a model's weights."""
    for parameter in model.parameters():
        parameter.detach().view(-1).view(torch.uint8)[::4096].max()


def peak_memory() -> float:
    """The largest resident set of this process so far, in GiB."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**20


def measure(folder: Path, loader: str, kind: str, rounds: int, *, cold: bool) -> Figures:
    """Load in fresh processes, and take the median of the seconds and the largest peaks."""
    results = []
    for _ in range(rounds):
        if cold:
            drop_from_page_cache(folder)
        command = [sys.executable, "-m", "benchmarks.loading", "--model", str(folder)]
        output = subprocess.check_output([*command, "--once", f"{loader}/{kind}"])
        results.append(Figures(**json.loads(output.splitlines()[-1])))
    return Figures(
        statistics.median(r.seconds for r in results),
        max(r.peak_gib for r in results),
        max(r.gpu_gib for r in results),
    )


@click.command()
@click.option("--model", type=click.Path(path_type=Path), help="A model folder; default: random.")
@click.option("--gigabytes", default=3.0, help="Size of the random model.")
@click.option("--rounds", default=3, help="Fresh processes per row.")
@click.option("--once", hidden=True, help="LOADER/KIND to load in this process.")
def main(model: Path | None, gigabytes: float, rounds: int, once: str | None) -> None:
    """Print a table of seconds, rates and peaks."""
    if model is not None and once is not None:
        print(json.dumps(asdict(load_once(model, *once.split("/")))))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = model or Path(scratch)
        if model is None:
            make_random_model(folder, gigabytes)
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 2**30
        table = Table(title=f"{size:.2f} GiB of weights to {default_device()}, {rounds} rounds")
        for column in ("weights", "files", "loader", "s", "GiB/s", "peak GiB", "GPU GiB"):
            table.add_column(column, justify="right")
        for kind, cold, loader in product(KINDS, (False, True), LOADERS):
            figures = measure(folder, loader, kind, rounds, cold=cold)
            numbers = (figures.seconds, size / figures.seconds, figures.peak_gib, figures.gpu_gib)
            row = (kind, "cold" if cold else "warm", loader, *(f"{n:.2f}" for n in numbers))
            table.add_row(*row)
        Console().print(table)


if __name__ == "__main__":
    main()
