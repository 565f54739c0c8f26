"""How well the planner predicts: runs of our trainer on one GPU beside its predictions.

    python -m benchmarks.planner measure  --raw planner.jsonl    the matrix, as far as it fits
    python -m benchmarks.planner boundary --raw planner.jsonl    largest micro-batches, and the next
    python -m benchmarks.planner report   --raw planner.jsonl    the tables; needs no GPU

Each run is a process of its own; the next one imports its libraries while one runs. What a run came
to is appended to the raw file at once, running out of memory too, and what the file holds is not
run again, unless it failed otherwise: one that is cut off goes on with the same command.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.planner_runs import boundary, chip_of, matrix, planned
from benchmarks.trainer import Run, figures_of, product_rate
from latticeforge_trainer.estimate.memory import gpu_memory

OUT_OF_MEMORY = "out of memory"

RAW = Path("docs/data/planner.jsonl")
JSON = Path("docs/data/planner.json")


def main() -> None:
    """Measure, try the boundary, or report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=["measure", "boundary", "report", "child"])
    parser.add_argument("--raw", type=Path, default=RAW, help="JSON lines of every run")
    parser.add_argument("--seen", type=Path, nargs="*", default=[], help="such files of before")
    parser.add_argument("--seconds", type=float, default=540, help="start no run after so long")
    parser.add_argument("--limit", type=float, default=150, help="seconds that a run may take")
    parser.add_argument("--json", type=Path, default=JSON, help="where the report's data goes")
    options = parser.parse_args()
    if options.what == "child":
        child()
        return
    if options.what == "report":
        from benchmarks.planner_report import report  # noqa: PLC0415  (the child has no need of it)

        print(report(read_rows([*options.seen, options.raw]), options.json))
        return
    chip = chip_of(device_name())
    runs = boundary(chip) if options.what == "boundary" else matrix()
    if options.what == "measure":
        runs = [run for run in runs if gpu_memory(planned(run, chip)).fits]
    rows = read_rows([*options.seen, options.raw])
    seen = {row["row"] for row in rows if row.get("error", OUT_OF_MEMORY) == OUT_OF_MEMORY}
    measure([run for run in runs if run.row not in seen], options)


def measure(runs: list[Run], options: argparse.Namespace) -> None:
    """Make runs one after the other; the next one's process starts while one runs."""
    end = time.monotonic() + options.seconds
    waiting = Child()
    try:
        for number, run in enumerate(runs, 1):
            if time.monotonic() > end:
                print(f"{len(runs) - number + 1} runs are left: go on with the same command")
                break
            mine, waiting = waiting, Child()
            row = mine.measure(run, options.limit)
            append(options.raw, row)
            print(f"{number:3} of {len(runs)}  {line_of(row)}", flush=True)
    finally:
        waiting.end()


class Child:
    """A process that has its libraries and waits for a run."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "benchmarks.planner", "child"]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)

    def measure(self, run: Run, limit: float) -> dict[str, Any]:
        """What a run comes to."""
        start = time.monotonic()
        try:
            out, errors = self._process.communicate(json.dumps(asdict(run)), timeout=limit)
        except subprocess.TimeoutExpired:
            self.end()
            return {**asdict(run), "error": f"not done in {limit:.0f} s"}
        seconds = {"seconds": round(time.monotonic() - start, 1)}
        if self._process.returncode == 0:
            return {**json.loads(out.splitlines()[-1]), **seconds}
        last = (errors.strip().splitlines() or [f"exit code {self._process.returncode}"])[-1]
        return {**asdict(run), "error": last, **seconds}

    def end(self) -> None:
        """Stop it, whatever it does."""
        self._process.kill()
        self._process.communicate()


def child() -> None:
    """Import everything, read a run, and print what it comes to."""
    from latticeforge_trainer.training.process import (  # noqa: PLC0415  (not in the parent)
        settle_environment,
    )

    settle_environment(2)  # as the trainer runs; the other one is importing
    import torch  # noqa: PLC0415  (after settle_environment)
    from transformers import Qwen2ForCausalLM  # noqa: F401, PLC0415  (seconds that others run in)

    import latticeforge_trainer.models.adapters  # noqa: PLC0415  (as above)
    import latticeforge_trainer.training.loss  # noqa: F401, PLC0415  (as above)

    run = Run(**json.loads(sys.stdin.read()))
    device = torch.device("cuda")
    try:
        figures = figures_of(run, device)
    except torch.OutOfMemoryError:
        figures = {"error": OUT_OF_MEMORY, "device": torch.cuda.get_device_name()}
    else:
        figures["sustained_tflops"] = product_rate(device, 100)
    print(json.dumps({**asdict(run), **figures}))


def device_name() -> str:
    """The first GPU, as its driver calls it."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[0]


def read_rows(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """The rows of raw files that exist; of one name the last."""
    lines = [line for path in paths if path.exists() for line in path.read_text().splitlines()]
    rows = [json.loads(line) for line in lines if line.strip()]
    return list({row["row"]: row for row in rows}.values())


def append(path: Path, row: dict[str, Any]) -> None:
    """Add a row to a raw file, so that nothing is lost if the machine goes now."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def line_of(row: dict[str, Any]) -> str:
    """What a person watches."""
    if "error" in row:
        return f"{row['row']}: {row['error'][:120]}"
    memory = f"{row['allocated_gib']:.1f} / {row['reserved_gib']:.1f} GiB"
    return f"{row['row']}: {memory}, {row['tokens_per_second']:,.0f} tokens/s, {row['seconds']} s"


if __name__ == "__main__":
    main()
