"""Read a stack again and again until it has ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from latticeforge_operator.cli.access import Access, Forbidden, Refused, Unreachable
from latticeforge_operator.cli.stackview import StackView, stack_view


async def read_stack(access: Access, path: str) -> StackView:
    """The stack at a URL path, with its events where they may be read.

    Raises:
        Refused: It does not exist, or may not be read.
        Unreachable: The cluster does not answer.
    """
    obj = await read_object(access, path)
    try:
        return stack_view(obj, await _events(access, obj["metadata"]))
    except Forbidden as error:
        return stack_view(obj, [], unread=f"no events: {error}")


async def read_object(access: Access, path: str) -> dict[str, Any]:
    """The StackedTraining at a URL path.

    Raises:
        Refused: It does not exist, or may not be read.
        Unreachable: The cluster does not answer.
    """
    obj = await access.get(path)
    if obj is None:
        collection, _, name = path.rpartition("/")
        namespace = collection.split("/")[-2]
        raise Refused(f"there is no StackedTraining {name} in namespace {namespace}")
    return obj


async def _events(access: Access, meta: dict[str, Any]) -> list[dict[str, Any]]:
    path = f"/api/v1/namespaces/{meta['namespace']}/events"
    listed = await access.get(path, fieldSelector=f"involvedObject.uid={meta['uid']}")
    return (listed or {}).get("items") or []


async def follow(
    access: Access, path: str, seconds: float, tell: Callable[[str], None]
) -> AsyncIterator[StackView]:
    """Views of a stack, one every `seconds`; the last one has ended.

    Args:
        access: The cluster. Once it has answered, it may be away for a while.
        path: URL path of the stack.
        seconds: The pause between two looks.
        tell: Called with a sentence when the cluster begins not to answer.

    Raises:
        Refused: The stack does not exist, or may not be read.
        Unreachable: The cluster has never answered.
    """
    view, away = await read_stack(access, path), False
    yield view
    while not view.ended:
        await asyncio.sleep(seconds)
        try:
            view = await read_stack(access, path)
        except Unreachable as error:
            if not away:
                tell(f"{error}; it is asked until it does")
            away = True
        else:
            away = False
            yield view
