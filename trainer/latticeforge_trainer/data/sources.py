"""A stage's data sources, found before they are brought: files, folders, Hub data sets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from latticeforge_trainer.artifacts import Store, sha256_of
from latticeforge_trainer.contract import DataSource, digest_of
from latticeforge_trainer.data.files import README, SUFFIXES, DataFile, Selection, is_data, walk
from latticeforge_trainer.data.slices import RowSlice, parse_split
from latticeforge_trainer.errors import UserError

if TYPE_CHECKING:
    from latticeforge_trainer.hub import Repository


@dataclass
class Source:
    """One data source at one revision.

    Attributes:
        spec: As its user wrote it.
        revision: Its commit, or a digest of its files' content.
        folder: Where its files lie, or will.
        repository: Where it comes from; None for local files.
        local: Its files, if it is local.
    """

    spec: DataSource
    revision: str
    folder: Path
    repository: Repository | None = None
    local: tuple[DataFile, ...] = ()

    @property
    def rows(self) -> RowSlice:
        """Which rows of the split are wanted.

        Raises:
            UserError: The slice is malformed.
        """
        return parse_split(self.spec.split, self.spec.source)[1]

    @cached_property
    def wanted(self) -> Mapping[str, int]:
        """The Hub's files to bring, with their sizes; empty for local files.

        Raises:
            UserError: The subset or split is not there, or there are no data files.
        """
        if self.repository is None:
            return {}
        sizes = self.repository.files()
        readme = None
        if README in sizes:
            self.repository.download({README: sizes[README]}, self.folder)
            readme = (self.folder / README).read_text(errors="replace")
        names = _selection(self.spec).pick(list(sizes), readme)
        return {name: sizes[name] for name in names}

    def bring(self, report: Callable[[int], None] = lambda _: None) -> list[DataFile]:
        """Bring the files, and list them in the order that numbers their samples."""
        if self.repository is None:
            return list(self.local)
        self.repository.download(self.wanted, self.folder, report)
        return [DataFile(self.folder / n, f"{self.spec.source}: {n}") for n in self.wanted]


def locate_source(spec: DataSource, store: Store) -> Source:
    """Find a data source and the revision it has now.

    Raises:
        UserError: It is not there or may not be read, or has no data files.
        NetworkError: The Hub does not answer.
    """
    path = local_path(spec.source, store)
    if path is None:
        return _from_hub(spec, store)
    try:
        if path.is_file():
            files = [_single(spec, path)]
        elif path.is_dir():
            files = _from_folder(spec, path)
        else:
            raise UserError(
                f"{spec.source}: there is no file or folder {path}; relative paths are relative "
                f"to the store's root, {store.root}"
            )
        contents = [[file.name, sha256_of(file.path)] for file in files]
    except OSError as error:
        raise UserError(f"{spec.source}: {error.strerror} ({error.filename})") from error
    return Source(spec, digest_of("data", contents), path, local=tuple(files))


def local_path(reference: str, store: Store) -> Path | None:
    """The local path that a source or a base names, or None for a Hub repository.

    Raises:
        UserError: It is no path at all, leads out of the store, or its links lead in a circle.
    """
    try:
        return store.resolve(reference)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{reference}: no usable path: {error}") from error


def _from_hub(spec: DataSource, store: Store) -> Source:
    from latticeforge_trainer.hub import Repository  # noqa: PLC0415  (only for Hub data sets)

    try:
        repository = Repository.resolve(spec.source, spec.revision, "dataset")
    except UserError as error:
        if (store.root / spec.source).exists():
            raise UserError(
                f"{error}; for the path below {store.root} write ./{spec.source}"
            ) from error
        raise
    folder = store.model_folder(digest_of("dataset", repository.id, repository.commit))
    return Source(spec, repository.commit, folder, repository)


def _single(spec: DataSource, path: Path) -> DataFile:
    if not is_data(path.name):
        raise UserError(f"{spec.source}: no data file; known are {', '.join(SUFFIXES)}")
    split, _ = parse_split(spec.split, spec.source)
    if spec.subset is not None or split != "train" or spec.files is not None:
        raise UserError(f"{spec.source}: a single file has neither subsets nor splits nor files")
    return DataFile(path, spec.source)


def _from_folder(spec: DataSource, folder: Path) -> list[DataFile]:
    readme = folder / README
    text = readme.read_text(errors="replace") if readme.is_file() else None
    names = _selection(spec).pick(list(walk(folder)), text)
    return [DataFile(folder / name, f"{spec.source.rstrip('/')}/{name}") for name in names]


def _selection(spec: DataSource) -> Selection:
    split, _ = parse_split(spec.split, spec.source)
    return Selection(spec.source, spec.subset, split, spec.files)
