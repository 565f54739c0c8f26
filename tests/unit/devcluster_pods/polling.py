"""Waiting for what processes do, with a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import psutil

_Found = TypeVar("_Found")


async def until(condition: Callable[[], _Found], seconds: float = 10) -> _Found:
    """Polls until a condition holds; returns what it returned."""
    async with asyncio.timeout(seconds):
        while not (found := condition()):  # noqa: ASYNC110 - processes set no asyncio event
            await asyncio.sleep(0.01)
        return found


def text_of(path: Path) -> str:
    """What is written in a file so far; nothing if there is none."""
    return path.read_text().strip() if path.exists() else ""


def alive(pid: int) -> bool:
    """Whether a process runs."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
