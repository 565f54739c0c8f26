"""Starts the processes that train together, by torchrun's own API, and speaks for them.

Each worker is `python -m latticeforge_trainer train` with torchrun's environment. On several nodes
(an Indexed Job with a headless Service) `MASTER_ADDR`, `MASTER_PORT` and `JOB_COMPLETION_INDEX` say
who meets where; on one, a free port of the loopback.

torchrun itself ends with 1 whatever a worker's exit code was; here the worker's code and message
become the launcher's own error. SIGTERM reaches the workers, which have as long as the pod has.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latticeforge_trainer.artifacts import Store, write_atomically
from latticeforge_trainer.contract import Strategy, TrainConfig, TrainResult
from latticeforge_trainer.errors import (
    Interrupted,
    NetworkError,
    NumericalError,
    OutOfMemory,
    StepError,
    UserError,
)

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

WHOLE_GRACE_PERIOD = 86_400
"""Seconds that workers have after SIGTERM: longer than any pod's grace period, which ends it."""

ERRORS: dict[int, type[StepError]] = {
    int(kind.exit_code): kind
    for kind in (Interrupted, NetworkError, NumericalError, OutOfMemory, UserError)
}


def needs_workers(strategy: Strategy) -> bool:
    """Whether this process starts others instead of training itself."""
    return strategy.processes * strategy.nodes > 1 and "TORCHELASTIC_RUN_ID" not in os.environ


def run_workers(config: TrainConfig, store: Store) -> TrainResult:
    """Train in as many processes as the strategy says.

    Returns:
        What the first worker wrote into the artifact's manifest.

    Raises:
        StepError: The first failed worker's.
        RuntimeError: A worker failed in an unknown way.
    """
    # Only a launcher needs them, and a worker imports this module too.
    from torch.distributed.elastic.multiprocessing import SignalException  # noqa: PLC0415
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError  # noqa: PLC0415
    from torch.distributed.launcher.api import elastic_launch  # noqa: PLC0415

    path = store.work(config.digest) / f"step-{node_rank()}.json"
    write_atomically(path, json.dumps(config.to_json()).encode())
    command = ["-m", "latticeforge_trainer", "train"]
    options = ["--config", str(path), "--store", str(store.root)]
    threads = max(1, len(os.sched_getaffinity(0)) // config.runtime.strategy.processes)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # torchrun would make it 1
    try:
        elastic_launch(launch_config(config), sys.executable)(*command, *options)
    except ChildFailedError as error:
        raise step_error(error.failures) from error
    except SignalException as error:
        # Those of another pod may have been killed, and these then could not checkpoint together.
        raise Interrupted("asked to stop; it will go on from the last checkpoint") from error
    manifest = store.manifest(config.digest)
    if manifest is None or not isinstance(manifest.result, TrainResult):
        raise RuntimeError(f"the workers ended well but left no artifact {config.digest[:12]}")
    return manifest.result


def launch_config(config: TrainConfig) -> Any:
    """The `LaunchConfig` of torchrun for this node."""
    from torch.distributed.launcher.api import LaunchConfig  # noqa: PLC0415

    strategy = config.runtime.strategy
    address = os.environ.get("MASTER_ADDR") if strategy.nodes > 1 else "127.0.0.1"
    port = os.environ.get("MASTER_PORT") if strategy.nodes > 1 else free_port()
    if not address or not port:
        raise UserError(f"{strategy.nodes} nodes need MASTER_ADDR and MASTER_PORT to meet")
    return LaunchConfig(
        min_nodes=strategy.nodes,
        max_nodes=strategy.nodes,
        nproc_per_node=strategy.processes,
        run_id=config.digest[:12],
        # Static: the node's rank is its pod's index, so the first process is the first pod's.
        rdzv_backend="static",
        rdzv_endpoint=f"{address}:{port}",
        rdzv_configs={"rank": node_rank(), "timeout": 900},
        max_restarts=0,
        shutdown_timeout=WHOLE_GRACE_PERIOD,
    )


def node_rank() -> int:
    """This pod's index in its Job."""
    return int(os.environ.get("JOB_COMPLETION_INDEX", "0"))


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def step_error(failures: dict[int, ProcessFailure]) -> Exception:
    """The error of the worker that failed first, preferring one that says why.

    When a process ends, the collectives of the others fail too, with nothing to tell.
    """
    ordered = sorted(failures.values(), key=lambda f: (f.exitcode not in ERRORS, f.timestamp))
    first = ordered[0]
    kind = ERRORS.get(first.exitcode)
    if kind is None:
        return RuntimeError(
            f"worker {first.local_rank} exit code {first.exitcode}: {first.message}"
        )
    return kind(first.message)


@contextmanager
def reporting_to_launcher() -> Iterator[None]:
    """In a worker, leave the message of an expected failure where torchrun looks for it."""
    try:
        yield
    except StepError as error:
        target = os.environ.get("TORCHELASTIC_ERROR_FILE")
        if target:
            document = {"message": str(error), "timestamp": int(time.time())}
            Path(target).write_text(json.dumps(document))
        raise
