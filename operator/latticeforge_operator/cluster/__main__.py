"""The operator: `python -m latticeforge_operator.cluster [--namespace NS ...]`.

Kopf watches; every event goes into the mirror and wakes the stacks that it concerns. Only
`on.event` handlers are used: they put no finalizer and no annotation on anything, so a stack can be
deleted with the operator gone, and no handler's state can be lost.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from typing import Any

import click
import kopf
from pythonjsonlogger.json import JsonFormatter

from latticeforge_operator import __version__
from latticeforge_operator.cluster.client import (
    CONFIG_MAPS,
    JOBS,
    PODS,
    POOLS,
    TRAININGS,
    Client,
    ClusterError,
    Listing,
    Resource,
    outside_cluster,
)
from latticeforge_operator.cluster.mirror import Mirror
from latticeforge_operator.cluster.names import GROUP, TRAINING_LABEL, VERSION
from latticeforge_operator.cluster.public_bases import HUB, PublicBases
from latticeforge_operator.cluster.reconciler import Reconciler
from latticeforge_operator.cluster.settings import Settings
from latticeforge_operator.cluster.stateless import NoDiffBase, NoProgress
from latticeforge_operator.cluster.telemetry import (
    Server,
    StackCollector,
    Telemetry,
    application,
)

SERVER_TIMEOUT = 240
CLIENT_TIMEOUT = 300
CONNECT_TIMEOUT = 10
INACTIVITY_TIMEOUT = 70
"""A watch that brings nothing for so long is opened anew; the API server sends a bookmark every
minute. In seconds, as the others."""
WATCH_BACKOFFS = (1, 1, 2, 3, 5, 8, 13, 21, 34, 55)
"""Pauses between attempts to reach the API server; after the last the process ends, and Kubernetes
starts another."""
FIRST_RETRY = 1.0
LONGEST_RETRY = 30.0
"""Pauses between attempts to list everything when the operator starts; doubled every time."""
EXIT_SECONDS = 5.0
"""How long an operator that stops may take; no moment is a bad one to be killed at."""

log = logging.getLogger(__name__)

WATCHED: dict[str, Resource] = {
    "GPUPool": POOLS,
    "Job": JOBS,
    "Pod": PODS,
    "ConfigMap": CONFIG_MAPS,
    "StackedTraining": TRAININGS,
}
"""Kinds and where they live; stacks last, so that their children are known when they wake."""


class Operator:
    """The wiring of one operator process.

    Args:
        namespaces: Namespaces to serve; empty: all.
        metrics_port: Where metrics and probes are served; None: nowhere.
    """

    def __init__(self, namespaces: tuple[str, ...], metrics_port: int | None = None) -> None:
        self.namespaces = namespaces
        self._metrics_port = metrics_port
        self._server: Server | None = None
        self.registry = kopf.OperatorRegistry()
        self._reconciler: Reconciler | None = None
        self._client: Client | None = None
        self._resync: asyncio.Task[None] | None = None
        kopf.on.login(registry=self.registry)(login)
        kopf.on.startup(registry=self.registry)(self.startup)
        kopf.on.cleanup(registry=self.registry)(self.cleanup)
        for kind, resource in WATCHED.items():
            self._watch(kind, resource)

    def _watch(self, kind: str, resource: Resource) -> None:
        ours = kind in {"GPUPool", "StackedTraining"}
        group, version = (GROUP, VERSION) if ours else _group_version(resource)

        async def seen(event: kopf.RawEvent, **_: Any) -> None:
            self.seen(kind, event)

        kopf.on.event(
            group,
            version,
            resource.plural,
            registry=self.registry,
            id=f"seen-{resource.plural}",
            labels=None if ours else {TRAINING_LABEL: kopf.PRESENT},
        )(seen)

    async def startup(self, settings: kopf.OperatorSettings, **_: Any) -> None:
        """List everything once, so that no stack is decided on without its children."""
        settings.posting.enabled = False
        settings.persistence.diffbase_storage = NoDiffBase()
        settings.persistence.progress_storage = NoProgress()
        settings.watching.server_timeout = SERVER_TIMEOUT
        settings.watching.client_timeout = CLIENT_TIMEOUT
        settings.watching.connect_timeout = CONNECT_TIMEOUT
        settings.watching.inactivity_timeout = INACTIVITY_TIMEOUT
        settings.networking.error_backoffs = WATCH_BACKOFFS
        settings.scanning.disabled = bool(self.namespaces)
        telemetry = Telemetry()
        if self._metrics_port is not None:
            app = application(telemetry, lambda: self._reconciler is not None)
            self._server = Server(app, self._metrics_port)
            try:
                await self._server.start()
            except OSError as error:
                # Trying again, as Kopf would, leaves an operator that looks alive and does nothing.
                raise kopf.PermanentError(
                    f"metrics and probes cannot be served on port {self._metrics_port}: "
                    f"{error.strerror}; choose another (--metrics-port, the chart's metrics.port)"
                ) from error
        self._client = await Client.connect(telemetry.called)
        mirror = Mirror()
        for kind, resource in WATCHED.items():
            selector = "" if kind in {"GPUPool", "StackedTraining"} else TRAINING_LABEL
            spaces = self.namespaces if resource.namespaced and self.namespaces else (None,)
            for namespace in spaces:
                listed = await _listed(self._client, resource, namespace, selector)
                for obj in listed.items:
                    mirror.put(kind, obj)
        telemetry.registry.register(StackCollector(mirror.stacks, mirror.active_pods))
        told = Settings.from_environment(self.namespaces)
        bases = None if told.hub_offline else PublicBases(told.hub_endpoint or HUB)
        self._reconciler = Reconciler(self._client, mirror, told, telemetry=telemetry, bases=bases)
        self._resync = asyncio.create_task(self._reconciler.resync())

    async def cleanup(self, **_: Any) -> None:
        """Stop working and close the connections."""
        _end_within(EXIT_SECONDS)
        if self._resync is not None:
            self._resync.cancel()
        if self._reconciler is not None:
            await self._reconciler.aclose()
        if self._client is not None:
            await self._client.aclose()
        if self._server is not None:
            await self._server.aclose()

    def seen(self, kind: str, event: kopf.RawEvent) -> None:
        """Take one watch event in."""
        if self._reconciler is None:
            return  # listed at start-up
        mirror = self._reconciler.mirror
        obj = {"kind": kind, **event["object"]}
        change = mirror.remove if event["type"] == "DELETED" else mirror.put
        for key in change(kind, obj):
            self._reconciler.wake(key)

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT, or until a watch cannot go on."""
        kopf.run(
            registry=self.registry,
            standalone=True,
            namespaces=self.namespaces,
            clusterwide=not self.namespaces,
        )


