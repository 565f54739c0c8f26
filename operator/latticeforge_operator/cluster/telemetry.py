"""What monitoring asks of the operator: metrics, and whether it lives and is ready.

Counters grow as passes are made; what can be read from the stacks themselves (phases, GPUs, money)
is read when asked, so it is right after a restart and never drifts.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from pydantic import ValidationError

from latticeforge_operator.api import TrainingStatus
from latticeforge_operator.api.status import StepStatus
from latticeforge_operator.api.training import Budget
from latticeforge_operator.cluster import metrics
from latticeforge_operator.cluster.metrics import Described
from latticeforge_operator.core.reconcile import ENDED
from latticeforge_trainer.contract import TrainMeters

_FIRST_STEP = (0.5, 1, 2, 5, 10, 30, 60, 300, 1800, 3600, float("inf"))
"""Buckets, in seconds."""
UNREADABLE = "Unreadable"
"""The phase under which a stack is counted whose status somebody has spoilt."""
STUCK_SECONDS = 300.0
"""A stack that has waited so long for its pass shows that passes have stopped moving."""


class Telemetry:
    """The operator's own counters.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.registry = CollectorRegistry()
        self._clock = clock
        registry = self.registry
        self._passes = Counter(*metrics.PASSES.described, registry=registry)
        self._seconds = Histogram(*metrics.PASS_SECONDS.described, registry=registry)
        self._first_step = Histogram(
            *metrics.FIRST_STEP_SECONDS.described, buckets=_FIRST_STEP, registry=registry
        )
        self._calls = Counter(*metrics.CALLS.described, registry=registry)
        self._waiting: dict[Any, float] = {}

    def woken(self, key: object) -> None:
        """A stack waits for its pass."""
        self._waiting.setdefault(key, self._clock())

    @contextmanager
    def timed_pass(self, key: object) -> Iterator[None]:
        """Time one pass; afterwards the stack does not wait any more, however it ended."""
        begun = self._clock()
        try:
            yield
        finally:
            self._seconds.observe(self._clock() - begun)
            self._waiting.pop(key, None)

    def called(self, method: str) -> None:
        """Count a request to the API server."""
        self._calls.labels(method).inc()

    def passed(self, result: str) -> None:
        """Count a pass: `done`, `unavailable` (the API server) or `defect`."""
        self._passes.labels(result).inc()

    def first_step(self, seconds: float) -> None:
        """The first Job of a stack was created so long after the stack."""
        self._first_step.observe(max(0.0, seconds))

    def stuck_seconds(self) -> float:
        """How long the stack that waits longest has waited for its pass to end."""
        return max((self._clock() - since for since in self._waiting.values()), default=0.0)


class StackCollector(Collector):
    """Metrics read from the stacks when asked.

    Args:
        stacks: Returns every StackedTraining as the API server shows it.
        active_pods: Returns how many pods hold their resources, by namespace and Job.
    """

    def __init__(
        self,
        stacks: Callable[[], Iterable[dict[str, Any]]],
        active_pods: Callable[[], Mapping[tuple[str, str], int]],
    ) -> None:
        self._stacks, self._active_pods = stacks, active_pods

    def collect(self) -> Iterable[Metric]:
        """Phases, GPUs held and what they achieve, money spent and attempts by outcome."""
        sums = _Sums(self._active_pods())
        for obj in self._stacks():
            meta = obj["metadata"]
            try:
                status = TrainingStatus.model_validate(obj.get("status") or {})
            except ValidationError:
                sums.stacks[meta["namespace"], UNREADABLE] += 1
                continue
            sums.add(meta["namespace"], status)
            if status.phase not in ENDED:
                used = _budget_used(obj.get("spec") or {}, status)
                if used is not None:
                    sums.budgets[meta["namespace"], meta["name"]] = used
        return sums.metrics()


def _budget_used(spec: dict[str, Any], status: TrainingStatus) -> float | None:
    """The share of a stack's budget that is spent; None without one that can be read."""
    try:
        budget = Budget.model_validate(spec.get("budget"))
    except ValidationError:
        return None
    limit = Decimal(budget.limit)
    return float(Decimal(status.cost.spent) / limit) if limit else None


