"""The Hub as a destination: make a repository's `main` equal to a bundle, in one commit.

The head is compared with the bundle first, and again before every try, so it does not matter where
an earlier attempt ended: blobs that the Hub has are not sent again, and a commit whose answer was
lost is found instead of repeated. `parent_commit` is pinned: of two commits made from one head the
Hub takes one.
"""

from __future__ import annotations

import io
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeVar

import httpx2
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    get_session,
    set_client_factory,
)
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.sha import git_hash
from huggingface_hub.utils.tqdm import disable_progress_bars

from latticeforge_trainer.errors import UserError
from latticeforge_trainer.publishing.bundle import (
    ADAPTER_CONFIG,
    CURVE,
    TOKENIZER_FILES,
    Bundle,
    BundleFile,
    Report,
)
from latticeforge_trainer.publishing.failures import Transient, patiently, translated

T = TypeVar("T")

TIMEOUT = httpx2.Timeout(connect=10, read=120, write=120, pool=None)
"""Seconds; the client's own default is to wait for ever. A commit of many files takes a while."""

_SENT_AHEAD = 1 << 20
"""Bytes from which a file is sent before the commit, on its own and with progress."""

_OF_A_MODEL = (
    "*.safetensors",
    "*.safetensors.index.json",
    "pytorch_model*",
    "config.json",
    "generation_config.json",
    ADAPTER_CONFIG,
    CURVE,
    *TOKENIZER_FILES,
)
"""Top-level files of an earlier model, which must not stay beside this one: a loader would mix the
two. What else lies in a repository (licence, quantized copies, pictures) is its owner's."""


@dataclass(frozen=True)
class Changes:
    """What separates a commit from a bundle."""

    head: str
    add: dict[str, BundleFile]
    delete: list[str]

    def __bool__(self) -> bool:
        return bool(self.add or self.delete)


class HubDestination:
    """A model repository.

    Args:
        repository: `owner/name`.
        token_env: The variable that holds the token.
        private: What the repository must be, or be made.

    Raises:
        UserError: The name is no `owner/name`, or there is no token.
    """

    def __init__(self, repository: str, token_env: str, *, private: bool) -> None:
        self.repository, self._token_env, self._private = repository, token_env, private
        if repository.count("/") != 1:
            raise UserError(f"publish.repository {repository}: expected owner/name")
        token = os.environ.get(token_env)
        if not token:
            raise UserError(
                f"{token_env} is not set, so nothing can be published to {repository}: name a "
                "Secret with a write token in publish.tokenSecret"
            )
        endpoint = os.environ.get("HF_ENDPOINT", constants.ENDPOINT).rstrip("/")
        self.url = f"{endpoint}/{repository}"
        self.reference = repository
        self._api = HfApi(endpoint=endpoint, token=token, library_name="latticeforge")
        set_client_factory(_client_factory())
        disable_progress_bars()
        # What these log of a request is its address, which is signed when it leads to storage.
        for name in ("huggingface_hub", "httpx2"):
            logging.getLogger(name).setLevel(logging.ERROR)

    def holds(self, commit: str) -> bool:
        """Whether a commit is still in the repository."""
        try:
            self._patient(lambda: self._api.repo_info(self.repository, revision=commit))
        except UserError as error:
            if isinstance(error.__cause__, RepositoryNotFoundError | RevisionNotFoundError):
                return False
            raise
        return True

    def publish(self, bundle: Bundle, digest: str, report: Report) -> tuple[str, bool]:
        """Make `main` equal to the bundle, and check that it is.

        Args:
            bundle: What the repository will hold.
            digest: The publish step's digest, for the commit message.
            report: Told what is being sent.

        Returns:
            The commit, and whether it was made just now.

        Raises:
            UserError: The Hub refuses; the message says what to do.
            NetworkError: The Hub fails for longer than patience lasts.
        """
        self._ensure_repository()
        changes = self._patient(lambda: self._changes(bundle))
        if not changes:
            return changes.head, False
        self._send_ahead(changes.add, report)
        report("committing", 1.0)
        commit = self._patient(lambda: self._commit(bundle, digest))
        report("checking what the Hub holds", 1.0)
        self._patient(lambda: self._verify(bundle, commit))
        return commit, True

    def _ensure_repository(self) -> None:
        try:
            info = self._patient(lambda: self._api.repo_info(self.repository))
        except UserError as error:
            if not isinstance(error.__cause__, RepositoryNotFoundError):
                raise
            self._patient(
                lambda: self._api.create_repo(self.repository, private=self._private, exist_ok=True)
            )
            return
        if self._private and not info.private:
            raise UserError(
                f"{self.repository} is public, but publish.private is true: make it private in "
                f"its settings, or set publish.private: false"
            )

    def _changes(self, bundle: Bundle, revision: str | None = None) -> Changes:
        """What separates a revision, by default the head of `main`, from the bundle."""
        head = self._api.repo_info(self.repository, revision=revision).sha
        if head is None:
            raise Transient(f"{self.repository}: the Hub names no head commit")
        tree = self._api.list_repo_tree(self.repository, revision=head, recursive=True)
        present = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
        return Changes(
            head=head,
            add={n: f for n, f in bundle.files.items() if not _same(f, present.get(n))},
            delete=[n for n in present if n not in bundle.files and _belongs_to_a_model(n)],
        )

    def _send_ahead(self, files: dict[str, BundleFile], report: Report) -> None:
        large = {n: f for n, f in files.items() if f.size >= _SENT_AHEAD}
        meter = _Meter(sum(file.size for file in large.values()), report)
        for name, file in sorted(large.items()):
            addition = _addition(name, file, partial(meter.sent, name))
            self._patient(partial(self._send, addition))
            meter.finished(file.size)

    def _send(self, addition: CommitOperationAdd) -> None:
        self._api.preupload_lfs_files(self.repository, [addition], num_threads=1)

    def _commit(self, bundle: Bundle, digest: str) -> str:
        """Commit what still differs; nothing, when an earlier try did it unheard."""
        changes = self._changes(bundle)
        if not changes:
            return changes.head
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            _addition(name, file) for name, file in changes.add.items()
        ]
        operations += [CommitOperationDelete(name, is_folder=False) for name in changes.delete]
        info = self._api.create_commit(
            self.repository,
            operations,
            commit_message=f"Publish with LatticeForge\n\nLatticeForge-Digest: {digest}",
            parent_commit=changes.head,
        )
        return info.oid

    def _verify(self, bundle: Bundle, commit: str) -> None:
        changes = self._changes(bundle, commit)
        if changes:
            wrong = ", ".join(sorted([*changes.add, *changes.delete]))
            raise Transient(f"{self.repository} at {commit[:12]} is not what was sent: {wrong}")

    def _patient(self, call: Callable[[], T]) -> T:
        """The result of a call to the Hub that may be made again."""

        def guarded() -> T:
            with translated(self.repository, self._token_env):
                return call()

        return patiently()(guarded)


