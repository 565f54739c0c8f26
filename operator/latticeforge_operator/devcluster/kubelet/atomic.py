"""Folders whose files change all at once, as kubelet's AtomicWriter makes them.

`folder/key` is a link to `..data/key`, and `..data` is a link to a folder of one version. A new
version is written beside the old one, and the link swapped: a reader sees the old files or the new.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

_CURRENT = "..data"
_NEXT = "..data_next"


def write_payload(folder: Path, payload: Mapping[str, bytes], mode: int) -> None:
    """Makes `folder` show exactly these files.

    Args:
        folder: created when missing.
        payload: contents by relative path.
        mode: permission bits of each file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    current = folder / _CURRENT
    before = current.resolve() if current.is_symlink() else None
    if before is not None and _read(before) == dict(payload):
        return
    version = Path(tempfile.mkdtemp(prefix="..", dir=folder))
    version.chmod(0o755)
    for name, content in payload.items():
        file = version / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        file.chmod(mode)
    upcoming = folder / _NEXT
    upcoming.unlink(missing_ok=True)
    upcoming.symlink_to(version.name)
    upcoming.replace(current)
    _link_entries(folder, {Path(name).parts[0] for name in payload})
    if before is not None:
        shutil.rmtree(before)


def _read(version: Path) -> dict[str, bytes]:
    found = {}
    for root, _, names in os.walk(version):
        for name in names:
            file = Path(root) / name
            found[file.relative_to(version).as_posix()] = file.read_bytes()
    return found


def _link_entries(folder: Path, entries: set[str]) -> None:
    for link in folder.iterdir():
        if not link.name.startswith("..") and link.name not in entries:
            link.unlink()
    for name in entries:
        link = folder / name
        if not link.is_symlink():
            link.symlink_to(f"{_CURRENT}/{name}")