async def _listed(
    client: Client, resource: Resource, namespace: str | None, selector: str
) -> Listing:
    """A list, however long the API server takes to give it."""
    pause = FIRST_RETRY
    while True:
        try:
            return await client.list_all(resource, namespace, selector)
        except ClusterError as error:
            log.warning("%s; again in %.0f s", error, pause)
        await asyncio.sleep(pause)
        pause = min(pause * 2, LONGEST_RETRY)


def _end_within(seconds: float) -> None:
    """End the process after that long if it has not ended by then.

    When a watch is answered with an error that Kopf does not retry, such as 410, Kopf stops the
    operator, and some of its tasks then wait for ever: the process would live on, deaf.
    """
    timer = threading.Timer(seconds, os._exit, (1,))
    timer.daemon = True
    timer.start()


def login(settings: kopf.OperatorSettings, **_: Any) -> kopf.ConnectionInfo | None:
    """Credentials for Kopf's watches, from where `Client.connect` takes its own."""
    if outside_cluster():
        return kopf.login_with_kubeconfig(settings=settings)
    return kopf.login_with_service_account(settings=settings)


def _group_version(resource: Resource) -> tuple[str, str]:
    group, _, version = resource.group_version.rpartition("/")
    return group, version


_FORMATS = {
    "text": logging.Formatter("%(asctime)s %(levelname)s %(message)s"),
    "json": JsonFormatter(
        ["asctime", "levelname", "name", "message"],
        rename_fields={"asctime": "time", "levelname": "level", "name": "logger"},
    ),
}
"""How log lines look; as JSON they carry `training`, the stack that they speak of, as a field."""


@click.command()
@click.version_option(__version__, prog_name="latticeforge-operator")
@click.option("--namespace", "-n", "namespaces", multiple=True, help="Serve only this namespace.")
@click.option("--metrics-port", type=click.IntRange(1, 65535), help="Serve /metrics and probes.")
@click.option(
    "--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True
)
def main(namespaces: tuple[str, ...], metrics_port: int | None, log_format: str) -> None:
    """Run the operator."""
    handler = logging.StreamHandler()
    handler.setFormatter(_FORMATS[log_format])
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("kopf").setLevel(logging.WARNING)
    Operator(namespaces, metrics_port).run()


if __name__ == "__main__":
    main()
