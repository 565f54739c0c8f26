"""Container logs: one file per run, read from any line and followed while the container runs."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import AsyncIterator, Callable
from pathlib import Path

_CHUNK = 64 * 1024
_FOLLOW_SECONDS = 0.1
# As much as Kubernetes keeps of a log as a container's termination message.
_MESSAGE_BYTES = 2048
_MESSAGE_LINES = 80


def log_path(container: Path, run: int) -> Path:
    """The log file of a container's n-th run, counted from 0."""
    return container / f"{run}.log"


def latest_log(container: Path) -> Path | None:
    """The log of a container's present or last run; None before the first."""
    runs = sorted(container.glob("*.log"), key=lambda path: int(path.stem))
    return runs[-1] if runs else None


async def read(
    path: Path, *, tail_lines: int | None, follow: Callable[[], bool]
) -> AsyncIterator[bytes]:
    """Yields a log.

    Args:
        path: the file.
        tail_lines: how many of the lines written so far to begin with; None for all.
        follow: whether the container still runs, so that more may come.
    """
    with path.open("rb") as log:
        if tail_lines is not None:
            log.seek(_tail_offset(path, tail_lines))
        while True:
            # Asked before reading: what is written until the end is read in the last round.
            more = follow()
            while chunk := log.read(_CHUNK):
                yield chunk
            if not more:
                return
            await asyncio.sleep(_FOLLOW_SECONDS)


def _tail_offset(path: Path, lines: int) -> int:
    starts: deque[int] = deque(maxlen=lines + 1)
    position = 0
    with path.open("rb") as log:
        for line in log:
            starts.append(position)
            position += len(line)
    if lines == 0 or not starts:
        return position
    return starts[0] if len(starts) <= lines else starts[1]


def last_words(path: Path) -> str:
    """The end of a log, as a termination message: at most 80 lines and 2048 bytes."""
    with path.open("rb") as log:
        size = log.seek(0, os.SEEK_END)
        log.seek(max(0, size - _MESSAGE_BYTES))
        text = log.read().decode(errors="replace")
    return "".join(text.splitlines(keepends=True)[-_MESSAGE_LINES:])
