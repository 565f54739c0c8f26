"""Notices when one of Kopf's watchers has ended.

Kopf asks again after most errors, but a watch that is answered with 410 or 403, or that brings an
error other than 410, ends its watcher for good: Kopf logs that and goes on without it. An operator
that is deaf on one kind decides on what is no longer true, so it ends, and Kubernetes starts
another.
"""

from __future__ import annotations

import asyncio

WATCHER_NAME = "watcher for "
"""How the names of the tasks begin in which Kopf follows a kind."""
POLL_SECONDS = 1.0


async def ended_watcher() -> str:
    """Wait until a watcher has ended though nobody asked it to; returns its name."""
    watchers: set[asyncio.Task[object]] = set()
    while True:
        watchers |= {t for t in asyncio.all_tasks() if t.get_name().startswith(WATCHER_NAME)}
        for task in [task for task in watchers if task.done()]:
            watchers.discard(task)
            if not task.cancelled():
                return task.get_name()
        await asyncio.sleep(POLL_SECONDS)
