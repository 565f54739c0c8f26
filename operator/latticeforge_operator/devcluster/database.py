"""Where versions of objects live: collections, the revision counter, and who owns whom."""

from __future__ import annotations

from dataclasses import dataclass

from latticeforge_operator.devcluster import errors
from latticeforge_operator.devcluster.collection import (
    Change,
    Collection,
    EventType,
    ObjectKey,
    Stored,
)
from latticeforge_operator.devcluster.resources import (
    JsonObject,
    Registry,
    Resource,
    ResourceKey,
)


@dataclass(frozen=True, slots=True)
class Location:
    """Where an object is stored."""

    resource: ResourceKey
    key: ObjectKey


class Database:
    """Collections of immutable object versions under one revision counter.

    It knows nothing of what a write means; `store` and `deletion` decide that.
    """

    def __init__(self, registry: Registry, history_limit: int) -> None:
        self.registry = registry
        self.revision = 0
        self._history_limit = history_limit
        self._collections: dict[ResourceKey, Collection] = {}
        self._by_uid: dict[str, Location] = {}
        self._dependents: dict[str, dict[Location, None]] = {}

    def collection(self, key: ResourceKey) -> Collection:
        """Returns a served resource's collection; raises a 404 ApiError for any other."""
        if key not in self._collections:
            self.registry[key]
            self._collections[key] = Collection(self._history_limit)
        return self._collections[key]

    def drop(self, key: ResourceKey) -> None:
        """Forgets a resource that is no longer served."""
        self.registry.remove(key)
        if collection := self._collections.pop(key, None):
            collection.close()

    def find(self, key: ResourceKey, namespace: str, name: str) -> Stored:
        """Returns the current version; raises a 404 ApiError when there is none."""
        stored = self.collection(key).get((namespace, name))
        if stored is None:
            raise errors.not_found(key, name)
        return stored

    def at(self, location: Location) -> Stored | None:
        """Returns what is stored at a location."""
        collection = self._collections.get(location.resource)
        return collection.get(location.key) if collection else None

    def locate(self, uid: str) -> Location | None:
        """Finds the living object of a uid."""
        return self._by_uid.get(uid)

    def dependents(self, uid: str) -> list[Location]:
        """Lists the objects whose ownerReferences name this uid."""
        return list(self._dependents.get(uid, ()))

    def in_namespace(self, namespace: str) -> list[Location]:
        """Lists everything in a namespace."""
        return [
            Location(key, object_key)
            for key, collection in self._collections.items()
            for object_key in collection.keys_in(namespace)
        ]

    def write(
        self, resource: Resource, event: EventType, before: Stored | None, obj: JsonObject
    ) -> Stored:
        """Records a change under the next revision, and wakes the watches."""
        self.revision += 1
        metadata = {**obj["metadata"], "resourceVersion": str(self.revision)}
        after = Stored({**obj, "metadata": metadata}, self.revision)
        location = Location(resource.key, after.key)
        self._index_owners(location, before, None if event == "DELETED" else after)
        self.collection(resource.key).record(Change(event, before, after))
        return after

    def _index_owners(
        self, location: Location, before: Stored | None, after: Stored | None
    ) -> None:
        if before is not None:
            for uid in owner_uids(before.object):
                dependents = self._dependents.get(uid, {})
                dependents.pop(location, None)
                if not dependents:
                    self._dependents.pop(uid, None)
            if after is None:
                self._by_uid.pop(before.object["metadata"]["uid"], None)
        if after is not None:
            self._by_uid[after.object["metadata"]["uid"]] = location
            for uid in owner_uids(after.object):
                self._dependents.setdefault(uid, {})[location] = None


def owner_uids(obj: JsonObject) -> list[str]:
    """The uids that an object's ownerReferences name."""
    references = obj["metadata"].get("ownerReferences") or []
    return [reference["uid"] for reference in references]
