"""The Kubernetes API without HTTP: what the server serves and the controllers call in-process.

Objects are immutable once stored. What `get`, `list`, `watch` and the writes return is shared with
every other reader and must not be mutated; what callers pass in is copied.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from latticeforge_operator.devcluster import admission, apply, custom, errors, metadata
from latticeforge_operator.devcluster.apply import ApplyRequest
from latticeforge_operator.devcluster.builtins import CRDS, NAMESPACES, builtin_resources
from latticeforge_operator.devcluster.collection import Query, Stored
from latticeforge_operator.devcluster.database import Database
from latticeforge_operator.devcluster.deletion import Deleter, Propagation
from latticeforge_operator.devcluster.errors import ApiError
from latticeforge_operator.devcluster.patch import json_merge
from latticeforge_operator.devcluster.resources import (
    JsonObject,
    Registry,
    Resource,
    ResourceKey,
    clone,
)
from latticeforge_operator.devcluster.selectors import FieldSelector, LabelSelector
from latticeforge_operator.devcluster.watching import Follower

__all__ = ["ApiError", "ResourceKey", "Store", "WatchEvent", "WriteOptions"]

# Inside Store, `list` is the method.
Objects = list[JsonObject]
Versions = list[Stored]
Subresource = Literal["status"]
_NAME_ATTEMPTS = 8


@dataclass(frozen=True)
class WatchEvent:
    """One event of a watch; `object` must not be mutated."""

    type: Literal["ADDED", "MODIFIED", "DELETED"]
    object: dict[str, Any]


@dataclass(frozen=True, slots=True)
class WriteOptions:
    """How a write is done.

    Attributes:
        manager: who owns the fields that the write changes (`metadata.managedFields`).
        dry_run: answer as if it had happened, and store nothing.
    """

    manager: str = "devcluster"
    dry_run: bool = False


_DEFAULTS = WriteOptions()


def utc_now() -> datetime:
    """The wall clock."""
    return datetime.now(UTC)


class Store:
    """Create, read, update, delete, apply and watch, with the meaning Kubernetes gives them.

    Namespaces are passed as an empty string for cluster-scoped resources.

    Args:
        now: the clock of every timestamp.
        history_limit: changes kept of each resource for watches that start in the past.
    """

    def __init__(
        self, *, now: Callable[[], datetime] = utc_now, history_limit: int = 10_000
    ) -> None:
        self.now = now
        self.registry = Registry(builtin_resources())
        self._database = Database(self.registry, history_limit)
        self._deleter = Deleter(self._database, self._clock)
        for name in ("default", "kube-system", "kube-public"):
            self.create(NAMESPACES, "", {"metadata": {"name": name}})

    def _clock(self) -> datetime:
        # Read late: tests and the devcluster may replace `now`.
        return self.now()

    @property
    def revision(self) -> int:
        """The resourceVersion of the latest change."""
        return self._database.revision

    def get(self, key: ResourceKey, namespace: str, name: str) -> JsonObject:
        """Returns an object; raises a 404 ApiError when there is none."""
        return self.find(key, namespace, name).object

    def find(self, key: ResourceKey, namespace: str, name: str) -> Stored:
        """Like `get`, with the object's revision and encoded form."""
        return self._database.find(key, namespace, name)

    def list(
        self,
        key: ResourceKey,
        namespace: str | None = None,
        *,
        label_selector: str = "",
        field_selector: str = "",
    ) -> Objects:
        """Lists a resource's objects in one namespace, or (None) in all, ordered by key."""
        query = self.query(key, namespace, label_selector, field_selector)
        return [stored.object for stored in self.select(key, query)]

    def peek(self, key: ResourceKey, namespace: str, name: str) -> Stored | None:
        """Returns the current version, or None."""
        return self._database.collection(key).get((namespace, name))

    def query(
        self, key: ResourceKey, namespace: str | None, label_selector: str, field_selector: str
    ) -> Query:
        """Parses selectors; raises a 400 ApiError for a bad one."""
        return Query(
            namespace,
            LabelSelector.parse(label_selector),
            FieldSelector.parse(field_selector, self.registry[key].selectable),
        )

    def follow(self, key: ResourceKey, since: int) -> Follower:
        """Follows a resource's changes after a revision.

        Raises:
            ApiError: 410, the revision was never reached: it is of another server's life.
        """
        if since > self.revision:
            raise errors.expired(f"too large resource version: {since} ({self.revision})")
        return Follower(self._database.collection(key), since)

    def select(self, key: ResourceKey, query: Query) -> Versions:
        """Like `list`, for a parsed query."""
        return self._database.collection(key).select(query)

    def create(
        self,
        key: ResourceKey,
        namespace: str,
        obj: JsonObject,
        *,
        options: WriteOptions = _DEFAULTS,
    ) -> JsonObject:
        """Stores a new object.

        Raises:
            ApiError: 409 when the name is taken, 422 when the object is invalid, 404 when its
                namespace does not exist, 403 when its namespace is terminating.
        """
        resource = self.registry[key]
        metadata.check_shape(resource, obj)
        new = self._unused_name(resource, namespace, clone(obj))
        new = admission.admit_create(resource, new, self.now())
        request = ApplyRequest(options.manager, force=False, subresource=None, now=self.now())
        new = apply.track(resource, None, new, request)
        return self._insert(resource, new, options)

    def _unused_name(self, resource: Resource, namespace: str, obj: JsonObject) -> JsonObject:
        self._require_open(resource, namespace)
        collection = self._database.collection(resource.key)
        for _ in range(_NAME_ATTEMPTS):
            new = metadata.created(resource, namespace, obj, self.now())
            name = new["metadata"]["name"]
            if collection.get((namespace, name)) is None:
                return new
            if (obj.get("metadata") or {}).get("name"):
                break
        raise errors.already_exists(resource.key, name)

    def _require_open(self, resource: Resource, namespace: str) -> None:
        if not resource.namespaced:
            return
        if self.get(NAMESPACES, "", namespace)["metadata"].get("deletionTimestamp"):
            message = (
                f"{resource.key.qualified_plural} is forbidden: unable to create new content in "
                f"namespace {namespace} because it is being terminated"
            )
            raise ApiError(403, message)

    def _insert(self, resource: Resource, new: JsonObject, options: WriteOptions) -> JsonObject:
        if options.dry_run:
            return new
        stored = self._database.write(resource, "ADDED", None, new)
        self._redefine(resource, stored)
        self._deleter.collect_if_ownerless(resource, stored)
        return stored.object

    def _redefine(self, resource: Resource, stored: Stored) -> None:
        if resource.key == CRDS:
            self.registry.add(custom.resource(stored.object))

    def update(
        self,
        key: ResourceKey,
        namespace: str,
        name: str,
        obj: JsonObject,
        *,
        subresource: Subresource | None = None,
        options: WriteOptions = _DEFAULTS,
    ) -> JsonObject:
        """Replaces an object, or only its status.

        Raises:
            ApiError: 409 when `obj` carries a resourceVersion or uid other than the stored one;
                422 when it is invalid; 404 when there is none.
        """
        resource = self.registry[key]
        old = self.find(key, namespace, name)
        return self._replace(resource, old, clone(obj), subresource, options)

    def merge_patch(
        self,
        key: ResourceKey,
        namespace: str,
        name: str,
        patch: JsonObject,
        *,
        subresource: Subresource | None = None,
        options: WriteOptions = _DEFAULTS,
    ) -> JsonObject:
        """Applies a JSON merge patch (RFC 7386); raises what `update` raises."""
        patch = clone(patch)
        return self.patch(
            key,
            namespace,
            name,
            lambda live: json_merge(live, patch),
            subresource=subresource,
            options=options,
        )

    def patch(
        self,
        key: ResourceKey,
        namespace: str,
        name: str,
        change: Callable[[JsonObject], JsonObject],
        *,
        subresource: Subresource | None = None,
        options: WriteOptions = _DEFAULTS,
    ) -> JsonObject:
        """Replaces an object by what `change` makes of it; `change` must not mutate its input."""
        resource = self.registry[key]
        old = self.find(key, namespace, name)
        return self._replace(resource, old, change(old.object), subresource, options)

    def apply(
        self,
        key: ResourceKey,
        namespace: str,
        name: str,
        obj: JsonObject,
        *,
        manager: str,
        force: bool = False,
        subresource: Subresource | None = None,
        options: WriteOptions = _DEFAULTS,
    ) -> JsonObject:
        """Server-side apply: makes `obj` what `manager` wants of the object.

        Raises:
            ApiError: 409 naming the other managers when they own fields that would change and
                `force` is not set; otherwise what `create` and `update` raise.
        """
        resource = self.registry[key]
        metadata.check_shape(resource, obj)
        config = apply.checked_config(resource, namespace, name, clone(obj), subresource)
        request = ApplyRequest(manager, force, subresource, self.now())
        live = self.peek(key, namespace, name)
        if live is None:
            if subresource:
                raise errors.not_found(key, name)
            new = self._unused_name(resource, namespace, config)
            new = apply.claim(resource, new, config, request)
            new = admission.admit_create(resource, new, self.now())
            return self._insert(resource, new, options)
        merged = apply.apply(resource, live.object, config, request)
        return self._replace(resource, live, merged, subresource, options, tracked=True)

    def _replace(
        self,
        resource: Resource,
        old: Stored,
        obj: JsonObject,
        subresource: Subresource | None,
        options: WriteOptions,
        *,
        tracked: bool = False,
    ) -> JsonObject:
        metadata.check_shape(resource, obj, old.object)
        admission.check_preconditions(resource, old.object, obj)
        new = metadata.carried(old.object, obj)
        new = admission.isolated(resource, old.object, new, subresource)
        metadata.check(resource, new)
        new = admission.admit_update(resource, old.object, new, self.now())
        if not tracked:
            request = ApplyRequest(options.manager, False, subresource, self.now())
            new = apply.track(resource, old.object, new, request)
        if new == old.object:
            return old.object
        new = metadata.with_generation(resource, old.object, new)
        if options.dry_run:
            return new
        stored = self._database.write(resource, "MODIFIED", old, new)
        self._redefine(resource, stored)
        self._deleter.settle(resource, stored)
        self._deleter.collect_if_ownerless(resource, stored)
        return stored.object

    def delete(
        self,
        key: ResourceKey,
        namespace: str,
        name: str,
        *,
        propagation: Propagation = "Background",
        grace_period_seconds: int | None = None,
    ) -> JsonObject:
        """Deletes an object and what it owns; returns its last (or its terminating) state.

        Finalizers hold an object; a running pod is held until its kubelet deletes it with
        `grace_period_seconds=0`, which removes a pod at once.
        """
        stored = self.find(key, namespace, name)
        resource = self.registry[key]
        return self._deleter.delete(resource, stored, propagation, grace_period_seconds).object

    async def watch(
        self, key: ResourceKey, namespace: str | None = None, *, since: int | None = None
    ) -> AsyncIterator[WatchEvent]:
        """Yields changes as they happen, endlessly.

        Args:
            key: the resource to watch.
            namespace: None watches all.
            since: a resourceVersion to continue from; None first yields ADDED for what exists.

        Raises:
            ApiError: 410 when `since` is older than the history kept.
        """
        query = Query(namespace)
        follower = self.follow(key, self.revision if since is None else since)
        if since is None:
            for stored in self.select(key, query):
                yield WatchEvent("ADDED", stored.object)
        while not follower.ended:
            for change in await follower.next():
                if event := change.seen_by(query):
                    yield WatchEvent(event[0], event[1].object)