class _Sums:
    def __init__(self, active_pods: Mapping[tuple[str, str], int]) -> None:
        self._active_pods = active_pods
        self.stacks: dict[tuple[str, ...], float] = defaultdict(float)
        self.steps: dict[tuple[str, ...], float] = defaultdict(float)
        self.gpus: dict[tuple[str, ...], float] = defaultdict(float)
        self.idle: dict[tuple[str, ...], float] = defaultdict(float)
        self.budgets: dict[tuple[str, ...], float] = {}
        self.spent: dict[tuple[str, ...], Decimal] = defaultdict(Decimal)
        self.lost: dict[tuple[str, ...], Decimal] = defaultdict(Decimal)
        self.waiting: dict[tuple[str, ...], Decimal] = defaultdict(Decimal)
        self.queued: dict[tuple[str, ...], float] = defaultdict(float)
        self.attempts: dict[tuple[str, ...], float] = defaultdict(float)
        self.tokens: dict[tuple[str, ...], float] = defaultdict(float)
        self.flops: dict[tuple[str, ...], float] = defaultdict(float)

    def add(self, namespace: str, status: TrainingStatus) -> None:
        pool = status.plan.pool if status.plan is not None else ""
        self.stacks[namespace, status.phase] += 1
        money = (namespace, pool, status.cost.currency)
        self.spent[money] += Decimal(status.cost.spent)
        self.lost[money] += Decimal(status.cost.lost)
        self.waiting[money] += Decimal(status.cost.waiting)
        for step in status.steps:
            self.steps[namespace, step.name.rpartition("/")[2], step.phase] += 1
            held, gpus = 0, 0
            for attempt in step.attempts:
                pods = self._active_pods.get((namespace, attempt.job), 0)
                held += pods
                gpus += attempt.gpus_per_pod * pods
                self.queued[namespace, pool] += attempt.queued_seconds or 0.0
                if attempt.outcome is not None:
                    self.attempts[namespace, attempt.outcome] += 1
            self.gpus[namespace, pool] += gpus
            if not _works(step):
                self.idle[namespace, pool] += gpus
            # Without pods, it is suspended or queued, and its gauges are those of before.
            if held and step.gauges is not None:
                self._add_speed((namespace, pool), step.gauges)

    def _add_speed(self, place: tuple[str, str], gauges: TrainMeters) -> None:
        if gauges.tokens_per_second is not None:
            self.tokens[place] += gauges.tokens_per_second
        if gauges.model_flops_per_second is not None:
            self.flops[place] += gauges.model_flops_per_second

    def metrics(self) -> Iterator[Metric]:
        yield _gauge(metrics.STACKS, self.stacks)
        yield _gauge(metrics.STEPS, self.steps)
        yield _gauge(metrics.GPUS_HELD, self.gpus)
        yield _gauge(metrics.GPUS_IDLE, self.idle)
        yield _gauge(metrics.SPENT, self.spent)
        yield _gauge(metrics.LOST, self.lost)
        yield _gauge(metrics.WAITING, self.waiting)
        yield _gauge(metrics.BUDGET_USED, self.budgets)
        yield _gauge(metrics.QUEUED_SECONDS, self.queued)
        yield _gauge(metrics.TOKENS, self.tokens)
        yield _gauge(metrics.FLOPS, self.flops)
        yield _gauge(metrics.ATTEMPTS, self.attempts)


def _works(step: StepStatus) -> bool:
    """Whether a step reports work: a train step its speed, any other how far it is."""
    if step.gauges is not None:
        return step.gauges.tokens_per_second is not None
    return step.fraction > 0


def _gauge(metric: Described, values: Mapping[tuple[str, ...], Any]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(metric.name, metric.text, labels=metric.labels)
    for key, value in values.items():
        family.add_metric(key, float(value))
    return family


def application(telemetry: Telemetry, is_ready: Callable[[], bool]) -> web.Application:
    """`/metrics`, `/healthz` (passes move) and `/readyz` (everything has been listed)."""

    async def exposition(_: web.Request) -> web.Response:
        body = generate_latest(telemetry.registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def healthz(_: web.Request) -> web.Response:
        seconds = telemetry.stuck_seconds()
        if seconds <= STUCK_SECONDS:
            return web.Response(text="ok\n")
        return web.Response(status=503, text=f"a stack waits for its pass for {seconds:.0f} s\n")

    async def readyz(_: web.Request) -> web.Response:
        ready = is_ready()
        return web.Response(status=200 if ready else 503, text="ok\n" if ready else "starting\n")

    app = web.Application()
    app.add_routes(
        [web.get("/metrics", exposition), web.get("/healthz", healthz), web.get("/readyz", readyz)]
    )
    return app


class Server:
    """Serves an application.

    Args:
        app: The application.
        port: Where; 0: any free one.
        host: All interfaces unless told otherwise: probes come from the node.
    """

    def __init__(
        self,
        app: web.Application,
        port: int,
        host: str = "0.0.0.0",  # noqa: S104  (see above)
    ) -> None:
        self._runner = web.AppRunner(app, access_log=None)
        self._host, self._port = host, port

    async def start(self) -> int:
        """Begin to serve; returns the port.

        Raises:
            OSError: The port is taken.
        """
        await self._runner.setup()
        await web.TCPSite(self._runner, self._host, self._port).start()
        port: int = self._runner.addresses[0][1]
        return port

    async def aclose(self) -> None:
        """Stop serving."""
        await self._runner.cleanup()
