"""How fast a plan is made: `python -m benchmarks.planning`.

Times `plan_stack` on the examples of 72 B in this process, and `latticeforge plan` in fresh ones:
to its first line, and to its end. Medians, with the fastest and the slowest.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click

from latticeforge_operator.api import GPUPool
from latticeforge_operator.cli.stackfile import load_stack
from latticeforge_operator.core.planning import StageData, plan_stack
from latticeforge_trainer.estimate.base_model import read_base_model

EXAMPLES = Path(__file__).parents[1] / "examples"
CONFIG = EXAMPLES / "configs" / "qwen2.5-72b.json"
COMMAND = "from latticeforge_operator.cli import main; main()"


def plan_seconds(example: Path, repeats: int) -> list[float]:
    """Seconds of each of some plans of an example."""
    file = load_stack(example, None)
    pools = [GPUPool.from_object(manifest) for manifest in file.pools]
    model = read_base_model(json.loads(CONFIG.read_text()))
    stages = [stage.name for stage in file.training.spec.stages]
    data = dict.fromkeys(stages, StageData(tokens=10_000_000, exact=True))
    return _timed(lambda: plan_stack(file.training.spec, pools, model, data=data), repeats)


def _timed(work: Callable[[], object], repeats: int) -> list[float]:
    work()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return seconds


def command_seconds(example: Path) -> tuple[float, float]:
    """Seconds from the start of `latticeforge plan` to its first line, and to its end."""
    options = [str(example), "--config", str(CONFIG), "--tokens", "10M"]
    command = [sys.executable, "-u", "-c", COMMAND, "plan", *options]
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        stdout = process.stdout
        first = stdout.readline() if stdout else ""
        to_first = time.perf_counter() - start
        process.communicate()
    if process.returncode or not first:
        raise click.ClickException(f"latticeforge plan {example} ended with {process.returncode}")
    return to_first, time.perf_counter() - start


def _shown(name: str, seconds: list[float]) -> str:
    low, middle, high = (
        f"{1000 * s:.1f}" for s in (min(seconds), statistics.median(seconds), max(seconds))
    )
    return f"{name:44} {middle:>8} ms  [{low}, {high}]"


@click.command()
@click.option("--repeats", default=50, show_default=True, help="Plans of each example.")
@click.option("--starts", default=10, show_default=True, help="Starts of the command.")
def main(repeats: int, starts: int) -> None:
    """Print how long plans and the command take."""
    for example in sorted(EXAMPLES.glob("qwen*.yaml")):
        print(_shown(f"plan_stack {example.name}", plan_seconds(example, repeats)))
    example = EXAMPLES / "qwen2.5-72b-full.yaml"
    runs = [command_seconds(example) for _ in range(starts)]
    print(_shown("latticeforge plan, first line", [first for first, _ in runs]))
    print(_shown("latticeforge plan, whole", [whole for _, whole in runs]))


if __name__ == "__main__":
    main()
