"""How a step says where it stands: `Reporter` throttles, sinks deliver.

A report is a line on the log; in a cluster the sink also patches the step's own key of the stack's
progress ConfigMap. Reporting never raises into the work, except for the last word of a
finished step: if that cannot be delivered the step ends with the network's exit code, is started
again, finds its artifact complete and delivers it then.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Protocol

from latticeforge_trainer.contract import (
    ExitCode,
    ModelFacts,
    Progress,
    StepKind,
    StepResult,
    StepState,
    TrainMeters,
)
from latticeforge_trainer.errors import NetworkError

log = logging.getLogger(__name__)

MINIMUM_INTERVAL = 10.0
"""Seconds between two reports in a cluster; `LATTICEFORGE_PROGRESS_INTERVAL` overrides it."""


class Sink(Protocol):
    """Where reports go."""

    def send(self, progress: Progress) -> None:
        """Deliver one report, or raise `NetworkError`."""


class LogSink:
    """Reports as lines on the log."""

    def send(self, progress: Progress) -> None:
        """Log the report."""
        log.info("%s", log_line(progress))


def log_line(progress: Progress) -> str:
    """A report as one line: the sentence with its percentage, or the gauges of training.

    `step 120/400  loss  0.534     18,940 tokens/s  MFU 59.1 %   84.2 GiB`: columns stand under one
    another, and what is not known is left out. The memory is the most that torch has reserved.
    """
    train = progress.train
    if train is None:
        return f"{progress.fraction * 100:3.0f} % {progress.message}"
    total, memory = str(train.total_steps), train.peak_memory_reserved_bytes
    cells = (
        f"step {train.step:>{len(total)}}/{total}",
        None if train.loss is None else f"loss {train.loss:6.3f}",
        None if train.tokens_per_second is None else f"{train.tokens_per_second:9,.0f} tokens/s",
        None if train.mfu is None else f"MFU {train.mfu * 100:4.1f} %",
        None if memory is None else f"{memory / 2**30:5.1f} GiB",
    )
    return "  ".join(cell for cell in cells if cell is not None)


class ConfigMapSink(LogSink):
    """Reports into one ConfigMap, which is all that the stack's ServiceAccount may touch.

    Args:
        namespace: Namespace of the ConfigMap.
        name: Its name.
        key: The step's key in it.
    """

    def __init__(self, namespace: str, name: str, key: str) -> None:
        import kubernetes  # noqa: PLC0415  (half a second that a step started by hand need not pay)

        if os.environ.get("KUBECONFIG"):
            kubernetes.config.load_kube_config()
        else:
            kubernetes.config.load_incluster_config()
        self._api = kubernetes.client.CoreV1Api()
        self._errors: tuple[type[Exception], ...] = (
            kubernetes.client.ApiException,
            *_transport_errors(),
        )
        self.namespace, self.name, self.key = namespace, name, key

    def send(self, progress: Progress) -> None:
        """Patch the step's key; a merge patch leaves those of other steps alone."""
        super().send(progress)
        body = {"data": {self.key: json.dumps(progress.to_json())}}
        try:
            self._api.patch_namespaced_config_map(
                self.name, self.namespace, body, _request_timeout=10
            )
        except self._errors as error:
            raise NetworkError(f"progress ConfigMap {self.name}: {error}") from error


def _transport_errors() -> tuple[type[Exception], ...]:
    import urllib3  # noqa: PLC0415  (comes with the kubernetes client)

    return (urllib3.exceptions.HTTPError, OSError)


def sink_from_environment() -> Sink:
    """A ConfigMap sink if `LATTICEFORGE_PROGRESS` names one as `namespace/name/key`, else the log.

    Of processes that train together, only the first reports: torchrun numbers them in `RANK`, an
    Indexed Job its pods in `JOB_COMPLETION_INDEX`.
    """
    target = os.environ.get("LATTICEFORGE_PROGRESS")
    index = os.environ.get("RANK", os.environ.get("JOB_COMPLETION_INDEX", "0"))
    if not target or index != "0":
        return LogSink()
    namespace, name, key = target.split("/")
    return ConfigMapSink(namespace, name, key)


class Reporter:
    """Throttled progress of one step.

    Args:
        step: The step's kind.
        digest: The step's digest, so that a stale report is never taken for a new one.
        sink: Where reports go.
        interval: Least seconds between two reports.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        step: StepKind,
        digest: str,
        sink: Sink,
        *,
        interval: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._step, self._digest, self._sink, self._clock = step, digest, sink, clock
        self._interval = (
            float(os.environ.get("LATTICEFORGE_PROGRESS_INTERVAL", MINIMUM_INTERVAL))
            if interval is None
            else interval
        )
        self._base: ModelFacts | None = None
        self._last: dict[str, Any] | None = None
        self._last_time = float("-inf")

    def update(
        self,
        message: str,
        fraction: float = 0.0,
        *,
        eta_seconds: float | None = None,
        train: TrainMeters | None = None,
    ) -> None:
        """Report that the step is running; dropped when too soon or when nothing moved."""
        fields = {"message": message, "fraction": fraction, "train": train}
        if fields == self._last or self._clock() - self._last_time < self._interval:
            return
        self._last, self._last_time = fields, self._clock()
        progress = self._progress(
            StepState.RUNNING,
            message,
            fraction=fraction,
            eta_seconds=eta_seconds,
            base=self._base,
            train=train,
        )
        try:
            self._sink.send(progress)
        except NetworkError as error:
            log.warning("progress not reported, training goes on: %s", error)

    def learned(self, base: ModelFacts, message: str, fraction: float) -> None:
        """Report what the base is, at once; later reports of the running step say it too."""
        self._base = base
        self._last, self._last_time = None, float("-inf")  # nothing may drop this one
        self.update(message, fraction)

    def done(self, message: str, result: StepResult, *, reused: bool = False) -> None:
        """Report the result.

        Raises:
            NetworkError: It could not be delivered for a minute.
        """
        final = self._progress(
            StepState.DONE, message, fraction=1.0, result=result, reused=reused, exit_code=0
        )
        self._deliver(final)

    def ended(self, state: StepState, message: str, exit_code: ExitCode | int) -> None:
        """Report how the step ended without a result; only logged when it cannot be delivered."""
        try:
            self._deliver(self._progress(state, message, exit_code=int(exit_code)))
        except NetworkError as error:
            log.warning("the step's end was not reported: %s", error)

    def _deliver(self, progress: Progress) -> None:
        import tenacity  # noqa: PLC0415  (only at a step's end)

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(NetworkError),
            wait=tenacity.wait_exponential(multiplier=0.5, max=10),
            stop=tenacity.stop_after_delay(60),
            reraise=True,
        )
        retrying(self._sink.send, progress)

    def _progress(self, state: StepState, message: str, **fields: Any) -> Progress:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return Progress(
            step=self._step,
            digest=self._digest,
            state=state,
            message=message,
            updated_at=now,
            **fields,
        )
