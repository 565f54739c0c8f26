"""A destination folder holds the old model or the new one, at whatever instant one looks."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from latticeforge_trainer.artifacts import sha256_of
from latticeforge_trainer.errors import UserError
from latticeforge_trainer.publishing import folder as folder_module
from latticeforge_trainer.publishing.bundle import RECORD, Bundle, BundleFile
from latticeforge_trainer.publishing.folder import FolderDestination

WATCHED = {"open", "os.chmod", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir"}
WATCHED |= {"shutil.copyfile", "shutil.rmtree", "ctypes.dlsym"}


def make_bundle(folder: Path, files: dict[str, bytes]) -> Bundle:
    folder.mkdir(exist_ok=True)
    record = json.dumps({"files": dict.fromkeys(files, "")}).encode()
    bundle = {}
    for name, content in (files | {RECORD: record}).items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        bundle[name] = BundleFile(path, len(content), sha256_of(path))
    return Bundle(bundle)


@pytest.fixture
def old(tmp_path: Path) -> Bundle:
    return make_bundle(
        tmp_path / "old", {"model-1.safetensors": b"old", "config.json": b"1", "sub/a.json": b"1"}
    )


@pytest.fixture
def new(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "new", {"model.safetensors": b"new", "config.json": b"2"})


def silent(message: str, fraction: float = 0.0, *, eta_seconds: float | None = None) -> None:
    """Reports nothing."""


def publish(target: Path, bundle: Bundle) -> tuple[str, bool]:
    return FolderDestination(target).publish(bundle, "d" * 64, silent)


def killed_at(event_number: int, work: Callable[[], object]) -> bool:
    """Do the work in a child that SIGKILL ends at its n-th touch of the file system."""
    child = os.fork()
    if child == 0:
        left = event_number

        def count(event: str, _: object) -> None:
            nonlocal left
            if event in WATCHED:
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        try:
            work()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two renames"])
def test_killed_at_any_instant_it_holds_the_old_or_the_new(
    tmp_path: Path, old: Bundle, new: Bundle, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    if not exchange:
        monkeypatch.setattr(folder_module, "_exchanged", lambda *_: False)
    target, seen, event = tmp_path / "out" / "elle", set(), 0
    while True:
        event += 1
        publish(target, old)
        if not killed_at(event, lambda: publish(target, new)):
            break
        destination = FolderDestination(target)
        state = "old" if destination.holds(old.digest) else "new"
        if state == "new" and not destination.holds(new.digest):
            assert not exchange
            assert not target.exists()
            state = "between"
        seen.add(state)
        publish(target, new)
        assert destination.holds(new.digest)
        assert [path.name for path in target.parent.iterdir()] == ["elle"]
    assert event > 10
    assert seen == ({"old", "new"} if exchange else {"old", "between", "new"})


def test_what_a_kill_left_between_two_renames_comes_back(tmp_path: Path, old: Bundle) -> None:
    target = tmp_path / "out" / "elle"
    publish(target, old)
    target.rename(target.with_name(".elle.latticeforge-old"))
    assert publish(target, old) == (old.digest, False)


def test_weights_are_linked_read_only_and_texts_are_copied(tmp_path: Path, old: Bundle) -> None:
    target = tmp_path / "elle"
    publish(target, old)
    for name, file in old.files.items():
        shared = (target / name).stat().st_ino == file.path.stat().st_ino
        assert not shared or (
            name.endswith(".safetensors") and (target / name).stat().st_mode & 0o222 == 0
        )
    (target / "config.json").write_bytes(b"edited")
    assert old.files["config.json"].path.read_bytes() == b"1"


def test_another_file_system_gets_a_copy(
    tmp_path: Path, old: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_module, "_linked", lambda *_: False)
    publish(tmp_path / "elle", old)
    assert FolderDestination(tmp_path / "elle").holds(old.digest)


def test_an_unchanged_folder_is_left_untouched(tmp_path: Path, old: Bundle) -> None:
    publish(tmp_path / "elle", old)
    before = (tmp_path / "elle").stat().st_ino
    assert publish(tmp_path / "elle", old) == (old.digest, False)
    assert (tmp_path / "elle").stat().st_ino == before


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path, old: Bundle, new: Bundle) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    publish(tmp_path / "link", old)
    publish(tmp_path / "link", new)
    assert (tmp_path / "link").is_symlink()
    assert FolderDestination(tmp_path / "real").holds(new.digest)


@pytest.mark.parametrize("foreign", ["file", "folder", "record"])
def test_what_is_not_ours_is_refused(tmp_path: Path, old: Bundle, foreign: str) -> None:
    target = tmp_path / "elle"
    if foreign == "file":
        target.write_bytes(b"theirs")
    else:
        target.mkdir()
        (target / (RECORD if foreign == "record" else "a")).write_bytes(b"theirs")
    with pytest.raises(UserError, match="nothing was changed"):
        publish(target, old)


def test_a_folder_that_cannot_be_written_is_the_users_to_solve(tmp_path: Path, old: Bundle) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="Not a directory: make room, or name"):
        publish(tmp_path / "file" / "elle", old)
