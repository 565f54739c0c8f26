"""Following a collection's history: each watcher keeps a position, and buffers nothing."""

from __future__ import annotations

import asyncio

from latticeforge_operator.devcluster.collection import Change, Collection


class Follower:
    """Reads a collection's changes from a revision on.

    Args:
        collection: what to follow.
        since: the revision already seen.
    """

    def __init__(self, collection: Collection, since: int) -> None:
        self._collection = collection
        self._since = since

    @property
    def ended(self) -> bool:
        """Whether the resource is no longer served, so that nothing more can happen."""
        return self._collection.closed

    async def next(self, timeout: float | None = None) -> list[Change]:  # noqa: ASYNC109  # see Returns
        """Waits for changes.

        Returns:
            All changes since the last call; an empty list after `timeout` seconds without any, or
            when the resource is no longer served.

        Raises:
            ApiError: 410, the position is older than the history kept.
        """
        batch = self._collection.since(self._since)
        if not batch and not self.ended:
            waiter = self._collection.changed()
            await asyncio.wait({waiter}, timeout=timeout)
            waiter.cancel()
            batch = self._collection.since(self._since)
        if batch:
            self._since = batch[-1].after.revision
        return batch
