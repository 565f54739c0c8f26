"""The shares of a checkpoint: every process writes its own, and the first puts them together.

    .step-00000020.partial/
        share-00003/                 the fourth process's files
            training-state-*.safetensors
            written.json             their sizes and hashes, once they are on the disk

They meet on the storage that they share, in threads beside training, so no step waits for a share.
"""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path
from typing import Any

from latticeforge_trainer.artifacts import write_atomically
from latticeforge_trainer.training.process import World

log = logging.getLogger(__name__)

Entries = dict[str, dict[str, Any]]
"""Files' sizes and hashes: `FileEntry`, by name, as JSON has them."""

PREFIX = "share-"

WRITTEN = "written.json"

POLL = 0.2
"""Seconds between two looks for a share."""


def share_of(folder: Path, rank: int) -> Path:
    """Where a process's share of a checkpoint lies."""
    return folder / f"{PREFIX}{rank:05d}"


def has_shares(folder: Path) -> bool:
    """Whether a checkpoint was written in shares."""
    return any(folder.glob(f"{PREFIX}*"))


def to_check(files: list[Path], world: World) -> list[Path]:
    """A checkpoint's files that this process hashes: those of its share, which it reads anyway."""
    return [
        path
        for number, path in enumerate(files)
        if _reader(path.parent.name, number) % world.size == world.rank
    ]


def leave(share: Path, entries: Entries) -> None:
    """Say that a share's files are on the disk."""
    write_atomically(share / WRITTEN, json.dumps(entries).encode())


def collect(folder: Path, processes: int, given_up: threading.Event) -> Entries | None:
    """Wait until every process has left its share, and take what they left aside.

    Args:
        folder: The checkpoint's, as it is being written.
        processes: How many write a share; network storage may show a file late.
        given_up: Ends the wait.

    Returns:
        All shares' files, by their names in the checkpoint; None: it was given up.
    """
    entries: Entries = {}
    for rank in range(processes):
        share = share_of(folder, rank)
        left = share / WRITTEN
        while not left.exists():
            if given_up.wait(POLL):
                log.warning("the checkpoint is given up: %s is missing", share.name)
                return None
        entries |= {f"{share.name}/{n}": e for n, e in json.loads(left.read_bytes()).items()}
        left.unlink()
    return entries


def _reader(folder: str, number: int) -> int:
    return int(folder.removeprefix(PREFIX)) if folder.startswith(PREFIX) else number
