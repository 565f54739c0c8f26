"""What packing is worth: `python -m benchmarks.packing [--shape 135m] [--samples 4 16 64]`.

The same random samples, of log-normal lengths, go through forward and backward of a random Llama
model twice: packed into rows of one length, and each in a row of its own, padded to the longest of
its micro-batch. Model, loss and attention are the same, so only the padding differs. A padded
micro-batch of many samples wastes more, one of few keeps the chip less busy: both are shown.

Tokens are real ones; the rate is that of all timed micro-batches together, after 3 that are not.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from latticeforge_trainer.data.mixing import mixed_epochs
from latticeforge_trainer.data.packed import PackedData
from latticeforge_trainer.data.packing import pack_epoch, write_packed
from latticeforge_trainer.data.tokenized import TokenizedSource, Tokens
from latticeforge_trainer.training.batches import PackedSequences, make_micro_batch
from latticeforge_trainer.training.loss import TargetLoss

SHAPES: dict[str, dict[str, Any]] = {
    "small": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6},
    "135m": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30},
}
HEAD = 64
VOCABULARY = {"small": 4096, "135m": 49152}
SPREAD = 0.8
"""Standard deviation of the logarithm of lengths."""
WARM_UPS = 3
ENOUGH = 5000
"""Samples, at least, so that rows are as full as those of a real data set."""


class PaddedToLongest(PackedData):
    """One sample in each sequence, padded to the longest of those asked for."""

    def batch(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """As `PackedData` does, but narrower."""
        longest = int(self.lengths[list(indices)].max())
        return {name: rows[:, :longest] for name, rows in super().batch(indices).items()}


@dataclass
class Figures:
    """What one way to lay samples came to."""

    layout: str
    rows: int
    """Of a micro-batch."""
    tokens_per_second: float
    slowest: float
    fastest: float
    """Tokens per second of single micro-batches."""
    padding: float
    """Part of the computed tokens that is not real."""
    ratio: float = 1.0
    """Of the packed rate to this one."""


def random_samples(count: int, mean: float, longest: int) -> TokenizedSource:
    """Samples of random tokens, all learned but the first."""
    rng = np.random.default_rng(0)
    source = TokenizedSource()
    drawn = rng.lognormal(math.log(mean) - SPREAD**2 / 2, SPREAD, count)
    for length in drawn.clip(8, longest).astype(int).tolist():
        ids = rng.integers(0, min(VOCABULARY.values()), length, dtype=np.int32)
        source.add(Tokens(ids, (np.arange(length) > 0).astype(np.uint8)), length)
    return source


def random_model(shape: str, device: torch.device) -> TargetLoss:
    """A Llama model of random weights: bf16 on a GPU, fp32 elsewhere."""
    hidden = SHAPES[shape]["hidden_size"]
    config = LlamaConfig(
        **SHAPES[shape],
        num_attention_heads=hidden // HEAD,
        num_key_value_heads=max(1, hidden // HEAD // 3),
        vocab_size=VOCABULARY[shape],
        max_position_embeddings=2**17,
    )
    model: Any = LlamaForCausalLM(config)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return TargetLoss(model.to(device, dtype))


def measure(
    module: TargetLoss, data: PackedSequences, layout: str, rows: int, micro_batches: int
) -> Figures:
    """Train on the first micro-batches of some data."""
    device = next(module.parameters()).device
    rates: list[float] = []
    real = computed = seconds = 0.0
    for number in range(WARM_UPS + micro_batches):
        indices = [(number * rows + row) % len(data) for row in range(rows)]
        batch = make_micro_batch(data, indices).to(device)
        synchronize(device)
        started = time.perf_counter()
        module(batch).backward()
        synchronize(device)
        took = time.perf_counter() - started
        module.zero_grad(set_to_none=True)
        if number >= WARM_UPS:
            tokens = int(data.lengths[indices].sum())
            rates.append(tokens / took)
            real, computed = real + tokens, computed + batch.input_ids.numel()
            seconds += took
    return Figures(layout, rows, real / seconds, min(rates), max(rates), 1 - real / computed)


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    """Measure packed against padded data."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="small", choices=list(SHAPES))
    parser.add_argument("--length", type=int, default=4096, help="tokens of a packed row")
    parser.add_argument("--mean", type=float, default=300.0, help="tokens of a sample")
    parser.add_argument("--rows", type=int, default=4, help="packed rows of a micro-batch")
    parser.add_argument("--samples", type=int, nargs="+", default=[4, 16, 64], help="padded rows")
    parser.add_argument("--micro-batches", type=int, default=8, help="timed")
    parser.add_argument("--output", type=Path, help="where to write the figures, as JSON")
    options = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module = random_model(options.shape, device)
    chip = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{chip}, torch {torch.__version__}, Llama {options.shape}, samples of {options.mean:g}")
    per_batch = max(options.rows * options.length / options.mean, *options.samples)
    needed = int(per_batch * (WARM_UPS + options.micro_batches))
    samples = random_samples(max(ENOUGH, needed), options.mean, options.length)
    (order,) = mixed_epochs([len(samples)], [1.0], 1, 0)
    packed = pack_epoch(order, samples.lengths[order[:, 1]], options.length, 0)
    with tempfile.TemporaryDirectory() as folder:
        first, second = Path(folder, "packed"), Path(folder, "padded")
        first.mkdir()
        second.mkdir()
        write_packed(first, packed, [samples], options.length, pad_token=0)
        write_packed(second, [one[None] for one in order], [samples], options.length, pad_token=0)
        found = [measure(module, PackedData(first), "packed", options.rows, options.micro_batches)]
        padded = PaddedToLongest(second)
        found += [
            measure(module, padded, "padded", rows, options.micro_batches)
            for rows in options.samples
        ]

    print(f"{'layout':<8}{'rows':>6}{'tokens/s':>12}{'slowest':>12}{'fastest':>12}{'padding':>9}")
    for each in found:
        each.ratio = found[0].tokens_per_second / each.tokens_per_second
        print(
            f"{each.layout:<8}{each.rows:>6}{each.tokens_per_second:>12,.0f}{each.slowest:>12,.0f}"
            f"{each.fastest:>12,.0f}{each.padding:>9.1%}   packed is {each.ratio:.2f} times as fast"
        )
    if options.output:
        about = {"device": chip, "torch": torch.__version__, "shape": options.shape}
        about |= {"length": options.length, "mean": options.mean}
        figures = [asdict(each) for each in found]
        options.output.write_text(json.dumps({**about, "figures": figures}, indent=2))


if __name__ == "__main__":
    main()
