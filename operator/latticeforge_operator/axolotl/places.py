"""Where models and data lie: on the Hub, or in files and folders below the volume."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

READ = (".jsonl", ".ndjson", ".json", ".parquet")
"""Suffixes of the data files that the trainer reads."""

_UNREAD = (".csv", ".txt", ".arrow")
_LOADERS = ("json", "parquet", "csv", "text", "arrow")
"""What a data set's path says when its files are named beside it."""


def local_path(path: str) -> str:
    """A local path as the API has it: absolute, or `./` from the root of the volume."""
    return path if path.startswith(("/", "./")) else f"./{path}"


def model_reference(name: str) -> str:
    """A model's name as the API has it; one that no repository can have is a folder's path."""
    return local_path(name) if name.startswith((".", "/")) or name.count("/") > 1 else name


def is_readable(path: str) -> bool:
    """Whether data is read from there: not from other storage, nor of another kind."""
    return "://" not in path and PurePosixPath(path).suffix not in _UNREAD


def sources_of(path: str, files: Sequence[str]) -> list[dict[str, Any]]:
    """The `source` of each data set that a path stands for, with `files` on the Hub.

    Args:
        path: A repository, a file or a folder, or the kind of the files.
        files: Files of the repository; or local ones, each a data set.

    Returns:
        None of them when one cannot be read.
    """
    if not all(map(is_readable, (path, *files))):
        return []
    local = path.startswith((".", "/")) or PurePosixPath(path).suffix in READ
    if path in _LOADERS or (files and local):
        return [{"source": local_path(name)} for name in files]
    if local:
        return [{"source": local_path(path)}]
    return [{"source": path, **({"files": list(files)} if files else {})}]
