"""Data set files: the format, the bytes, and what a failure leaves behind."""

import hashlib
import json
import stat
from pathlib import Path

import pytest

from latticeforge_trainer.domain.datasets import Kind, write_dataset


def read(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("kind", ["cic", "math"])
def test_format(tmp_path: Path, kind: Kind) -> None:
    path = tmp_path / "new" / "data.jsonl"
    summary = write_dataset(kind, 20, 3, "train", path)
    rows = read(path)
    assert len(rows) == summary.n == 20
    assert len({row["task"] for row in rows}) == 20
    for row in rows:
        assert row.keys() == {"task", "messages"}
        assert isinstance(row["messages"], list)
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
    assert summary.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.mark.parametrize("kind", ["cic", "math"])
def test_same_arguments_same_file_and_other_split_other_problems(
    tmp_path: Path, kind: Kind
) -> None:
    one = write_dataset(kind, 30, 1, "train", tmp_path / "one")
    same = write_dataset(kind, 30, 1, "train", tmp_path / "same")
    write_dataset(kind, 30, 1, "heldout", tmp_path / "heldout")
    assert one.sha256 == same.sha256
    tasks = [{row["task"] for row in read(tmp_path / name)} for name in ("one", "heldout")]
    assert not tasks[0] & tasks[1]


def test_more_samples_continue_the_same_sequence(tmp_path: Path) -> None:
    write_dataset("cic", 10, 1, "train", tmp_path / "few")
    write_dataset("cic", 20, 1, "train", tmp_path / "many")
    assert read(tmp_path / "many")[:10] == read(tmp_path / "few")


def test_a_failure_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("old")

    def fail(_self: Path, _target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        write_dataset("cic", 5, 0, "train", path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["data.jsonl"]
    assert path.read_text() == "old"


def test_no_samples_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="n is 0, expected at least 1"):
        write_dataset("cic", 0, 0, "train", tmp_path / "data")
