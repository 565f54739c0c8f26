"""How many stacks one operator carries: `python -m benchmarks.operator [--stacks N ...]`.

A real operator process serves stacks of two stages on the devcluster; pods are simulated: each
reports a result as the trainer does, and ends at once. Operator, API server, controllers and
simulated pods share the machine's cores, so rates are of all of them together; what the operator
itself used is told apart by its CPU time.

For each number of stacks, on a cluster of its own: first a few are created at a steady pace, to
see how long a user waits for the first status; then all are created at once and run to their end;
then the operator is killed, every object still there, and started again.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import aiohttp
import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from tests.integration.fake_trainer import fake_kubelet
from tests.unit.core.builders import spec

from latticeforge_operator.api import API_VERSION
from latticeforge_operator.api.crds import all_crds
from latticeforge_operator.devcluster.cluster import DevCluster
from latticeforge_operator.devcluster.controllers.objects import JOBS
from latticeforge_operator.devcluster.resources import ResourceKey
from latticeforge_operator.devcluster.store import Store

CRDS = ResourceKey("apiextensions.k8s.io/v1", "customresourcedefinitions")
POOLS = ResourceKey(API_VERSION, "gpupools")
TRAININGS = ResourceKey(API_VERSION, "stackedtrainings")
SPEC = {key: value for key, value in spec().items() if key != "publish"}
"""Two stages; what is trained stays in the store."""
METRICS_PORT = 18080
ENDED = {"Succeeded", "Failed"}
LONGEST_SECONDS = 3600.0
PACED, PACE = 100, 4.0
"""Stacks that are created one after the other, and how many a second."""
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_MIB = os.sysconf("SC_PAGE_SIZE") / 2**20

_PATIENT = aiohttp.ClientTimeout(total=60)

Bar = Callable[[int], None]
"""Shows how many of something are done."""

console = Console(stderr=True)


@dataclass
class Figures:
    """What one number of stacks came to."""

    stacks: int
    seconds: float
    """From the first creation to the last end."""
    per_second: float
    first_status_p50: float
    """Seconds from a stack's creation to its first status, at a steady pace."""
    first_status_p99: float
    operator_cpu_seconds: float
    operator_mib: float
    """Largest resident memory of the operator until all had ended."""
    writes_per_step: float
    """Changing requests of the operator over the steps that ran: objects, statuses, Events."""
    restart_seconds: float
    """From the start of a new process until it has looked at every stack."""
    restart_mib: float
    repeated_jobs: int
    """Jobs that were created beyond one for each step; 0 unless something was done twice."""
    phases: dict[str, int]


