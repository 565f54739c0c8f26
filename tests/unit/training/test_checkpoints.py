"""Checkpoints beside training: what is waited for, when, and what survives a failure."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from latticeforge_trainer.errors import UserError
from latticeforge_trainer.training import snapshots
from latticeforge_trainer.training.checkpoints import Checkpoints
from latticeforge_trainer.training.process import World
from latticeforge_trainer.training.snapshots import HostBuffers, Shard
from latticeforge_trainer.training.state import StepRecord, TrainState


class Weights:
    """An engine of one tensor."""

    device = torch.device("cpu")
    sharded = False
    reads_in_place = True

    def __init__(self) -> None:
        self.weight = torch.zeros(4)
        self.step = self.reads = 0

    def read_state(self) -> dict[str, torch.Tensor]:
        self.reads += 1
        return {"master/w": self.weight}

    def write_state(self, tensors: dict[str, torch.Tensor], step: int) -> None:
        self.weight.copy_(tensors["master/w"])
        self.step = step


class Gate:
    """Stands before a method: calls wait in it until it is opened."""

    def __init__(self, behind: Callable[..., Any]) -> None:
        self._behind, self._open = behind, threading.Event()
        self.reached = threading.Event()

    def __call__(self, *arguments: Any) -> Any:
        self.reached.set()
        assert self._open.wait(60)
        return self._behind(*arguments)

    def __get__(self, instance: Any, owner: type) -> Callable[..., Any]:
        return partial(self, instance)

    def open(self) -> None:
        self._open.set()


class Asked(threading.Event):
    """An event that tells when somebody waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = threading.Event()

    def wait(self, timeout: float | None = None) -> bool:
        self.asked.set()
        return super().wait(timeout)


def state(steps: int) -> TrainState:
    made = TrainState(world=1, zero_stage=0, precision="fp32")
    for step in range(1, steps + 1):
        record = StepRecord(step=step, loss=1, learning_rate=1, grad_norm=1, tokens=1, seconds=1)
        made.history.append(record)
    return made


def make(folder: Path, engine: Any) -> Checkpoints:
    return Checkpoints(folder, keep=2, world=World(0, 0, 1), engine=engine)


@pytest.fixture
def engine() -> Weights:
    return Weights()


@pytest.fixture
def checkpoints(tmp_path: Path, engine: Weights) -> Iterator[Checkpoints]:
    made = make(tmp_path, engine)
    yield made
    made.close()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_is_what_was_there_when_it_was_asked_for(
    checkpoints: Checkpoints, engine: Weights, tmp_path: Path
) -> None:
    engine.weight.fill_(3)
    checkpoints.save(state(3))
    checkpoints.before_update()
    engine.weight.fill_(4)
    checkpoints.finish()
    assert checkpoints.committed == 3
    other = Weights()

    loaded = make(tmp_path, other).load_latest(state(0))

    assert (loaded.step, other.step, other.weight.tolist()) == (3, 3, [3.0] * 4)


