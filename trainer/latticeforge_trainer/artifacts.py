"""The store: finished artifacts under their digests, complete or absent, never in between.

    <root>/.latticeforge/artifacts/<digest>/      files, and manifest.json written last
    <root>/.latticeforge/work/<digest>/           checkpoints of an unfinished step
    <root>/.latticeforge/models/<digest>/         base models downloaded from the Hub

`<root>` is the storage volume in a cluster and the working directory of `latticeforge run`;
relative paths in a spec are relative to it. An artifact exists exactly when its manifest has been
renamed into place, which happens after every file and folder has reached the disk: a kill, a crash
or a full disk at any instant leaves either a complete artifact or none.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from pydantic import Field, ValidationError

from latticeforge_trainer.contract import Contract, StepKind, StepResult
from latticeforge_trainer.errors import UserError

MANIFEST = "manifest.json"
_CHUNK = 1 << 22


class FileEntry(Contract):
    """One file of an artifact."""

    size: int
    """Bytes."""
    sha256: str


class Manifest(Contract):
    """What an artifact holds and what its step reported; present means complete."""

    digest: str
    kind: StepKind
    result: StepResult | None = None
    files: dict[str, FileEntry]
    """Relative POSIX path → size and hash."""
    extra: dict[str, Any] = Field(default_factory=dict)


class Store:
    """Artifacts below a root folder.

    Args:
        root: The storage volume, or the working directory of a local run.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self._home = self.root / ".latticeforge"

    def resolve(self, reference: str) -> Path | None:
        """The local path that a spec names, or None for a Hub repository.

        Args:
            reference: `file:///absolute`, `/absolute`, `./relative` to the root, or `owner/name`.

        Raises:
            UserError: A `file:` URL names another host, or a relative path leaves the root.
        """
        url = urlparse(reference)
        if url.scheme == "file":
            if url.netloc not in ("", "localhost"):
                raise UserError(f"{reference}: a file URL has three slashes: file:///folder")
            return Path(unquote(url.path))
        if reference.startswith("/"):
            return Path(reference)
        if reference.startswith(("./", "../")) or reference == ".":
            path = (self.root / reference).resolve()
            if not path.is_relative_to(self.root):
                raise UserError(
                    f"{reference}: relative paths stay below the store's root, {self.root}"
                )
            return path
        return None

    def relative(self, path: Path) -> str:
        """`path` as a config names it: `./relative` below the root, absolute elsewhere."""
        path = path.resolve()
        if path.is_relative_to(self.root):
            return f"./{path.relative_to(self.root).as_posix()}"
        return str(path)

    def work(self, digest: str) -> Path:
        """The folder for a step's unfinished state; made if missing."""
        path = self._home / "work" / digest
        path.mkdir(parents=True, exist_ok=True)
        return path

    def model_folder(self, digest: str) -> Path:
        """The folder that a downloaded base model lives in; made if missing."""
        path = self._home / "models" / digest
        path.mkdir(parents=True, exist_ok=True)
        return path

    def path(self, digest: str) -> Path:
        """Where the artifact lies, complete or not."""
        return self._home / "artifacts" / digest

    def manifest(self, digest: str) -> Manifest | None:
        """The manifest of a complete artifact; None when it is absent, partial or damaged.

        A file that is missing or of another size than the manifest says is damage; hashes are not
        computed here (see `verify`).
        """
        folder = self.path(digest)
        try:
            manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
            sizes = {name: (folder / name).stat().st_size for name in manifest.files}
        except (FileNotFoundError, NotADirectoryError, ValidationError):
            return None
        if any(sizes[name] != entry.size for name, entry in manifest.files.items()):
            return None
        return manifest

    def require(self, digest: str, what: str) -> Path:
        """The folder of a complete artifact.

        Raises:
            UserError: The artifact is absent or damaged.
        """
        if self.manifest(digest) is None:
            raise UserError(
                f"{what} ({digest[:12]}) is missing or damaged in the store {self.root}: "
                "was the volume replaced? Delete the StackedTraining and apply it again"
            )
        return self.path(digest)

    def verify(self, digest: str) -> list[str]:
        """The names of an artifact's files whose content differs from the manifest."""
        manifest = self.manifest(digest)
        if manifest is None:
            return [MANIFEST]
        folder = self.path(digest)
        return [n for n, entry in manifest.files.items() if sha256_of(folder / n) != entry.sha256]

    @contextmanager
    def create(self, digest: str) -> Iterator[Staging]:
        """A staging folder that becomes the artifact when the block ends after `Staging.seal`.

        Leftovers of an earlier attempt are removed first. Nothing is complete before `seal`.

        Raises:
            UserError: The disk is full.
        """
        folder = self.path(digest)
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        try:
            yield Staging(digest, folder)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise UserError(
                    f"no space left in the store {self.root}: free some, or enlarge storage.size"
                ) from error
            raise

    def forget_work(self, digest: str) -> None:
        """Remove a step's unfinished state, after its artifact is complete."""
        shutil.rmtree(self._home / "work" / digest, ignore_errors=True)


class Staging:
    """An artifact being written."""

    def __init__(self, digest: str, folder: Path) -> None:
        self.digest = digest
        self.folder = folder

    def seal(
        self, kind: StepKind, result: StepResult | None, extra: dict[str, Any] | None = None
    ) -> Manifest:
        """Hash and sync every file, then rename the manifest into place."""
        paths = sorted(p for p in self.folder.rglob("*") if p.is_file())
        files = {
            p.relative_to(self.folder).as_posix(): FileEntry(
                size=p.stat().st_size, sha256=sha256_of(p, sync=True)
            )
            for p in paths
        }
        manifest = Manifest(
            digest=self.digest, kind=kind, result=result, files=files, extra=extra or {}
        )
        for folder in {p.parent for p in paths}:
            sync_folder(folder)
        write_atomically(self.folder / MANIFEST, json.dumps(manifest.to_json(), indent=1).encode())
        sync_folder(self.folder.parent)
        return manifest


def sha256_of(path: Path, *, sync: bool = False) -> str:
    """The SHA-256 of a file's content in hexadecimal; `sync` makes it reach the disk first."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        if sync:
            os.fsync(file.fileno())
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file's content in one step: readers see the old or the new, never a part."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    sync_folder(path.parent)
