"""A real Kopf operator, in a process of its own, against the devcluster's API server."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.conformance.conftest import WIDGETS
from tests.integration.real_clients import Client, running_server

from latticeforge_operator.devcluster.store import ResourceKey, Store

CRDS = ResourceKey("apiextensions.k8s.io/v1", "customresourcedefinitions")
EVENTS = ResourceKey("v1", "events")
WIDGET_KEY = ResourceKey("conformance.latticeforge.dev/v1", "widgets")
OPERATOR = Path(__file__).with_name("kopf_operator.py")
KOPF = ("-m", "kopf", "run", "--standalone", "--namespace=default", str(OPERATOR))


def widget(name: str) -> dict[str, Any]:
    return {"metadata": {"name": name}, "spec": {"size": 1}}


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  # another process decides
            await asyncio.sleep(0.05)


def phase(store: Store, name: str) -> str | None:
    status = store.get(WIDGET_KEY, "default", name).get("status", {})
    found: str | None = status.get("phase")
    return found


@pytest.mark.slow
async def test_kopf_reconciles_updates_and_finalizes(tmp_path: Path) -> None:
    async with running_server(tmp_path) as (store, kubeconfig):
        store.create(CRDS, "", WIDGETS)
        store.create(WIDGET_KEY, "default", widget("early"))
        python = Client(sys.executable, kubeconfig)
        async with python.running(*KOPF, PYTHONPATH=os.pathsep.join(sys.path)) as process:
            await until(lambda: phase(store, "early") == "size 1")
            store.create(WIDGET_KEY, "default", widget("late"))
            await until(lambda: phase(store, "late") == "size 1")
            store.merge_patch(WIDGET_KEY, "default", "late", {"spec": {"size": 2}})
            await until(lambda: phase(store, "late") == "size 2")
            await until(
                lambda: any(event["reason"] == "Reconciled" for event in store.list(EVENTS))
            )
            late = store.delete(WIDGET_KEY, "default", "late")
            assert late["metadata"]["deletionTimestamp"]
            await until(lambda: len(store.list(WIDGET_KEY)) == 1)
            process.terminate()
            _, logged = await process.communicate()
    assert b"Traceback" not in logged, logged.decode()
