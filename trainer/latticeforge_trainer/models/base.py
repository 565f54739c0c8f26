"""A stage's base model, found before it is brought: a local folder, or a Hub repository.

Its small files (config, tokenizer, README) come first, so that everything that can be refused is
refused before gigabytes move. Code and pickled weights are never brought at all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from latticeforge_trainer.artifacts import Store, sha256_of
from latticeforge_trainer.contract import ModelSource, digest_of
from latticeforge_trainer.data.files import README
from latticeforge_trainer.data.sources import local_path
from latticeforge_trainer.errors import UserError
from latticeforge_trainer.models.facts import weight_files
from latticeforge_trainer.models.headers import Header, header_bytes, read_header

if TYPE_CHECKING:
    from latticeforge_trainer.hub import Repository

_SMALL = (".json", ".jinja", ".txt", ".model")


@dataclass
class Base:
    """A base model.

    Attributes:
        name: What messages call it.
        revision: Its commit, or a fingerprint of its folder.
        folder: Where it lies, or will.
        repository: Where it comes from; None for a local folder.
    """

    name: str
    revision: str
    folder: Path
    repository: Repository | None = None
    _brought: dict[str, int] = field(default_factory=dict)

    @cached_property
    def files(self) -> Mapping[str, int]:
        """Every file and its size in bytes."""
        if self.repository:
            return self.repository.files()
        return {p.name: p.stat().st_size for p in self.folder.iterdir() if p.is_file()}

    @cached_property
    def weights(self) -> Mapping[str, int]:
        """The weight files and their sizes; the small files must have been brought."""
        names = weight_files(self.folder, list(self.files), self.name)
        return {name: self.files[name] for name in names}

    def header(self) -> Header:
        """All tensors of the weights, without bringing them."""
        read = self.repository.header if self.repository else self._read
        return {k: info for name in self.weights for k, info in read(name).items()}

    def bring_small(self) -> None:
        """Bring config, tokenizer and README."""
        if self.repository:
            self.repository.download(self.small, self.folder)

    def bring_weights(self, report: Callable[[int], None]) -> None:
        """Bring the weights; `report` is called with the bytes that are there."""
        if self.repository:
            self.repository.download(self.weights, self.folder, report)

    @property
    def small(self) -> Mapping[str, int]:
        """The files beside the weights that a model needs, and their sizes."""
        return {name: size for name, size in self.files.items() if is_small(name)}

    def missing_bytes(self) -> int:
        """Bytes of the weights that are still to be brought."""
        present = self.folder
        return sum(size for name, size in self.weights.items() if not (present / name).is_file())

    def _read(self, name: str) -> Header:
        return read_header(self.folder / name)


def is_small(name: str) -> bool:
    """Whether a model's file is config, tokenizer or documentation at the top level."""
    path = PurePosixPath(name)
    wanted = path.suffix in _SMALL or path.name == README or path.name.startswith("LICENSE")
    return wanted and len(path.parts) == 1 and not path.name.startswith(".")


def locate_base(source: ModelSource, store: Store) -> Base:
    """Find a base model and the revision it has now.

    Raises:
        UserError: There is none, or it may not be read.
        NetworkError: The Hub does not answer.
    """
    folder = local_path(source.model, store)
    if folder is None:
        from latticeforge_trainer.hub import Repository  # noqa: PLC0415  (only for Hub models)

        repository = Repository.resolve(source.model, source.revision)
        home = store.model_folder(digest_of("model", repository.id, repository.commit))
        return Base(source.model, repository.commit, home, repository)
    try:
        if not folder.is_dir():
            raise UserError(
                f"{source.model}: there is no such folder, {folder}; relative paths are relative "
                f"to the store's root, {store.root}"
            )
        return Base(source.model, fingerprint(folder), folder)
    except OSError as error:
        raise UserError(f"{source.model}: {error.strerror} ({error.filename})") from error


def fingerprint(folder: Path) -> str:
    """A digest of a local model that changes when the model does, without reading its weights.

    Small files count with their content, weight files with name, size, header and time of change.
    """
    parts: list[list[object]] = []
    for path in sorted(folder.iterdir()):
        if not path.is_file():
            continue
        if path.suffix in _SMALL:
            parts.append([path.name, sha256_of(path)])
        elif path.suffix == ".safetensors":
            stat = path.stat()
            parts.append([path.name, stat.st_size, stat.st_mtime_ns, _header_digest(path)])
    return digest_of("model", parts)


def _header_digest(path: Path) -> str:
    try:
        return hashlib.sha256(header_bytes(path)).hexdigest()
    except ValueError as error:
        raise UserError(f"{path}: no valid safetensors file") from error
