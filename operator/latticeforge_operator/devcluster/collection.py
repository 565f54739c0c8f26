"""The objects of one resource: current versions, indexes, and the recent history watches read.

Objects are immutable once stored: a change stores a new dict. Readers may therefore share them, a
version is encoded to JSON at most once, and a watch needs no copy of what it has already sent.
"""

from __future__ import annotations

import asyncio
import json
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from latticeforge_operator.devcluster.errors import expired
from latticeforge_operator.devcluster.resources import JsonObject
from latticeforge_operator.devcluster.selectors import FieldSelector, LabelSelector

ObjectKey = tuple[str, str]
"""Namespace (empty for cluster-scoped objects) and name."""

_Entry = TypeVar("_Entry")
EventType = Literal["ADDED", "MODIFIED", "DELETED"]


class Stored:
    """One immutable version of an object."""

    __slots__ = ("_json", "object", "revision")

    def __init__(self, obj: JsonObject, revision: int) -> None:
        self.object = obj
        self.revision = revision
        self._json: bytes | None = None

    @property
    def key(self) -> ObjectKey:
        """Where the object lives."""
        metadata = self.object["metadata"]
        return metadata.get("namespace", ""), metadata["name"]

    @property
    def labels(self) -> dict[str, str]:
        """The object's labels."""
        return self.object["metadata"].get("labels") or {}

    @property
    def json(self) -> bytes:
        """The object as JSON, encoded on first use."""
        if self._json is None:
            self._json = json.dumps(self.object, separators=(",", ":")).encode()
        return self._json


@dataclass(frozen=True, slots=True)
class Query:
    """Which objects of a resource a list or a watch is about."""

    namespace: str | None = None
    labels: LabelSelector = field(default_factory=LabelSelector)
    fields: FieldSelector = field(default_factory=FieldSelector)

    def matches(self, stored: Stored) -> bool:
        """Whether the object is asked for."""
        return (
            (self.namespace is None or stored.key[0] == self.namespace)
            and self.labels.matches(stored.labels)
            and self.fields.matches(stored.object)
        )


@dataclass(frozen=True, slots=True)
class Change:
    """One step of history. `after` of a deletion is the last state under a new revision."""

    type: EventType
    before: Stored | None
    after: Stored

    def seen_by(self, query: Query) -> tuple[EventType, Stored] | None:
        """What a watch of this query receives: an object may enter or leave its selection."""
        was = self.before is not None and query.matches(self.before)
        now = self.type != "DELETED" and query.matches(self.after)
        if now:
            return ("MODIFIED" if was else "ADDED"), self.after
        if not was or self.before is None:
            return None
        return "DELETED", self.after if self.type == "DELETED" else _departed(self)


def _departed(change: Change) -> Stored:
    """The last state that matched, under the revision at which it ceased to match."""
    last = change.before.object if change.before else change.after.object
    version = {"resourceVersion": str(change.after.revision)}
    obj = {**last, "metadata": {**last["metadata"], **version}}
    return Stored(obj, change.after.revision)


class Collection:
    """All objects of one resource.

    Args:
        history_limit: how many changes are kept at least; a watch that wants older ones gets 410.
    """

    def __init__(self, history_limit: int) -> None:
        self._objects: dict[ObjectKey, Stored] = {}
        self._by_namespace: dict[str, dict[ObjectKey, None]] = {}
        self._by_label: dict[tuple[str, str], dict[ObjectKey, None]] = {}
        self._history: list[Change] = []
        self._history_limit = history_limit
        self._oldest_served = 0
        self._waiters: set[asyncio.Future[None]] = set()
        self.closed = False

    def __len__(self) -> int:
        return len(self._objects)

    def get(self, key: ObjectKey) -> Stored | None:
        """Returns the current version, or None."""
        return self._objects.get(key)

    def select(self, query: Query) -> list[Stored]:
        """Lists matching objects in the order of their keys, through the smallest index."""
        candidates = min(self._candidates(query), key=len)
        found = (self._objects[key] for key in sorted(candidates))
        return [stored for stored in found if query.matches(stored)]

    def _candidates(self, query: Query) -> list[dict[ObjectKey, None] | dict[ObjectKey, Stored]]:
        sets: list[dict[ObjectKey, None] | dict[ObjectKey, Stored]] = [self._objects]
        if query.namespace is not None:
            sets.append(self._by_namespace.get(query.namespace, {}))
        sets += [self._by_label.get(pair, {}) for pair in query.labels.exact]
        return sets

    def all_keys(self) -> list[ObjectKey]:
        """Lists the keys of all objects."""
        return list(self._objects)

    def keys_in(self, namespace: str) -> list[ObjectKey]:
        """Lists the keys of a namespace's objects."""
        return list(self._by_namespace.get(namespace, ()))

    def record(self, change: Change) -> None:
        """Makes a change the current state, and wakes every watch."""
        key = change.after.key
        if change.before is not None:
            self._unindex(key, change.before)
        if change.type == "DELETED":
            self._objects.pop(key, None)
        else:
            self._objects[key] = change.after
            self._index(key, change.after)
        self._remember(change)

    def _index(self, key: ObjectKey, stored: Stored) -> None:
        self._by_namespace.setdefault(key[0], {})[key] = None
        for pair in stored.labels.items():
            self._by_label.setdefault(pair, {})[key] = None

    def _unindex(self, key: ObjectKey, stored: Stored) -> None:
        _discard(self._by_namespace, key[0], key)
        for pair in stored.labels.items():
            _discard(self._by_label, pair, key)

    def _remember(self, change: Change) -> None:
        self._history.append(change)
        # Trimming half at a time keeps the cost of a write constant on average.
        if len(self._history) > 2 * self._history_limit:
            self._oldest_served = self._history[-self._history_limit - 1].after.revision
            del self._history[: -self._history_limit]
        self._wake()

    def close(self) -> None:
        """Ends the watches: the resource is no longer served."""
        self.closed = True
        self._wake()

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, set()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def since(self, revision: int) -> list[Change]:
        """Returns the changes after a revision; raises a 410 ApiError when some are forgotten."""
        if revision < self._oldest_served:
            raise expired(f"too old resource version: {revision} ({self._oldest_served})")
        start = bisect_right(self._history, revision, key=lambda change: change.after.revision)
        return self._history[start:]

    def changed(self) -> asyncio.Future[None]:
        """Returns a future that the next change completes; cancel it when no longer wanted."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        waiter.add_done_callback(self._waiters.discard)
        return waiter


def _discard(index: dict[_Entry, dict[ObjectKey, None]], entry: _Entry, key: ObjectKey) -> None:
    keys = index.get(entry)
    if keys is not None:
        keys.pop(key, None)
        if not keys:
            del index[entry]
