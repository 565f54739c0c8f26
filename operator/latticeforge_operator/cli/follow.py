"""Read a stack again and again until it has ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from latticeforge_operator.cli.access import Access, Refused
from latticeforge_operator.cli.stackview import StackView, stack_view

_EVENTS_READ = "50"


async def read_stack(access: Access, path: str) -> StackView:
    """The stack at a URL path, with its events.

    Raises:
        Refused: It does not exist.
    """
    obj = await access.get(path)
    if obj is None:
        collection, _, name = path.rpartition("/")
        namespace = collection.split("/")[-2]
        raise Refused(f"there is no StackedTraining {name} in namespace {namespace}")
    meta = obj["metadata"]
    events = await access.get(
        f"/api/v1/namespaces/{meta['namespace']}/events",
        fieldSelector=f"involvedObject.uid={meta['uid']}",
        limit=_EVENTS_READ,
    )
    return stack_view(obj, (events or {}).get("items") or [])


async def follow(access: Access, path: str, seconds: float) -> AsyncIterator[StackView]:
    """Views of a stack, one every `seconds`; the last one has ended."""
    while True:
        view = await read_stack(access, path)
        yield view
        if view.ended:
            return
        await asyncio.sleep(seconds)
