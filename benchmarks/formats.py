"""What the number format of a frozen base does to the loss: LoRA over bf16, FP8 and NF4.

    python -m benchmarks.formats --workdir quickstart --output formats.json --figure formats.png

The folder is that of `make quickstart`, which puts SmolLM2-135M-Instruct and its data there. Every
run is the quickstart's whole `cic` stage, as LoRA, through the trainer's own `prepare` and `train`,
on the same samples with the same numbers. Only the base's format differs. Two yardsticks say what
chance does to bf16: another draw of the adapter's random half, and another order of the samples.

The loss on held-out problems is taken twice: over the 16-bit base, into which `merge` folds an
adapter and over which PEFT lays it, and over the format that the adapter was trained over.

Finished runs stay in the folder's store, so an interrupted measurement goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.formats_runs import (
    FORMATS,
    MODEL,
    ORDERS,
    OTHER_ORDER,
    OTHER_SEED,
    SEEDS,
    Run,
    measure,
)
from latticeforge_trainer.artifacts import Store
from latticeforge_trainer.training.process import settle_environment

ENDS = 10
"""Steps at each end of a curve whose mean is shown."""

Pair = tuple[Run, Run]
"""A run, and the one of bf16 that it is compared with."""


@dataclass
class Row:
    """What a format's runs come to, as means over seeds."""

    format: str
    first: float
    """Loss of the first step, which is the base's own."""
    begins: float
    ends: float
    held_out: float
    held_out_own: float
    held_out_apart: list[float]
    """Held-out loss over the 16-bit base minus that of bf16: lowest, mean, highest."""
    curve_apart: list[float] | None
    """Absolute difference of a step's loss from bf16's: mean, largest; None: of other samples."""
    update_apart: float
    """‖ΔW - ΔW'‖ / ‖ΔW'‖ over all layers, ΔW' of bf16."""


def pairs_of(runs: Sequence[Run]) -> dict[str, list[Pair]]:
    """The runs of each format beside those of bf16, and those of bf16 beside one another."""
    of = {(run.format, run.seed): run for run in runs}
    first = of["bf16", SEEDS[0]]
    pairs = {name: [(of[name, seed], of["bf16", seed]) for seed in SEEDS] for name in FORMATS}
    pairs[OTHER_SEED] = [(of["bf16", seed], first) for seed in SEEDS[1:]]
    pairs[OTHER_ORDER] = [(of[OTHER_ORDER, order], first) for order in ORDERS]
    return pairs


def row_of(name: str, pairs: Sequence[Pair], base: Path) -> Row:
    """What the runs of a format come to."""
    mine = [run for run, _ in pairs]
    held_out = [run.held_out - other.held_out for run, other in pairs]
    same_samples = name != OTHER_ORDER
    steps = [step for pair in pairs if same_samples for step in curve_apart(pair)]
    return Row(
        format=name,
        first=fmean(run.losses[0] for run in mine),
        begins=fmean(fmean(run.losses[:ENDS]) for run in mine),
        ends=fmean(fmean(run.losses[-ENDS:]) for run in mine),
        held_out=fmean(run.held_out for run in mine),
        held_out_own=fmean(run.held_out_own for run in mine),
        held_out_apart=[min(held_out), fmean(held_out), max(held_out)],
        curve_apart=[fmean(steps), max(steps)] if same_samples else None,
        update_apart=fmean(update_apart(run.adapter, other.adapter, base) for run, other in pairs),
    )


def curve_apart(pair: Pair) -> list[float]:
    """How far the losses of two runs are apart at every step."""
    one, other = pair
    return [abs(a - b) for a, b in zip(one.losses, other.losses, strict=True)]


