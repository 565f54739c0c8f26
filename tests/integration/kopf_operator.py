"""A tiny Kopf operator that the Kopf test runs as a process of its own."""

from __future__ import annotations

from typing import Any

import kopf

GROUP = "conformance.latticeforge.dev"


@kopf.on.startup()
def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
    settings.posting.level = 20
    settings.persistence.finalizer = f"{GROUP}/finalizer"


@kopf.on.create(GROUP, "v1", "widgets")
@kopf.on.update(GROUP, "v1", "widgets", field="spec")
async def reconcile(spec: kopf.Spec, patch: kopf.Patch, body: kopf.Body, **_: Any) -> None:
    patch.status["phase"] = f"size {spec['size']}"
    kopf.info(body, reason="Reconciled", message=f"size {spec['size']}")


@kopf.on.delete(GROUP, "v1", "widgets")
async def forget(**_: Any) -> None:
    """Gives Kopf a reason to hold the object by its finalizer."""
