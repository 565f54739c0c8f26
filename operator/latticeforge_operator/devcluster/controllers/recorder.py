"""Events: what the devcluster tells people about an object, as `kubectl describe` shows it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

from latticeforge_operator.devcluster.controllers.objects import EVENTS, find
from latticeforge_operator.devcluster.errors import ApiError
from latticeforge_operator.devcluster.metadata import timestamp
from latticeforge_operator.devcluster.resources import JsonObject
from latticeforge_operator.devcluster.store import Store

EventType = Literal["Normal", "Warning"]


@dataclass(frozen=True)
class Event:
    """One thing that happened: type (Normal or Warning), a CamelCase reason, a sentence."""

    type: EventType
    reason: str
    message: str


class Recorder:
    """Writes Events about objects; the same one again raises the count of the first.

    Args:
        store: where Events go.
        component: who reports, e.g. "job-controller".
    """

    def __init__(self, store: Store, component: str) -> None:
        self._store = store
        self._component = component

    def record(self, about: JsonObject, event: Event) -> None:
        """Records an event; one about an object in a vanishing namespace is lost, as anywhere."""
        namespace = about["metadata"].get("namespace", "default")
        name = self._name(about, event)
        seen = find(self._store, EVENTS, namespace, name)
        if seen is None:
            self._create(namespace, name, about, event)
            return
        again = {
            "count": seen.get("count", 1) + 1,
            "lastTimestamp": timestamp(self._store.now()),
        }
        self._store.merge_patch(EVENTS, namespace, name, again)

    def _name(self, about: JsonObject, event: Event) -> str:
        identity = (about["metadata"]["uid"], self._component, *vars(event).values())
        digest = hashlib.sha256("\0".join(identity).encode()).hexdigest()
        return f"{about['metadata']['name'][:200]}.{digest[:16]}"

    def _create(self, namespace: str, name: str, about: JsonObject, event: Event) -> None:
        now = timestamp(self._store.now())
        made = {
            "metadata": {"name": name},
            "involvedObject": {
                "apiVersion": about["apiVersion"],
                "kind": about["kind"],
                "name": about["metadata"]["name"],
                "namespace": namespace,
                "uid": about["metadata"]["uid"],
            },
            "type": event.type,
            "reason": event.reason,
            "message": event.message,
            "source": {"component": self._component},
            "reportingComponent": self._component,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
        try:
            self._store.create(EVENTS, namespace, made)
        except ApiError as error:
            if error.code not in {403, 404}:
                raise
