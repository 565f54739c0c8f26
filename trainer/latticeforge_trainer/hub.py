"""The Hub as a source: revisions, file lists, weight headers and downloads that survive faults.

What the client raises is translated once, here: into a `UserError`, which trying again cannot mend,
or into a fault that is tried again with back-off and ends as a `NetworkError`. The token is the one
in `HF_TOKEN`; public repositories need none.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import httpx2
from huggingface_hub import HfApi, constants, get_session
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    SafetensorsParsingError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.tqdm import disable_progress_bars

from latticeforge_trainer.errors import StepError, UserError
from latticeforge_trainer.models.headers import Header, TensorInfo
from latticeforge_trainer.publishing.failures import Transient, patiently

T = TypeVar("T")

TOKEN = "HF_TOKEN"  # noqa: S105  (the variable's name, not a token)
WORKERS = 4
"""Files fetched at a time: enough for HTTP; Xet parallelizes within a file as well."""

DOWNLOAD = "hub-download"
"""The name of the threads that fetch files."""

_POLL_SECONDS = 0.2
_TIMEOUT = httpx2.Timeout(30, pool=None)
"""Seconds without an answer; the client's own default is to wait for ever."""


@dataclass(frozen=True)
class Repository:
    """A Hub repository at one commit.

    Attributes:
        id: `owner/name`.
        commit: Forty hexadecimal digits.
        kind: What it holds.
    """

    id: str
    commit: str
    kind: Literal["model", "dataset"] = "model"

    @classmethod
    def resolve(
        cls, repo_id: str, revision: str, kind: Literal["model", "dataset"] = "model"
    ) -> Repository:
        """Find the commit that a branch, tag or hash names now.

        Raises:
            UserError: There is no such repository or revision, or the token may not read it.
            NetworkError: The Hub does not answer.
        """
        named = cls(repo_id, revision, kind)
        info = named._call(lambda api: api.repo_info(repo_id, revision=revision, repo_type=kind))
        return cls(repo_id, str(info.sha), kind)

    def files(self) -> dict[str, int]:
        """Every file's path and size in bytes."""
        entries = self._call(
            lambda api: list(
                api.list_repo_tree(
                    self.id, recursive=True, revision=self.commit, repo_type=self.kind
                )
            )
        )
        return {entry.path: entry.size for entry in entries if isinstance(entry, RepoFile)}

    def header(self, path: str) -> Header:
        """The tensors of a safetensors file, without downloading it.

        Raises:
            UserError: It is no safetensors file.
        """
        try:
            metadata = self._call(
                lambda api: api.parse_safetensors_file_metadata(
                    self.id, path, revision=self.commit, repo_type=self.kind
                )
            )
        except SafetensorsParsingError as error:
            raise UserError(f"{self.id}: {path} is no valid safetensors file") from error
        return {
            name: TensorInfo(tensor.dtype, tuple(tensor.shape))
            for name, tensor in metadata.tensors.items()
        }

    def download(
        self,
        files: Mapping[str, int],
        folder: Path,
        report: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Bring files into a folder; those that are there already, whole, are left alone.

        A file appears under its name only when it is complete, so an interrupted download goes on
        with the next file. Broken connections are resumed within a file.

        Args:
            files: Paths and sizes, as from `files`.
            folder: Of this commit only.
            report: Called now and then with the bytes that are there.

        Raises:
            UserError: The disk is full, or the token may not read a file.
            NetworkError: The Hub failed for longer than our retries last.
        """
        disable_progress_bars()
        missing = deque(path for path, size in files.items() if not is_whole(folder / path, size))
        here = sum(size for path, size in files.items() if path not in missing)
        over = threading.Event()

        def fetch(path: str) -> None:
            self._call(
                lambda api: api.hf_hub_download(
                    self.id, path, revision=self.commit, repo_type=self.kind, local_dir=folder
                ),
                over,
            )
            if not is_whole(folder / path, files[path]):
                raise UserError(f"{self.id}: {path} is not as large as the Hub says: try again")

        wanted = dict.fromkeys(missing)
        try:
            for _ in _in_threads(fetch, missing, over):
                report(here + _bytes_here(folder, {path: files[path] for path in wanted}))
        finally:
            over.set()

    def _call(self, request: Callable[[HfApi], T], over: threading.Event | None = None) -> T:
        """Make a request, again if it fails in a way that passes, until `over` is set."""

        def guarded() -> T:
            with _translated(self):
                return request(client())

        return patiently(over)(guarded)


def client() -> HfApi:
    """The client, with the endpoint and token of the environment as it is now."""
    token = os.environ.get(TOKEN) or False
    get_session().timeout = _TIMEOUT
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT") or constants.ENDPOINT, token=token)


def is_whole(path: Path, size: int) -> bool:
    """Whether a file is there with its full size."""
    return path.is_file() and path.stat().st_size == size


def _bytes_here(folder: Path, files: Mapping[str, int]) -> int:
    whole = sum(size for path, size in files.items() if is_whole(folder / path, size))
    partial = 0
    for path in (folder / ".cache" / "huggingface" / "download").rglob("*.incomplete"):
        try:
            partial += path.stat().st_size
        except FileNotFoundError:  # just renamed into place
            continue
    return whole + partial


def _in_threads(
    work: Callable[[str], None], items: deque[str], over: threading.Event
) -> Iterator[None]:
    """Work through items in daemon threads, yielding now and then; raises their first error.

    Daemons, because an interrupted step ends at once instead of waiting for a file of gigabytes.
    None of them begins another item once `over` is set.
    """
    errors: list[BaseException] = []

    def loop() -> None:
        while items and not over.is_set():
            try:
                item = items.popleft()
            except IndexError:
                return
            try:
                work(item)
            except BaseException as error:  # noqa: BLE001  (raised again in the main thread)
                errors.append(error)
                over.set()

    threads = [
        threading.Thread(target=loop, name=DOWNLOAD, daemon=True)
        for _ in range(min(WORKERS, len(items)))
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads) and not errors:
        threads[0].join(_POLL_SECONDS)
        yield
    if errors:
        raise errors[0]


# --- destinations ------------------------------------------------------------------------------


def check_destination(repo_id: str) -> None:
    """Check that the token may publish to a model repository, without writing anything.

    Raises:
        UserError: There is no token, or it may not write there.
        NetworkError: The Hub does not answer.
    """
    if not os.environ.get(TOKEN):
        raise UserError(
            f"publishing to {repo_id} needs a token with write access: name its Secret in "
            f"publish.tokenSecret ({TOKEN} is not set)"
        )
    target = Repository(repo_id, "main")
    user = target._call(lambda api: api.whoami())  # noqa: SLF001  (same module)
    access = user.get("auth", {}).get("accessToken", {})
    if access.get("role") == "read":
        raise UserError(f"the token in {TOKEN} may only read: publishing needs one that may write")
    if not _exists_writable(target):
        _check_creation(repo_id, user, access)


def _exists_writable(target: Repository) -> bool:
    """Whether the repository exists; an error if it does and may not be written to."""

    def check(api: HfApi) -> bool:
        try:
            api.auth_check(target.id, write=True)
        except RepositoryNotFoundError:
            return False
        except HfHubHTTPError as error:
            if error.response.status_code == 403:
                raise UserError(f"the token in {TOKEN} may not write to {target.id}") from error
            raise
        return True

    return target._call(check)  # noqa: SLF001  (same module)


def _check_creation(repo_id: str, user: dict[str, Any], access: dict[str, Any]) -> None:
    owner = repo_id.partition("/")[0]
    own = [user.get("name"), *(org.get("name") for org in user.get("orgs", []))]
    if owner not in own:
        raise UserError(
            f"{repo_id} does not exist, and the token in {TOKEN} belongs to {user.get('name')}, "
            f"who may not create repositories of {owner}"
        )
    if access.get("role") != "fineGrained":
        return
    scoped = access.get("fineGrained", {}).get("scoped", [])
    granted = [s for s in scoped if s.get("entity", {}).get("name") == owner]
    if not any("repo.write" in scope.get("permissions", []) for scope in granted):
        raise UserError(
            f"{repo_id} does not exist, and the fine-grained token in {TOKEN} may not create "
            f"repositories of {owner}"
        )


# --- errors ------------------------------------------------------------------------------------


@contextmanager
def _translated(repository: Repository) -> Iterator[None]:
    """Raise what the client raises as a `UserError`, or as `Transient` to be tried again."""
    try:
        yield
    except StepError:
        raise
    except SafetensorsParsingError:
        raise
    except HFValidationError as error:
        raise UserError(
            f"{repository.id}: neither a Hub repository (owner/name) nor a path "
            "(./folder below the store's root, or /folder)"
        ) from error
    # RuntimeError: Xet's transfers, and a client that another thread has closed after a fault.
    except (HfHubHTTPError, httpx2.HTTPError, OSError, RuntimeError) as error:
        raise _meaning(error, repository) from error


def _meaning(error: BaseException, repository: Repository) -> BaseException:
    name = f"Hub {repository.kind} {repository.id}"
    if isinstance(error, OfflineModeIsEnabled):
        return UserError(f"{name} is needed, but HF_HUB_OFFLINE forbids to ask for it")
    if isinstance(error, LocalEntryNotFoundError):
        cause = error.__cause__
        return _meaning(cause, repository) if cause else Transient(f"{name}: no answer")
    if isinstance(error, HfHubHTTPError):
        return _answer(error, name, repository)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"no space left for {name}: free some, or enlarge storage.size")
    # An OSError without a number is the client's own consistency check of a download.
    passing = httpx2.HTTPError | ConnectionError | TimeoutError | RuntimeError
    if isinstance(error, passing) or getattr(error, "errno", 0) is None:
        return Transient(f"{name}: no answer from the Hub ({type(error).__name__})")
    return error


def _answer(error: HfHubHTTPError, name: str, repository: Repository) -> StepError:
    status = error.response.status_code
    if status in (408, 429) or status >= 500:
        after = error.response.headers.get("Retry-After", "")
        return Transient(
            f"{name}: the Hub answers {status}", float(after) if after.isdigit() else None
        )
    if isinstance(error, RevisionNotFoundError):
        return UserError(f"{name} has no revision '{repository.commit}'")
    token = (
        f"the token in {TOKEN} may not see it" if os.environ.get(TOKEN) else f"{TOKEN} is not set"
    )
    if isinstance(error, GatedRepoError):
        return UserError(
            f"{name} is gated and {token}: accept its terms on its page and use your own token"
        )
    if isinstance(error, RepositoryNotFoundError):
        return UserError(f"{name} was not found: check the name; if it is private, {token}")
    if status in (401, 403):
        return UserError(
            f"the Hub refuses to show {name} to the token in {TOKEN} (status {status})"
        )
    return UserError(f"{name}: the Hub refuses the request (status {status})")