def _client_factory() -> Callable[[], httpx2.Client]:
    """Makes clients like the library's own, whose hooks keep `HF_HUB_OFFLINE`, but with TIMEOUT."""
    hooks = get_session().event_hooks
    return lambda: httpx2.Client(event_hooks=hooks, follow_redirects=True, timeout=TIMEOUT)


def _same(file: BundleFile, entry: RepoFile | None) -> bool:
    """Whether the Hub holds this content: by SHA-256 where it is LFS, by git's hash elsewhere."""
    if entry is None or entry.size != file.size:
        return False
    if entry.lfs is not None:
        return entry.lfs.sha256 == file.sha256
    return entry.blob_id == git_hash(file.path.read_bytes())


def _belongs_to_a_model(name: str) -> bool:
    return "/" not in name and any(fnmatchcase(name, pattern) for pattern in _OF_A_MODEL)


class _Meter:
    """Bytes sent ahead of the commit, as progress."""

    def __init__(self, total: int, report: Report) -> None:
        self._total, self._report = total, report
        self._finished = 0
        self._started = time.monotonic()

    def sent(self, name: str, count: int) -> None:
        """Report that `count` bytes of the current file have gone out."""
        done = self._finished + count
        speed = done / max(time.monotonic() - self._started, 1e-3)
        message = f"uploading {name}: {done / 1e9:.2f} of {self._total / 1e9:.2f} GB"
        left = (self._total - done) / max(speed, 1.0)
        self._report(message, min(done / self._total, 1.0), eta_seconds=left)

    def finished(self, size: int) -> None:
        """A file is on the Hub, sent now or found there."""
        self._finished += size


class _Watched(io.BufferedReader):
    """A file that tells how far it has been read: streamed, so its size does not matter."""

    def __init__(self, path: Path, on_position: Callable[[int], None]) -> None:
        super().__init__(io.FileIO(path))
        self._on_position = on_position

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self._on_position(self.tell())
        return data


class _WatchedAdd(CommitOperationAdd):
    """An addition whose upload is watched; the client reads files through `as_file`."""

    on_position: Callable[[int], None]

    @contextmanager
    def as_file(self, with_tqdm: bool = False) -> Iterator[BinaryIO]:  # noqa: ARG002  (the client's signature)
        with _Watched(Path(str(self.path_or_fileobj)), self.on_position) as file:
            yield file


def _addition(
    name: str, file: BundleFile, on_position: Callable[[int], None] = lambda _: None
) -> CommitOperationAdd:
    addition = _WatchedAdd(name, str(file.path))
    addition.on_position = on_position
    # Checked against the content just before: the client need not read the file once more.
    addition.upload_info.sha256 = bytes.fromhex(file.sha256)
    return addition