def test_an_update_waits_for_the_copy_and_not_for_the_disk(
    checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copying = Gate(Shard.copy_to)
    writing = Gate(Shard.write)
    monkeypatch.setattr(Shard, "copy_to", copying)
    monkeypatch.setattr(Shard, "write", writing)
    copied = checkpoints._copied = Asked()
    checkpoints.save(state(3))
    assert copying.reached.wait(10)
    waited: list[float] = []
    waiting = threading.Thread(target=lambda: waited.append(checkpoints.before_update()))
    waiting.start()
    assert copied.asked.wait(10)
    assert not copied.is_set()

    copying.open()
    waiting.join(10)

    assert not waiting.is_alive()
    assert waited[0] > 0
    assert checkpoints.is_writing
    assert checkpoints.before_update() == 0
    assert names(tmp_path) == [".step-00000003.partial"]
    assert checkpoints.committed is None
    writing.open()
    checkpoints.finish()
    assert names(tmp_path) == ["step-00000003"]
    assert checkpoints.committed == 3
    assert not checkpoints.is_writing


def test_the_next_waits_for_the_one_before(
    checkpoints: Checkpoints, engine: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing = Gate(Shard.write)
    monkeypatch.setattr(Shard, "write", writing)
    finish, read = checkpoints.finish, engine.read_state
    there: list[list[str]] = []

    def finish_it() -> None:
        writing.open()
        finish()

    def read_it() -> dict[str, torch.Tensor]:
        there.append(names(tmp_path))
        return read()

    checkpoints.save(state(3))
    monkeypatch.setattr(checkpoints, "finish", finish_it)
    monkeypatch.setattr(engine, "read_state", read_it)
    checkpoints.save(state(4))
    checkpoints.finish()

    assert there == [["step-00000003"]]
    assert names(tmp_path) == ["step-00000003", "step-00000004"]


def fail(error: Exception) -> Callable[..., Any]:
    def raise_it(*arguments: Any) -> Any:
        raise error

    return raise_it


def test_a_full_disk_is_said_and_the_last_checkpoint_stays(
    checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints.save(state(3))
    checkpoints.finish()
    assert not checkpoints.failed
    error = OSError(28, "No space left on device")
    monkeypatch.setattr(Shard, "write", fail(error))
    checkpoints.save(state(4))
    checkpoints._thread.submit(int).result(10)  # the thread is past it

    checkpoints.before_update()
    assert checkpoints.failed
    with pytest.raises(UserError, match="no space left for a checkpoint"):
        checkpoints.finish()

    assert names(tmp_path) == ["step-00000003"]
    assert checkpoints.committed == 3


def test_an_error_before_the_copy_does_not_hold_up_the_update(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Shard, "copy_to", fail(ValueError("broken")))
    checkpoints.save(state(4))

    checkpoints.before_update()

    with pytest.raises(ValueError, match="broken"):
        checkpoints.finish()


def test_closing_lets_the_last_one_become_complete(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    checkpoints.save(state(5))

    checkpoints.close()

    assert names(tmp_path) == ["step-00000005"]


@pytest.fixture
def page_locked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that is worth to be held ahead, in pieces of a number each."""
    monkeypatch.setattr(HostBuffers, "is_page_locked", True)
    monkeypatch.setattr(snapshots, "SNAPSHOT_PIECE", 4)


@pytest.fixture
def locking(page_locked: None, monkeypatch: pytest.MonkeyPatch) -> Gate:
    """Stands before the first piece."""
    gate = Gate(HostBuffers._add_piece)
    monkeypatch.setattr(HostBuffers, "_add_piece", gate)
    return gate


def pieces(checkpoints: Checkpoints) -> list[int]:
    """Where the memory that is held lies."""
    return [piece.data_ptr() for piece in checkpoints._buffers._pieces]


@pytest.mark.usefixtures("page_locked")
def test_the_first_checkpoint_finds_the_memory_that_it_needs(
    checkpoints: Checkpoints, engine: Weights, tmp_path: Path
) -> None:
    checkpoints.prepare()
    checkpoints._thread.submit(int).result(60)  # the thread is past it
    held = pieces(checkpoints)
    assert len(held) == 4
    assert not checkpoints.is_writing

    for step in (3, 4):
        checkpoints.prepare()
        checkpoints.save(state(step))
    checkpoints.finish()
    checkpoints.prepare()

    assert engine.reads == 3  # once to prepare
    assert pieces(checkpoints) == held
    assert names(tmp_path) == ["step-00000003", "step-00000004"]


def test_no_update_waits_while_memory_is_got(checkpoints: Checkpoints, locking: Gate) -> None:
    checkpoints.prepare()
    assert locking.reached.wait(60)

    assert checkpoints.before_update() == 0

    assert checkpoints.is_writing
    locking.open()
    checkpoints.finish()


def test_a_checkpoint_gets_what_memory_is_missing_yet(
    checkpoints: Checkpoints, engine: Weights, locking: Gate, tmp_path: Path
) -> None:
    engine.weight.copy_(torch.arange(4))
    checkpoints.prepare()
    assert locking.reached.wait(60)
    saving = threading.Thread(target=checkpoints.save, args=[state(3)])
    saving.start()
    assert checkpoints._hurry.wait(60)
    assert not pieces(checkpoints)

    locking.open()
    saving.join(60)
    checkpoints.finish()

    assert len(pieces(checkpoints)) == 4
    resumed = Weights()
    make(tmp_path, resumed).load_latest(state(0))
    assert resumed.weight.tolist() == [0, 1, 2, 3]


def test_closing_waits_for_one_piece_at_most(checkpoints: Checkpoints, locking: Gate) -> None:
    checkpoints.prepare()
    assert locking.reached.wait(60)
    closing = threading.Thread(target=checkpoints.close)
    closing.start()
    assert checkpoints._hurry.wait(60)

    locking.open()
    closing.join(60)

    assert not closing.is_alive()
    assert len(pieces(checkpoints)) == 1


@pytest.mark.usefixtures("page_locked")
def test_memory_that_is_not_to_be_had_is_said(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HostBuffers, "_add_piece", fail(RuntimeError("out of memory")))
    checkpoints.prepare()
    checkpoints._thread.submit(int).result(60)  # the thread is past it

    assert checkpoints.failed
    with pytest.raises(RuntimeError, match="out of memory"):
        checkpoints.finish()


@pytest.mark.parametrize(("locked", "in_place"), [(False, True), (True, False)])
def test_nothing_is_held_ahead_that_is_cheap_to_get_or_dear_to_ask_for(
    locked: bool,
    in_place: bool,
    checkpoints: Checkpoints,
    engine: Weights,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(HostBuffers, "is_page_locked", locked)
    monkeypatch.setattr(engine, "reads_in_place", in_place)
    monkeypatch.setattr(engine, "read_state", fail(AssertionError("was read")))

    checkpoints.prepare()

    checkpoints._thread.submit(int).result(60)
    assert not pieces(checkpoints)
    assert not checkpoints.is_writing
