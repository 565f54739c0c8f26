"""The store: complete or absent, whatever happens in between."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from latticeforge_trainer import artifacts
from latticeforge_trainer.artifacts import MANIFEST, Store, sha256_of, write_atomically
from latticeforge_trainer.contract import MergeResult, StepKind
from latticeforge_trainer.errors import UserError

DIGEST = "d" * 64
RESULT = MergeResult(bytes=3, max_logit_difference=0.1, top1_agreement=1)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def make(store: Store) -> Path:
    with store.create(DIGEST) as staging:
        (staging.folder / "sub").mkdir()
        (staging.folder / "a.bin").write_bytes(b"abc")
        (staging.folder / "sub" / "b.bin").write_bytes(b"")
        staging.seal(StepKind.MERGE, RESULT, {"note": 1})
    return store.path(DIGEST)


def test_a_sealed_artifact_is_complete(store: Store) -> None:
    folder = make(store)
    manifest = store.manifest(DIGEST)
    assert manifest is not None
    assert manifest.result == RESULT
    assert manifest.extra == {"note": 1}
    assert sorted(manifest.files) == ["a.bin", "sub/b.bin"]
    assert manifest.files["a.bin"].sha256 == hashlib.sha256(b"abc").hexdigest()
    assert store.require(DIGEST, "the model") == folder
    assert store.verify(DIGEST) == []


def test_nothing_is_complete_before_the_seal(store: Store) -> None:
    with store.create(DIGEST) as staging:
        (staging.folder / "a.bin").write_bytes(b"abc")
        assert store.manifest(DIGEST) is None
    assert store.manifest(DIGEST) is None
    make(store)  # what the first attempt left is no part of it
    assert store.manifest(DIGEST) is not None


def test_leftovers_of_an_earlier_attempt_are_removed(store: Store) -> None:
    with store.create(DIGEST) as staging:
        (staging.folder / "stale.bin").write_bytes(b"x")
    folder = make(store)
    assert not (folder / "stale.bin").exists()


SYSTEM_CALLS = ["os.fsync", "pathlib.Path.replace", "pathlib.Path.open", "json.dumps"]


@pytest.mark.parametrize("call", SYSTEM_CALLS)
def test_a_kill_at_any_call_leaves_a_whole_artifact_or_none(
    store: Store, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Die at the first, second, … use of a system call until the work gets through."""
    module, _, name = call.rpartition(".")
    owner = {"os": os, "json": json, "pathlib.Path": Path}[module]
    genuine = getattr(owner, name)
    for survived in range(100):
        left = [survived]

        def dying(*args: Any, left: list[int] = left, **kwargs: Any) -> Any:
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            return genuine(*args, **kwargs)

        monkeypatch.setattr(owner, name, dying)
        try:
            make(store)
        except KeyboardInterrupt:
            dead = True
        else:
            dead = False
        finally:
            monkeypatch.undo()
        if store.manifest(DIGEST) is not None:
            assert store.verify(DIGEST) == []
        if not dead:
            assert store.manifest(DIGEST) is not None
            return
    pytest.fail("the work never got through")


def test_everything_is_on_disk_before_the_manifest(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    genuine = os.fsync

    def recording(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        genuine(descriptor)

    monkeypatch.setattr(os, "fsync", recording)
    folder = str(make(store))
    manifest = synced.index(f"{folder}/.{MANIFEST}.partial")
    needed = {f"{folder}/a.bin", f"{folder}/sub/b.bin", f"{folder}/sub", folder}
    assert needed <= set(synced[:manifest])
    assert set(synced[manifest + 1 :]) == {folder, str(Path(folder).parent)}


@pytest.mark.parametrize("damage", ["missing", "short", "manifest", "foreign"])
def test_damage_is_noticed(store: Store, damage: str) -> None:
    folder = make(store)
    match damage:
        case "missing":
            (folder / "a.bin").unlink()
        case "short":
            (folder / "a.bin").write_bytes(b"ab")
        case "manifest":
            (folder / MANIFEST).write_text('{"digest": ')
        case "foreign":
            (folder / MANIFEST).write_text('{"kind": "merge"}')
    assert store.manifest(DIGEST) is None
    with pytest.raises(UserError, match=r"the model \(dddddddddddd\) is missing or damaged in"):
        store.require(DIGEST, "the model")


def test_a_changed_byte_is_found_by_verify(store: Store) -> None:
    folder = make(store)
    (folder / "a.bin").write_bytes(b"abd")
    assert store.manifest(DIGEST) is not None
    assert store.verify(DIGEST) == ["a.bin"]
    assert store.verify("e" * 64) == [MANIFEST]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_the_users_to_mend(store: Store, code: int) -> None:
    with (
        pytest.raises(UserError, match=r"no space left in the store .*: free some"),
        store.create(DIGEST),
    ):
        raise OSError(code, "full")
    with pytest.raises(PermissionError), store.create(DIGEST):
        raise PermissionError(errno.EACCES, "no")


def test_unfinished_work_is_kept_until_it_is_forgotten(store: Store) -> None:
    (store.work(DIGEST) / "checkpoint").touch()
    assert (store.work(DIGEST) / "checkpoint").exists()
    store.forget_work(DIGEST)
    store.forget_work(DIGEST)
    assert not list(store.work(DIGEST).iterdir())


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("owner/name", None),
        ("name", None),
        ("/abs/folder", "/abs/folder"),
        ("file:///abs/a%20b", "/abs/a b"),
        ("file://localhost/abs", "/abs"),
        ("./here/there", "{root}/here/there"),
        (".", "{root}"),
        ("./a/../b", "{root}/b"),
    ],
)
def test_references_are_paths_or_repositories(
    store: Store, reference: str, expected: str | None
) -> None:
    path = Path(expected.format(root=store.root)) if expected else None
    assert store.resolve(reference) == path


@pytest.mark.parametrize("reference", ["../up", "./a/../../up", "file://host/folder"])
def test_references_that_lead_elsewhere_are_refused(store: Store, reference: str) -> None:
    with pytest.raises(UserError, match=reference):
        store.resolve(reference)


def test_paths_below_the_root_are_named_relative_to_it(store: Store) -> None:
    assert store.relative(store.root / "a" / "b") == "./a/b"
    assert store.relative(Path("/elsewhere")) == "/elsewhere"
    assert store.resolve(store.relative(store.root / "a")) == store.root / "a"


def test_an_interrupted_write_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state.json"
    write_atomically(path, b"old")

    def dying(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", dying)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_large_files_are_hashed_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "_CHUNK", 7)
    (tmp_path / "f").write_bytes(b"0123456789" * 3)
    assert sha256_of(tmp_path / "f") == hashlib.sha256(b"0123456789" * 3).hexdigest()
