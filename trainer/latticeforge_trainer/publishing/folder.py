"""A folder as the destination: laid out as the Hub repository would be, replaced in one step.

The new content is staged beside the folder, reaches the disk, and is exchanged with the folder by
one rename: whoever looks, and whenever this process is killed, finds the old model or the new one.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import glob
import json
import os
import shutil
from pathlib import Path

from latticeforge_trainer.artifacts import sha256_of, sync_folder
from latticeforge_trainer.errors import UserError
from latticeforge_trainer.publishing.bundle import (
    RECORD,
    Bundle,
    Report,
    content_digest,
)

_LINKED = ".safetensors"
"""Weights are linked where blocks cannot be shared; what people edit by hand is copied."""

_RETIRED = "old"
_FICLONE = 0x40049409
"""ioctl that shares a file's blocks copy-on-write (linux/fs.h)."""
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
"""renameat2: swap two names in one step (linux/fs.h)."""
_UNSUPPORTED = {
    errno.ENOSYS,
    errno.EINVAL,
    errno.ENOTTY,
    errno.EOPNOTSUPP,
    errno.EXDEV,
    errno.EPERM,
}
"""How a file system says that it cannot share, link or exchange."""


class FolderDestination:
    """A local folder.

    Args:
        folder: Absolute; made if missing.
    """

    def __init__(self, folder: Path) -> None:
        # A link to a folder stays: what it leads to is replaced.
        self.folder = folder.resolve()
        self.url = self.folder.as_uri()
        self.reference = str(self.folder)

    def holds(self, commit: str) -> bool:
        """Whether the folder's files are still those that were published as `commit`."""
        names = self._recorded()
        if names is None or not all((self.folder / name).is_file() for name in names):
            return False
        return content_digest({name: sha256_of(self.folder / name) for name in names}) == commit

    def publish(self, bundle: Bundle, digest: str, report: Report) -> tuple[str, bool]:
        """Make the folder equal to the bundle; files that someone added to it stay.

        Args:
            bundle: What the folder will hold.
            digest: The publish step's digest: names the staging folder.
            report: Told what is being written.

        Returns:
            The content digest, and whether it was written just now.

        Raises:
            UserError: The folder holds something else, cannot be written, or the disk is full.
        """
        try:
            self._recover()
            self._require_ours()
            if self.holds(bundle.digest):
                return bundle.digest, False
            self._swap(self._stage(bundle, digest, report))
        except OSError as error:
            raise UserError(
                f"publish.repository {self.folder}: {error.strerror}: make room, or name a folder "
                "that can be written"
            ) from error
        return bundle.digest, True

    def _recorded(self) -> set[str] | None:
        """The files that we published there; None when the folder is not ours."""
        try:
            return {RECORD, *json.loads((self.folder / RECORD).read_bytes())["files"]}
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _require_ours(self) -> None:
        if not self.folder.exists() or self._recorded() is not None:
            return
        if not self.folder.is_dir() or any(self.folder.iterdir()):
            raise UserError(
                f"publish.repository {self.folder} holds something that LatticeForge did not "
                "publish; nothing was changed: name another folder, or empty this one"
            )

    def _stage(self, bundle: Bundle, digest: str, report: Report) -> Path:
        """The new content in a folder of its own, on the disk."""
        staging = self._sibling(digest[:12])
        staging.mkdir(parents=True)
        done, total = 0, bundle.bytes
        for name, file in sorted(bundle.files.items()):
            report(f"writing {name}", done / total)
            _place(file.path, staging / name)
            done += file.size
        for name in self._added() - bundle.files.keys():
            _place(self.folder / name, staging / name)
        for folder in [staging, *(path for path in staging.rglob("*") if path.is_dir())]:
            sync_folder(folder)
        return staging

    def _added(self) -> set[str]:
        """Files that are in the folder, but not by us."""
        present = (path for path in self.folder.rglob("*") if path.is_file())
        names = {path.relative_to(self.folder).as_posix() for path in present}
        return names - (self._recorded() or set())

    def _swap(self, staging: Path) -> None:
        if not self.folder.exists() or not _exchanged(staging, self.folder):
            if self.folder.exists():
                # Without an exchange there is an instant with neither; `_recover` ends it.
                self.folder.rename(self._sibling(_RETIRED))
            staging.rename(self.folder)
        sync_folder(self.folder.parent)
        self._remove_siblings()

    def _recover(self) -> None:
        """End what a kill interrupted: bring back the old folder, remove what was staged."""
        retired = self._sibling(_RETIRED)
        if retired.exists() and not self.folder.exists():
            retired.rename(self.folder)
        self._remove_siblings()

    def _sibling(self, suffix: str) -> Path:
        return self.folder.with_name(f".{self.folder.name}.latticeforge-{suffix}")

    def _remove_siblings(self) -> None:
        for leftover in self.folder.parent.glob(f"{glob.escape(self._sibling('').name)}*"):
            shutil.rmtree(leftover)


def _place(source: Path, target: Path) -> None:
    """Put a file's content at `target` in the cheapest way that is safe, and on the disk."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if _cloned(source, target):
        return
    if target.suffix == _LINKED and _linked(source, target):
        return
    shutil.copyfile(source, target)
    with target.open("rb") as copy:
        os.fsync(copy.fileno())


def _cloned(source: Path, target: Path) -> bool:
    """Share the blocks copy-on-write, if the file system can."""
    with source.open("rb") as old, target.open("wb") as new:
        try:
            fcntl.ioctl(new.fileno(), _FICLONE, old.fileno())
        except OSError as error:
            return _impossible(error)
        os.fsync(new.fileno())
    return True


def _linked(source: Path, target: Path) -> bool:
    """Give the same file a second name, read-only: writing to it would change the store."""
    target.unlink(missing_ok=True)
    try:
        target.hardlink_to(source)
        target.chmod(0o444)
    except OSError as error:
        target.unlink(missing_ok=True)
        return _impossible(error)
    return True


def _exchanged(one: Path, other: Path) -> bool:
    """Swap two names in one step, if kernel and file system can."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        return False
    arguments = (_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    if renameat2(*arguments) == 0:
        return True
    number = ctypes.get_errno()
    return _impossible(OSError(number, os.strerror(number)))


def _impossible(error: OSError) -> bool:
    """False when the file system cannot do it; any other error is raised."""
    if error.errno not in _UNSUPPORTED:
        raise error
    return False
