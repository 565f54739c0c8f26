"""Two processes, as threads, that write one checkpoint: complete with the last share, or not."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.training.test_checkpoints import Asked, Gate, fail, names

from latticeforge_trainer.errors import UserError
from latticeforge_trainer.training import checkpoints as module
from latticeforge_trainer.training import shares
from latticeforge_trainer.training.checkpoints import Checkpoints
from latticeforge_trainer.training.process import World
from latticeforge_trainer.training.snapshots import Memory, Shard
from latticeforge_trainer.training.state import StepRecord, TrainState

SIZE = 2


class Part:
    """An engine that holds one number of its own."""

    device = torch.device("cpu")
    sharded = reads_in_place = True

    def __init__(self, value: float) -> None:
        self.value = torch.tensor([value])

    def read_state(self) -> dict[str, torch.Tensor]:
        return {"master/0/00000": self.value}

    def write_state(self, tensors: dict[str, torch.Tensor], step: int) -> None:
        del step
        self.value.copy_(tensors["master/0/00000"])


class Meeting:
    """`gather` for threads."""

    def __init__(self) -> None:
        self._barrier = threading.Barrier(SIZE, timeout=60)
        self._said: list[Any] = [None] * SIZE

    def __call__(self, world: World, mine: Any) -> list[Any]:
        self._said[world.rank] = mine
        self._barrier.wait()
        said = list(self._said)
        self._barrier.wait()
        return said


class Processes:
    """Those that train together.

    Args:
        folder: Their checkpoints'.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pool = ThreadPoolExecutor(SIZE)
        self.engines: list[Any] = [Part(float(rank)) for rank in range(SIZE)]
        self.checkpoints = [
            Checkpoints(folder, keep=2, world=World(rank, rank, SIZE, SIZE), engine=engine)
            for rank, engine in enumerate(self.engines)
        ]

    def each(self, act: Callable[[Checkpoints], Any]) -> list[Any]:
        """What comes of doing something in every process, also if that is an error."""
        futures = [self._pool.submit(act, made) for made in self.checkpoints]
        return [future.exception(60) or future.result() for future in futures]

    def save(self, step: int) -> list[Any]:
        """Write a checkpoint."""
        self.each(lambda made: made.save(state(step)))
        return self.each(lambda made: made.finish())

    def load(self, expected: TrainState | None = None) -> list[Any]:
        """Go on from the newest one."""
        return self.each(lambda made: made.load_latest(expected or state(0)))

    def close(self) -> None:
        """End them."""
        self.each(lambda made: made.close())
        self._pool.shutdown()


@pytest.fixture
def processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Processes]:
    monkeypatch.setattr(module, "gather", Meeting())
    monkeypatch.setattr(shares, "POLL", 0.01)
    made = Processes(tmp_path)
    yield made
    made.close()


def state(steps: int, **fields: Any) -> TrainState:
    made = TrainState(**{"world": SIZE, "zero_stage": 2, "precision": "bf16", **fields})
    for step in range(1, steps + 1):
        record = StepRecord(step=step, loss=1, learning_rate=1, grad_norm=1, tokens=1, seconds=1)
        made.history.append(record)
    return made


def only_for(rank: int, act: Callable[..., Any]) -> Callable[..., Any]:
    """`Shard.write` that does something else for one process."""
    write = Shard.write

    def instead(shard: Shard, memory: Memory, path: Path) -> Any:
        return (act if path.parent.name == f"share-{rank:05d}" else write)(shard, memory, path)

    return instead


def test_every_process_goes_on_from_its_own_share(processes: Processes, tmp_path: Path) -> None:
    assert processes.save(3) == [None, None]
    assert [made.committed for made in processes.checkpoints] == [3, 3]
    assert names(tmp_path / "step-00000003") == [
        "manifest.json", "share-00000", "share-00001", "state.json",
    ]  # fmt: skip
    for engine in processes.engines:
        engine.value.fill_(9)

    loaded = processes.load()

    assert [found.step for found in loaded] == [3, 3]
    assert [engine.value.item() for engine in processes.engines] == [0, 1]


def test_a_checkpoint_is_complete_with_the_last_share_and_no_step_waits_for_it(
    processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = Gate(Shard.write)
    monkeypatch.setattr(Shard, "write", only_for(1, late))
    looking = processes.checkpoints[0]._given_up = Asked()
    processes.each(lambda made: made.save(state(3)))

    processes.each(lambda made: made.before_update())

    assert late.reached.wait(60)
    assert looking.asked.wait(60)
    assert names(tmp_path) == [".step-00000003.partial"]
    late.open()
    assert processes.each(lambda made: made.finish()) == [None, None]
    assert names(tmp_path) == ["step-00000003"]


@pytest.mark.parametrize("rank", [0, 1])
def test_all_say_why_one_could_not_write(
    rank: int, processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes.save(3)
    full = fail(OSError(28, "No space left on device"))
    monkeypatch.setattr(Shard, "write", only_for(rank, full))

    errors = processes.save(4)

    assert [type(error) for error in errors] == [UserError, UserError]
    assert all("no space left for a checkpoint" in str(error) for error in errors)
    assert names(tmp_path) == ["step-00000003"]
    assert [made.committed for made in processes.checkpoints] == [3, 3]


def test_closing_does_not_wait_for_a_share_that_will_not_come(
    processes: Processes, tmp_path: Path
) -> None:
    processes.save(3)
    first = processes.checkpoints[0]
    alone = first._thread.submit(first._write, [], 4, b"{}")  # the other one has ended

    first.close()

    assert alone.done()
    assert names(tmp_path) == [".step-00000004.partial", "step-00000003"]
    assert first.committed == 3


def test_a_damaged_share_is_everybodys(processes: Processes, tmp_path: Path) -> None:
    processes.save(3)
    processes.engines[0].value.fill_(5)
    processes.save(4)
    (share,) = (tmp_path / "step-00000004" / "share-00001").glob("*.safetensors")
    share.write_bytes(share.read_bytes()[:-1] + b"!")

    loaded = processes.load()

    assert [found.step for found in loaded] == [3, 3]
    assert [engine.value.item() for engine in processes.engines] == [0, 1]


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [("world", 4, "4, ZeRO-2, bf16"), ("zero_stage", 3, "ZeRO-3"), ("precision", "fp32", "fp32")],
)
def test_shares_fit_only_what_they_were_cut_for(
    field: str, value: Any, said: str, processes: Processes
) -> None:
    processes.save(3)

    errors = processes.load(state(0, **{field: value}))

    assert all(isinstance(e, UserError) and said in str(e) for e in errors)


def test_an_earlier_format_is_refused(processes: Processes, tmp_path: Path) -> None:
    processes.save(3)
    folder = tmp_path / "step-00000003"
    (folder / "share-00000").rename(folder / "engine")
    (folder / "share-00001").rename(folder / "more")
    manifest = json.loads((folder / "manifest.json").read_text())
    renamed = {
        name.replace("share-00000", "engine").replace("share-00001", "more"): entry
        for name, entry in manifest.items()
    }
    (folder / "manifest.json").write_text(json.dumps(renamed))

    errors = processes.load()

    assert all(isinstance(e, UserError) and "another version" in str(e) for e in errors)