class OperatorProcess:
    """An operator of its own, beside its CPU time and memory."""

    def __init__(self, kubeconfig: Path, log: Path) -> None:
        environment = os.environ | {"KUBECONFIG": str(kubeconfig), "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-m", "latticeforge_operator.cluster", "--namespace", "default"]
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                [*command, "--metrics-port", str(METRICS_PORT)],
                env=environment,
                stdout=out,
                stderr=out,
            )
        self.peak_mib = 0.0

    def kill(self) -> None:
        """End it as a lost node does."""
        self._process.kill()
        self._process.wait()

    def look(self) -> float:
        """Note its memory; returns its CPU seconds so far.

        Raises:
            click.ClickException: It has ended.
        """
        if self._process.poll() is not None:
            raise click.ClickException(f"the operator ended with {self._process.returncode}")
        folder = Path("/proc") / str(self._process.pid)
        self.peak_mib = max(
            self.peak_mib, int((folder / "statm").read_text().split()[1]) * _PAGE_MIB
        )
        fields = (folder / "stat").read_text().rpartition(") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS


class Watcher:
    """Follows the stacks at the API server, beside the operator.

    Attributes:
        born: when each stack was created, in monotonic seconds.
        first: how long each waited for its first status.
        phases: their phases.
        jobs: the UIDs of all Jobs that were ever created.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.born: dict[str, float] = {}
        self.first: dict[str, float] = {}
        self.phases: dict[str, str] = {}
        self.steps: dict[str, int] = {}
        self.jobs: set[str] = set()

    async def follow_stacks(self) -> None:
        """Take note of every status."""
        async for event in self.store.watch(TRAININGS):
            name, status = event.object["metadata"]["name"], event.object.get("status")
            if not status:
                continue
            self.first.setdefault(name, time.monotonic() - self.born[name])
            self.phases[name] = status["phase"]
            self.steps[name] = len(status.get("steps", ()))

    async def follow_jobs(self) -> None:
        """Take note of every Job."""
        async for event in self.store.watch(JOBS):
            self.jobs.add(event.object["metadata"]["uid"])

    @property
    def ended(self) -> int:
        """How many stacks have ended."""
        return sum(phase in ENDED for phase in self.phases.values())


def create(store: Store, number: int) -> None:
    """Create one stack as a user does."""
    name = f"stack-{number:05}"
    manifest = {
        "apiVersion": API_VERSION,
        "kind": "StackedTraining",
        "metadata": {"name": name, "namespace": "default"},
        "spec": SPEC,
    }
    store.apply(TRAININGS, "default", name, manifest, manager="benchmark", force=True)


async def metric(operator: OperatorProcess, wanted: str) -> float:
    """The sum of the operator's own samples that begin so; 0 while it does not answer."""
    operator.look()
    url = f"http://127.0.0.1:{METRICS_PORT}/metrics"
    with suppress(aiohttp.ClientError, TimeoutError):
        async with aiohttp.ClientSession() as session, session.get(url, timeout=_PATIENT) as answer:
            lines = (await answer.text()).splitlines()
            return sum(float(line.split()[-1]) for line in lines if line.startswith(wanted))
    return 0.0


async def writes(operator: OperatorProcess) -> float:
    """Changing requests that the operator has made."""
    calls = "latticeforge_api_requests_total"
    return await metric(operator, calls) - await metric(operator, f'{calls}{{method="GET"}}')


async def to_the_end(
    stacks: range, pace: float | None, watcher: Watcher, operator: OperatorProcess, bar: Bar
) -> float:
    """Creates stacks, so many a second or all at once, and sees them end; returns the seconds."""
    begun, done = time.monotonic(), watcher.ended
    for number in stacks:
        watcher.born[f"stack-{number:05}"] = time.monotonic()
        create(watcher.store, number)
        due = 0.0 if pace is None else begun + (number - stacks.start + 1) / pace
        await asyncio.sleep(max(0.0, due - time.monotonic()))
    while (ended := watcher.ended - done) < len(stacks):
        operator.look()
        bar(ended)
        if time.monotonic() - begun > LONGEST_SECONDS:
            raise click.ClickException(f"not ended: {Counter(watcher.phases.values())}")
        await asyncio.sleep(0.2)
    bar(ended)
    return time.monotonic() - begun


async def measure(stacks: int, folder: Path, bars: Callable[[str, int], Bar]) -> Figures:
    """One number of stacks on a cluster of its own."""
    cluster = await DevCluster.start(data_dir=folder / "cluster", run_pods=False)
    watcher = Watcher(cluster.store)
    for crd in all_crds().values():
        cluster.store.create(CRDS, "", crd)
    pool = {"accelerator": "H200", "pricePerGPUHour": "3.60"}
    cluster.store.create(POOLS, "", {"metadata": {"name": "h200"}, "spec": pool})
    follows = [asyncio.create_task(f()) for f in (watcher.follow_stacks, watcher.follow_jobs)]
    operator = OperatorProcess(cluster.kubeconfig, folder / "log")
    try:
        async with fake_kubelet(cluster.store):
            while not await metric(operator, 'latticeforge_api_requests_total{method="GET"}'):  # noqa: ASYNC110  # another process
                await asyncio.sleep(0.1)
            bar = bars(f"{PACED} stacks, {PACE} a second", PACED)
            await to_the_end(range(PACED), PACE, watcher, operator, bar)
            waited, cpu, wrote = (
                list(watcher.first.values()),
                operator.look(),
                await writes(operator),
            )
            steps_before = sum(watcher.steps.values())
            bar = bars(f"{stacks} stacks at once", stacks)
            all_at_once = range(PACED, PACED + stacks)
            seconds = await to_the_end(all_at_once, None, watcher, operator, bar)
            cpu, wrote = operator.look() - cpu, await writes(operator) - wrote
            steps = sum(watcher.steps.values())
            operator.kill()
            peak, begun = operator.peak_mib, time.monotonic()
            operator = OperatorProcess(cluster.kubeconfig, folder / "log")
            bar = bars(f"restart with {stacks} stacks", stacks + PACED)
            done = 'latticeforge_reconciles_total{result="done"}'
            while (passes := await metric(operator, done)) < stacks + PACED:
                bar(int(passes))
                await asyncio.sleep(0.2)
            bar(stacks + PACED)
            restart = time.monotonic() - begun
    finally:
        operator.kill()
        for task in follows:
            task.cancel()
        await cluster.aclose()
    percentiles = statistics.quantiles(waited, n=100)
    return Figures(
        stacks=stacks,
        seconds=round(seconds, 1),
        per_second=round(stacks / seconds, 1),
        first_status_p50=round(percentiles[49], 2),
        first_status_p99=round(percentiles[98], 2),
        operator_cpu_seconds=round(cpu, 1),
        operator_mib=round(peak),
        writes_per_step=round(wrote / (steps - steps_before), 2),
        restart_seconds=round(restart, 1),
        restart_mib=round(operator.peak_mib),
        repeated_jobs=len(watcher.jobs) - steps,
        phases=dict(Counter(watcher.phases.values())),
    )


def table(measured: list[Figures]) -> Table:
    """The figures, one column for each number of stacks."""
    rows: dict[str, Callable[[Figures], str]] = {
        "to the end": lambda f: f"{f.per_second} stacks/s ({f.seconds} s)",
        "created to first status, p50 / p99": lambda f: (
            f"{f.first_status_p50} / {f.first_status_p99} s"
        ),
        "operator's CPU for each stack": lambda f: (
            f"{1000 * f.operator_cpu_seconds / f.stacks:.0f} ms"
        ),
        "operator's memory": lambda f: f"{f.operator_mib} MiB",
        "API writes for each step": lambda f: f"{f.writes_per_step}",
        "restart": lambda f: f"{f.restart_seconds} s, {f.restart_mib} MiB",
        "Jobs created twice": lambda f: f"{f.repeated_jobs}",
        "ended as": lambda f: ", ".join(f"{n} {phase}" for phase, n in f.phases.items()),
    }
    shown = Table("", *(f"{f.stacks:,} stacks" for f in measured))
    for name, cell in rows.items():
        shown.add_row(name, *(cell(f) for f in measured))
    return shown


@click.command()
@click.option("--stacks", multiple=True, type=int, default=(1000, 10000), show_default=True)
@click.option("--output", type=click.Path(path_type=Path), help="Also write the figures as JSON.")
def main(stacks: tuple[int, ...], output: Path | None) -> None:
    """Measure an operator with so many stacks."""
    logging.disable(logging.WARNING)
    measured: list[Figures] = []
    with Progress(console=console) as progress, tempfile.TemporaryDirectory() as folder:

        def bar(text: str, total: int) -> Bar:
            task = progress.add_task(text, total=total)
            return lambda done: progress.update(task, completed=done)

        for number in stacks:
            place = Path(folder) / str(number)
            place.mkdir()
            measured.append(asyncio.run(measure(number, place, bar)))
    Console().print(table(measured))
    if output is not None:
        machine = {"cores": os.cpu_count(), "python": platform.python_version()}
        figures = {"machine": machine, "figures": [asdict(one) for one in measured]}
        output.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
