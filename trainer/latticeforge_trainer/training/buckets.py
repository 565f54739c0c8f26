"""Cuts things into consecutive parts of bounded size: gradients, parameters, a file's tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


def in_buckets(items: Iterable[T], size: Callable[[T], int], limit: int) -> list[list[T]]:
    """Items in their order, in as many parts as it takes.

    Args:
        items: What is cut.
        size: Of one item.
        limit: Of a part; an item that is larger has one to itself.
    """
    buckets: list[list[T]] = []
    room = 0
    for item in items:
        if not buckets or size(item) > room:
            buckets.append([])
            room = limit
        buckets[-1].append(item)
        room -= size(item)
    return buckets
