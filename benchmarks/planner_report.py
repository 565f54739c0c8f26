"""Predictions of `benchmarks.planner`'s runs beside what they came to: fitted on one half.

Memory and speed are predicted by formulas; what those leave open (`estimate.constants`) is fitted
on every second run, and errors are those of the other runs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.planner import OUT_OF_MEMORY
from benchmarks.planner_runs import chip_of, planned
from benchmarks.trainer import GIB, SHAPES, Run
from latticeforge_trainer.estimate.base_model import read_base_model
from latticeforge_trainer.estimate.constants import FITTED, Constants
from latticeforge_trainer.estimate.memory import Memory, gpu_memory
from latticeforge_trainer.estimate.speed import speed

KNOWN: dict[str, Any] = {
    "products": 0.71,
    "fp8_products": 0.733,
    "attention": 0.44,
    "attention_ramp": 1000.0,
    "traffic": 0.8,
    "small_traffic": 0.55,
    "dequantize": 0.58,
    "quantize": 0.4,
    "int8_update": 0.31,
    "launch": 3e-3,
}
"""What tokens/s are fitted by, as they were fitted by hand to earlier runs."""

STIFFNESS = 0.02
"""How much a constant's distance from what was known before counts beside a run's error: what few
runs say little about stays where it was."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Comparison:
    """One run, predicted and made."""

    name: str
    fitted: bool
    """Whether the constants were fitted on it."""
    memory: Memory
    tokens_per_second: float
    row: Row

    @property
    def ran(self) -> bool:
        """Whether it had enough memory."""
        return "error" not in self.row

    def error(self, of: str) -> float:
        """How far the prediction is from what was measured, as a share of that.

        Args:
            of: `allocated`, `reserved` or `tokens_per_second`.
        """
        if of == "tokens_per_second":
            return self.tokens_per_second / float(self.row[of]) - 1
        predicted = getattr(self.memory, of) / GIB
        return float(predicted / self.row[f"{of}_gib"]) - 1


def report(rows: Sequence[Row], target: Path) -> str:
    """The tables, as Markdown; writes everything they are made of as JSON.

    Raises:
        SystemExit: There are not enough rows to fit and to judge.
    """
    rows = [row for row in rows if row.get("error", OUT_OF_MEMORY) == OUT_OF_MEMORY]
    learnt, _ = halves([row for row in rows if is_of_matrix(row)])
    if len(learnt) < 2:
        raise SystemExit("the raw file holds fewer than 4 runs: measure first")
    constants = fit(learnt)
    names = {row["row"] for row in learnt}
    found = [compare(row, constants, fitted=row["row"] in names) for row in rows]
    target.write_text(json.dumps(as_json(found, constants), indent=1) + "\n")
    matrix = [c for c in found if is_of_matrix(c.row)]
    boundary = [c for c in found if not is_of_matrix(c.row)]
    tables = [table(matrix), errors_table(matrix), verdicts(boundary), constants_text(constants)]
    return "\n\n".join(filter(None, tables))


def is_of_matrix(row: Row) -> bool:
    """Whether a run is one of the matrix that has run, not one of the boundary."""
    return not row["row"].startswith("boundary ")


def halves(rows: Iterable[Row]) -> tuple[list[Row], list[Row]]:
    """Rows to fit on and rows to judge by: every second one, by method and shape."""
    ran = [row for row in rows if "error" not in row]
    ran.sort(key=lambda row: (row["method"], row["shape"], row["row"]))
    return ran[::2], ran[1::2]


def compare(row: Row, constants: Constants, *, fitted: bool = False) -> Comparison:
    """A row beside its prediction."""
    run = _planned(row)
    memory = gpu_memory(run, constants=constants)
    rate = speed(run, constants=constants).tokens_per_second
    return Comparison(row["row"], fitted, memory, rate, row)


def fit(rows: Sequence[Row]) -> Constants:
    """The constants that predict some rows best: memory first, then speed."""
    outside = fmean(row.get("outside_gib", FITTED.context / GIB) for row in rows)
    constants = replace(FITTED, context=int(outside * GIB))
    constants = replace(constants, fragments=fragments(rows, constants))
    constants = replace(constants, **KNOWN)
    logs = {name: math.log(known) for name, known in KNOWN.items()}

    def badness(trial: Constants) -> float:
        misses = [
            math.log(compare(row, trial).tokens_per_second / row["tokens_per_second"])
            for row in rows
        ]
        moves = [math.log(getattr(trial, name)) - known for name, known in logs.items()]
        return sum(miss**2 for miss in misses) + STIFFNESS * sum(move**2 for move in moves)

    return descend(constants, badness)


def descend(constants: Constants, badness: Callable[[Constants], float]) -> Constants:
    """Move one constant after the other by ever smaller factors, as long as that is better."""
    best, least = constants, badness(constants)
    for step in (1.2, 1.07, 1.02, 1.007):
        moved = True
        while moved:
            moved = False
            for name in KNOWN:
                for factor in (step, 1 / step):
                    trial = replace(best, **{name: getattr(best, name) * factor})
                    found = badness(trial)
                    if found < least:
                        best, least, moved = trial, found, True
    return best


def fragments(rows: Sequence[Row], constants: Constants) -> dict[str, float]:
    """Reserved beyond allocated memory by the root of what comes and goes, by kind of run."""
    found: dict[str, list[float]] = {}
    for row in rows:
        predicted = gpu_memory(_planned(row), constants=replace(constants, fragments=_UNIT))
        moving = predicted.reserved - predicted.allocated
        between = (row["reserved_gib"] - row["allocated_gib"]) * GIB
        found.setdefault(kind_of(row), []).append(max(0.0, between / moving))
    return constants.fragments | {kind: fmean(shares) for kind, shares in found.items()}


