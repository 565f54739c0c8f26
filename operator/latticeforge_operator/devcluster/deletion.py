"""How objects end: grace periods, finalizers, owners, and the contents of namespaces and CRDs.

The garbage collector of a cluster works some seconds behind; this one finishes within the call, so
that whoever deletes an owner already finds its dependents deleted (or terminating) afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Literal

from latticeforge_operator.devcluster.builtins import CRDS, NAMESPACES, PODS
from latticeforge_operator.devcluster.collection import Stored
from latticeforge_operator.devcluster.database import Database, Location
from latticeforge_operator.devcluster.metadata import timestamp
from latticeforge_operator.devcluster.resources import JsonObject, Resource, ResourceKey

Propagation = Literal["Background", "Foreground", "Orphan"]
_FOREGROUND = "foregroundDeletion"
_POD_GRACE_SECONDS = 30


class Deleter:
    """Carries out deletions on a database.

    Args:
        database: where the objects are.
        now: the clock.
    """

    def __init__(self, database: Database, now: Callable[[], datetime]) -> None:
        self._database = database
        self._now = now

    def delete(
        self,
        resource: Resource,
        stored: Stored,
        propagation: Propagation = "Background",
        grace_seconds: int | None = None,
    ) -> Stored:
        """Deletes an object, or marks it as terminating while something still holds it.

        A running pod is held by its grace period until its kubelet deletes it with grace 0;
        finalizers, foreground deletion and contents hold any object.
        """
        location = Location(resource.key, stored.key)
        uid = stored.object["metadata"]["uid"]
        if propagation == "Orphan":
            self._orphan(uid)
        foreground = propagation == "Foreground" and bool(self._blocking(uid))
        grace = _grace(resource, stored.object, grace_seconds)
        if not grace and not foreground and not self._held(resource, stored.object):
            return self._remove(resource, stored)
        marked = self._mark(resource, stored, grace, foreground=foreground)
        for content in self._contents(resource, stored.object):
            self._delete_at(content)
        if foreground:
            for dependent in self._database.dependents(uid):
                self._delete_at(dependent, "Foreground")
        return self._database.at(location) or marked

    def _mark(self, resource: Resource, stored: Stored, grace: int, *, foreground: bool) -> Stored:
        metadata = dict(stored.object["metadata"])
        finalizers = metadata.get("finalizers") or []
        if foreground and _FOREGROUND not in finalizers:
            metadata["finalizers"] = [*finalizers, _FOREGROUND]
        if grace < metadata.get("deletionGracePeriodSeconds", grace + 1):
            deadline = self._now() + timedelta(seconds=grace)
            if "deletionTimestamp" not in metadata and "generation" in metadata:
                metadata["generation"] += 1
            metadata["deletionTimestamp"] = timestamp(deadline)
            metadata["deletionGracePeriodSeconds"] = grace
        obj = {**stored.object, "metadata": metadata}
        if resource.key == NAMESPACES:
            obj["status"] = {**obj.get("status", {}), "phase": "Terminating"}
        if obj == stored.object:
            return stored
        return self._database.write(resource, "MODIFIED", stored, obj)

    def settle(self, resource: Resource, stored: Stored) -> None:
        """Removes a terminating object once nothing holds it any more."""
        metadata = stored.object["metadata"]
        if "deletionTimestamp" not in metadata or metadata.get("deletionGracePeriodSeconds"):
            return
        if not self._held(resource, stored.object):
            self._remove(resource, stored)

    def collect_if_ownerless(self, resource: Resource, stored: Stored) -> None:
        """Deletes an object whose owners have all been deleted, as the garbage collector does."""
        references = stored.object["metadata"].get("ownerReferences") or []
        if references and not any(self._alive(reference, stored) for reference in references):
            self.delete(resource, stored)

    def _held(self, resource: Resource, obj: JsonObject) -> bool:
        return bool(obj["metadata"].get("finalizers")) or bool(self._contents(resource, obj))

    def _remove(self, resource: Resource, stored: Stored) -> Stored:
        final = self._database.write(resource, "DELETED", stored, stored.object)
        metadata = stored.object["metadata"]
        for dependent in self._database.dependents(metadata["uid"]):
            self._collect(dependent)
        if resource.key == CRDS:
            self._database.drop(custom_key(stored.object))
        self._release(resource, stored)
        return final

    def _collect(self, location: Location) -> None:
        stored = self._database.at(location)
        if stored is None:
            return
        resource = self._database.registry[location.resource]
        metadata = stored.object["metadata"]
        alive = [ref for ref in metadata["ownerReferences"] if self._alive(ref, stored)]
        if not alive:
            self.delete(resource, stored)
        elif alive != metadata["ownerReferences"]:
            obj = {**stored.object, "metadata": {**metadata, "ownerReferences": alive}}
            self._database.write(resource, "MODIFIED", stored, obj)

    def _alive(self, reference: JsonObject, dependent: Stored) -> bool:
        location = self._database.locate(reference["uid"])
        return location is not None and location.key[0] in {"", dependent.key[0]}

    def _release(self, resource: Resource, removed: Stored) -> None:
        """Lets go on whatever was terminating and waited for this object to be gone."""
        for reference in removed.object["metadata"].get("ownerReferences") or []:
            owner = self._database.locate(reference["uid"])
            if owner is not None:
                self._finish_foreground(owner)
        if resource.namespaced:
            self._settle_at(Location(NAMESPACES, ("", removed.key[0])))
        if resource.custom:
            self._settle_at(Location(CRDS, ("", resource.key.qualified_plural)))

    def _finish_foreground(self, location: Location) -> None:
        stored = self._database.at(location)
        if stored is None or _FOREGROUND not in (stored.object["metadata"].get("finalizers") or []):
            return
        metadata = dict(stored.object["metadata"])
        if self._blocking(metadata["uid"]):
            return
        metadata["finalizers"] = [f for f in metadata["finalizers"] if f != _FOREGROUND]
        resource = self._database.registry[location.resource]
        obj = {**stored.object, "metadata": metadata}
        self.settle(resource, self._database.write(resource, "MODIFIED", stored, obj))

    def _blocking(self, uid: str) -> list[Location]:
        return [
            location
            for location in self._database.dependents(uid)
            if (stored := self._database.at(location)) is not None
            for reference in stored.object["metadata"]["ownerReferences"]
            if reference["uid"] == uid and reference.get("blockOwnerDeletion")
        ]

    def _orphan(self, uid: str) -> None:
        for location in self._database.dependents(uid):
            stored = self._database.at(location)
            if stored is None:
                continue
            metadata = dict(stored.object["metadata"])
            others = [ref for ref in metadata.pop("ownerReferences") if ref["uid"] != uid]
            if others:
                metadata["ownerReferences"] = others
            resource = self._database.registry[location.resource]
            obj = {**stored.object, "metadata": metadata}
            self._database.write(resource, "MODIFIED", stored, obj)

    def _contents(self, resource: Resource, obj: JsonObject) -> list[Location]:
        if resource.key == NAMESPACES:
            return self._database.in_namespace(obj["metadata"]["name"])
        if resource.key == CRDS and (key := custom_key(obj)) in self._database.registry:
            return [Location(key, found) for found in self._database.collection(key).all_keys()]
        return []

    def _delete_at(self, location: Location, propagation: Propagation = "Background") -> None:
        stored = self._database.at(location)
        if stored is not None:
            self.delete(self._database.registry[location.resource], stored, propagation)

    def _settle_at(self, location: Location) -> None:
        stored = self._database.at(location)
        if stored is not None:
            self.settle(self._database.registry[location.resource], stored)


def _grace(resource: Resource, obj: JsonObject, wanted: int | None) -> int:
    """Seconds a deletion waits for the kubelet: only pods that a node runs have someone to wait."""
    if resource.key != PODS or not obj["spec"].get("nodeName"):
        return 0
    if obj.get("status", {}).get("phase") in {"Succeeded", "Failed"}:
        return 0
    if wanted is not None:
        return wanted
    return int(obj["spec"].get("terminationGracePeriodSeconds", _POD_GRACE_SECONDS))


def custom_key(definition: JsonObject) -> ResourceKey:
    """The resource that a CustomResourceDefinition serves: its storage version."""
    spec = definition["spec"]
    version = next(v["name"] for v in spec["versions"] if v.get("storage"))
    return ResourceKey(f"{spec['group']}/{version}", spec["names"]["plural"])