def update_apart(adapter: Path, other: Path, base: Path) -> float:
    """‖ΔW - ΔW'‖ / ‖ΔW'‖ over all layers, of ΔW = scale B A."""
    import torch  # noqa: PLC0415  (after settle_environment)

    from latticeforge_trainer.models.headers import read_header  # noqa: PLC0415  (as above)
    from latticeforge_trainer.models.merging import Updates  # noqa: PLC0415  (as above)

    header = read_header(base / "model.safetensors")
    mine, theirs = Updates(adapter), Updates(other)
    apart = norm = 0.0
    for name in sorted(theirs.pending):
        nothing = torch.zeros(header[name].shape)
        update, reference = mine.apply(name, nothing), theirs.apply(name, nothing)
        apart += float((update - reference).square().sum())
        norm += float(reference.square().sum())
    return math.sqrt(apart / norm)


def print_table(untrained: dict[str, float], rows: Sequence[Row]) -> None:
    """The figures as Markdown, means over seeds."""
    print("| | " + " | ".join(row.format for row in rows) + " |")
    print("|---|" + "---|" * len(rows))

    def line(what: str, cell: Callable[[Row], str]) -> None:
        print(f"| {what} | " + " | ".join(map(cell, rows)) + " |")

    line("loss at step 1", lambda row: f"{row.first:.4f}")
    line(f"mean of the first {ENDS} steps", lambda row: f"{row.begins:.4f}")
    line(f"mean of the last {ENDS} steps", lambda row: f"{row.ends:.4f}")
    line("held-out, untrained", lambda row: f"{untrained.get(row.format, untrained['bf16']):.4f}")
    line("held-out, over the base as trained", lambda row: f"{row.held_out_own:.4f}")
    line("held-out, over the 16-bit base", lambda row: f"{row.held_out:.4f}")
    line("… minus bf16's: mean", lambda row: f"{row.held_out_apart[1]:+.4f}")
    line("… lowest, highest", lambda row: "{0:+.4f}, {2:+.4f}".format(*row.held_out_apart))
    line("step's loss from bf16's: mean, largest", lambda row: curve_cell(row.curve_apart))
    line("‖ΔW - ΔW of bf16‖ / ‖ΔW of bf16‖", lambda row: f"{row.update_apart:.3f}")


def device_name() -> str:
    """What the runs computed on."""
    import torch  # noqa: PLC0415  (after settle_environment)

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def curve_cell(apart: list[float] | None) -> str:
    """Mean and largest distance of two curves."""
    return "" if apart is None else ", ".join(f"{figure:.4f}" for figure in apart)


def rounded(value: Any) -> Any:
    """JSON values with five decimals, and without paths of this machine."""
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items() if not isinstance(v, Path)}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return round(value, 5) if isinstance(value, float) else value


def main() -> None:
    """Train, print the table, write the raw data and the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--workdir", type=Path, default=Path("quickstart"))
    parser.add_argument("--output", type=Path, help="JSON of every run")
    parser.add_argument("--figure", type=Path, help="PNG of the curves")
    options = parser.parse_args()
    if not (options.workdir / MODEL).is_dir():
        parser.error(f"--workdir {options.workdir} holds no {MODEL}: run `make quickstart` first")
    settle_environment(processes=1)
    untrained, runs = measure(Store(options.workdir))
    pairs = pairs_of(runs)
    rows = [row_of(name, beside, options.workdir / MODEL) for name, beside in pairs.items()]
    print_table(untrained, rows)
    if options.output:
        document = {
            "device": device_name(),
            "untrained": untrained,
            "rows": list(map(asdict, rows)),
            "runs": list(map(asdict, runs)),
        }
        options.output.write_text(json.dumps(rounded(document)) + "\n")
    if options.figure:
        from benchmarks.formats_figure import draw  # noqa: PLC0415  (matplotlib)

        losses = {name: [run.losses for run in runs if run.format == name] for name in FORMATS}
        apart = {name: list(map(curve_apart, pairs[name])) for name in ("FP8", "NF4", OTHER_SEED)}
        draw(losses, apart, options.figure)


if __name__ == "__main__":
    main()