def kind_of(row: Row) -> str:
    """What `Constants.fragments` calls a run."""
    return {"Full": "full", "QLoRA": "nf4", "FP8": "fp8", "LoRA": "bf16"}[row["method"]]


_UNIT = dict.fromkeys(FITTED.fragments, 1.0)


def mean_error(of: str, comparisons: Iterable[Comparison]) -> tuple[float, float]:
    """The mean and the largest of absolute errors."""
    errors = [abs(c.error(of)) for c in comparisons]
    return (fmean(errors), max(errors)) if errors else (math.nan, math.nan)


def table(found: Sequence[Comparison]) -> str:
    """Every run of the matrix."""
    lines = [
        "| run | allocated GiB | | reserved GiB | | tokens/s | | DeepSpeed's estimator, GiB | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for c in found:
        name = f"{c.name} (fitted)" if c.fitted else f"**{c.name}**"
        theirs = deepspeed_estimate(c.row)
        other = "–" if theirs is None else f"{theirs / GIB:.1f}"
        if not c.ran:
            needed = f"{c.memory.reserved / GIB:.1f}"
            lines.append(f"| {name} | | | {needed} | {OUT_OF_MEMORY} | | | {other} | |")
            continue
        cells = [
            f"{c.memory.allocated / GIB:.1f} / {c.row['allocated_gib']:.1f}",
            f"{c.error('allocated'):+.1%}",
            f"{c.memory.reserved / GIB:.1f} / {c.row['reserved_gib']:.1f}",
            f"{c.error('reserved'):+.1%}",
            f"{c.tokens_per_second:,.0f} / {c.row['tokens_per_second']:,.0f}",
            f"{c.error('tokens_per_second'):+.1%}",
            other,
            "" if theirs is None else f"{theirs / GIB / c.row['allocated_gib'] - 1:+.0%}",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def errors_table(found: Sequence[Comparison]) -> str:
    """Mean and largest errors of both halves."""
    lines = ["| error, mean (largest) | allocated | reserved | tokens/s |", "|---|---|---|---|"]
    ran = [c for c in found if c.ran]
    halves_ = {
        "judged by": [c for c in ran if not c.fitted],
        "fitted on": [c for c in ran if c.fitted],
    }
    for name, half in halves_.items():
        cells = [
            "{:.1%} ({:.1%})".format(*mean_error(of, half))
            for of in ("allocated", "reserved", "tokens_per_second")
        ]
        lines.append(f"| {name}, {len(half)} runs | {' | '.join(cells)} |")
    return "\n".join(lines)


def verdicts(found: Sequence[Comparison]) -> str:
    """What was said and what happened at the boundary."""
    if not found:
        return ""
    lines = [
        "| at the boundary | reserved of capacity, GiB | predicted | ran |",
        "|---|---|---|---|",
    ]
    for c in found:
        size = f"{c.memory.reserved / GIB:.1f} of {c.memory.capacity / GIB:.1f}"
        said = "fits" if c.memory.fits else "does not fit"
        lines.append(f"| {c.name} | {size} | {said} | {'yes' if c.ran else OUT_OF_MEMORY} |")
    right = sum(c.memory.fits == c.ran for c in found)
    wrong = sum(c.memory.fits and not c.ran for c in found)
    lines.append("")
    lines.append(
        f"{right} of {len(found)} verdicts are right; {wrong} said “fits” of a run that did not."
    )
    aside = sum((c.memory.allocated <= _all_of(c)) == c.ran for c in found)
    lines.append(f"Without a plan's margin, by allocated memory alone: {aside} of {len(found)}.")
    return "\n".join(lines)


def _all_of(c: Comparison) -> int:
    """All memory that the driver leaves to torch."""
    return chip_of(c.row["device"]).memory_bytes - c.memory.context


def constants_text(constants: Constants) -> str:
    """The fitted constants, to be written into `estimate.constants`."""
    names = [field.name for field in fields(Constants)]
    return "\n".join(f"{name} = {getattr(constants, name)!r}" for name in names)


def as_json(found: Sequence[Comparison], constants: Constants) -> dict[str, Any]:
    """Everything the tables say, and the raw rows."""
    rows = [
        {
            **c.row,
            "fitted": c.fitted,
            "predicted": {
                "fits": c.memory.fits,
                "allocated_gib": c.memory.allocated / GIB,
                "reserved_gib": c.memory.reserved / GIB,
                "capacity_gib": c.memory.capacity / GIB,
                "tokens_per_second": c.tokens_per_second,
                "deepspeed_gib": theirs / GIB if (theirs := deepspeed_estimate(c.row)) else None,
            },
        }
        for c in found
    ]
    return {"constants": asdict(constants), "runs": rows}


def deepspeed_estimate(row: Row) -> int | None:
    """Bytes on the GPU by DeepSpeed's own estimator; None: it is not installed.

    It counts every parameter as trained with fp32 states, and no activations.
    """
    try:
        from deepspeed.runtime.zero.stage_1_and_2 import (  # noqa: PLC0415  (seconds)
            estimate_zero2_model_states_mem_needs,
        )
    except ImportError:
        return None
    parameters = read_base_model(SHAPES[row["shape"]].config()).parameters.total
    _, gpu = estimate_zero2_model_states_mem_needs(parameters, 1, 1, cpu_offload=False)
    return int(gpu)


def _planned(row: Row) -> Any:
    known = {field.name for field in fields(Run)}
    run = Run(**{name: value for name, value in row.items() if name in known})
    return planned(run, chip_of(row["device"]))
