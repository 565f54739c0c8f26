"""Following a collection's history: each watcher keeps a position, and buffers nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from latticeforge_operator.devcluster.collection import Change, Collection


async def changes(
    collection: Collection, since: int, *, patience: float | None = None
) -> AsyncIterator[list[Change]]:
    """Yields the changes after a revision in batches, until the resource is no longer served.

    Args:
        collection: what to follow.
        since: the revision already seen.
        patience: seconds after which an empty batch is yielded when nothing happened.

    Raises:
        ApiError: 410 when the watcher wants, or has fallen behind to, forgotten history.
    """
    while True:
        waiter = collection.changed()
        try:
            if batch := collection.since(since):
                since = batch[-1].after.revision
                yield batch
                continue
            if collection.closed:
                return
            await asyncio.wait({waiter}, timeout=patience)
        finally:
            waiter.cancel()
        if waiter.cancelled():
            yield []
