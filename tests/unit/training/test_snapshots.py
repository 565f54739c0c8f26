"""Training state as files: what safetensors reads, whatever the memory at hand."""

from __future__ import annotations

import math
import threading
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from latticeforge_trainer.artifacts import sha256_of
from latticeforge_trainer.training import snapshots
from latticeforge_trainer.training.process import World
from latticeforge_trainer.training.snapshots import (
    DTYPES,
    HostBuffers,
    host_memory_left,
    in_shards,
    read_shards,
    write_shards,
)

CPU = torch.device("cpu")


def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "error_bits/a": torch.randint(-9, 9, (3, 5), dtype=torch.int16),
        "exp_avg::quantized/a": torch.randint(-9, 9, (3, 5), dtype=torch.int8),
        "exp_avg_sq::quantized/a": torch.randint(0, 9, (3, 5), dtype=torch.uint8),
        "exp_avg::scales/a": torch.randn(1).half(),
        "weight/a": torch.randn(3, 5).bfloat16(),
        "master/b": torch.randn(7, 2).T,
        "exp_avg/b": torch.randn(()),
    }


def pieces(buffers: HostBuffers) -> list[int]:
    """Where the memory that is held lies."""
    return [piece.data_ptr() for piece in buffers._pieces]


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(left[k], right[k]) and left[k].dtype == right[k].dtype for k in left
    )


def test_one_file_is_plain_safetensors(tmp_path: Path) -> None:
    tensors = state()

    files = write_shards(in_shards(tensors), tmp_path, HostBuffers(CPU), lambda: None)

    (name,) = files
    assert same(load_file(tmp_path / name), tensors)
    assert files[name].sha256 == sha256_of(tmp_path / name)
    assert files[name].size == (tmp_path / name).stat().st_size


@st.composite
def tensors_of_any_bits(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    """Tensors of any type and shape, also none in the order of their memory, also empty ones."""
    tensors = {}
    for number in range(draw(st.integers(0, 6))):
        dtype = draw(st.sampled_from(list(DTYPES)))
        shape = draw(st.lists(st.integers(0, 5), max_size=3))
        size = math.prod(shape) * dtype.itemsize
        bits = torch.tensor(list(draw(st.binary(min_size=size, max_size=size))), dtype=torch.uint8)
        tensor = bits.view(dtype).view(shape)
        tensors[f"kind/{number}"] = tensor.mT if len(shape) > 1 and draw(st.booleans()) else tensor
    return tensors


def bits(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[torch.dtype, torch.Size, bytes]]:
    """Some are not numbers, and equal to nothing."""
    return {
        name: (t.dtype, t.shape, t.contiguous().flatten().view(torch.uint8).numpy().tobytes())
        for name, t in tensors.items()
    }


@given(
    tensors=tensors_of_any_bits(),
    piece=st.integers(1, 40),
    chunk=st.integers(1, 40),
    file=st.integers(1, 100),
    memory=st.sampled_from([0, 50, 200, 10**9]),
)
def test_borders_of_pieces_and_files_change_no_bit(
    tensors: dict[str, torch.Tensor], piece: int, chunk: int, file: int, memory: int
) -> None:
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        for name, value in (("SNAPSHOT_PIECE", piece), ("CHUNK", chunk), ("SHARD_BYTES", file)):
            patch.setattr(snapshots, name, value)
        patch.setattr(snapshots, "host_memory_left", lambda: memory)
        patch.setattr("os.fsync", lambda _: None)
        buffers = HostBuffers(CPU)

        entries = write_shards(in_shards(tensors), Path(folder), buffers, lambda: None)

        assert bits(read_shards(Path(folder))) == bits(tensors)
        for name, entry in entries.items():
            assert entry.sha256 == sha256_of(Path(folder) / name)
        assert all(0 < len(part) <= piece for part in buffers._pieces)


@pytest.mark.parametrize("memory", [0, 300, 10**9])
def test_shards_are_copied_as_memory_allows(
    memory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "SHARD_BYTES", 60)
    monkeypatch.setattr(snapshots, "host_memory_left", lambda: memory)
    tensors = state()
    written: list[int] = []
    buffers = HostBuffers(CPU)
    shards = in_shards(tensors)

    def copied() -> None:
        written.append(len(list(tmp_path.iterdir())))
        for tensor in tensors.values():
            tensor.zero_()  # training goes on

    expected = {key: tensor.clone() for key, tensor in tensors.items()}
    files = write_shards(shards, tmp_path, buffers, copied)

    assert len(files) == len(shards) > 2
    assert same(read_shards(tmp_path), expected)
    (before,) = written
    assert before == (len(shards) - 1 if memory == 0 else 0 if memory == 10**9 else before)
    assert before < len(shards)


def test_pieces_are_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "SHARD_BYTES", 60)
    monkeypatch.setattr(snapshots, "SNAPSHOT_PIECE", 32)
    buffers = HostBuffers(CPU)
    write_shards(in_shards(state()), tmp_path, buffers, lambda: None)
    first = pieces(buffers)
    assert len(first) == -(-sum(tensor.nbytes for tensor in state().values()) // 32)
    tensors = {key: tensor + 1 for key, tensor in state().items()}

    write_shards(in_shards(tensors), tmp_path, buffers, lambda: None)

    assert pieces(buffers) == first
    assert same(read_shards(tmp_path), tensors)


@pytest.mark.parametrize("memory", [0, 300, 10**9])
def test_what_is_held_ahead_is_what_copies_take(
    memory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "SHARD_BYTES", 60)
    monkeypatch.setattr(snapshots, "SNAPSHOT_PIECE", 32)
    buffers, shards = HostBuffers(CPU), in_shards(state())
    monkeypatch.setattr(snapshots, "host_memory_left", lambda: memory - 2 * buffers._held)
    groups = buffers._groups(shards)

    buffers.hold(buffers.needed(shards), threading.Event())

    held = pieces(buffers)
    assert buffers._held == max(sum(shard.nbytes for shard in group) for group in groups)
    assert buffers._groups(shards) == groups
    write_shards(shards, tmp_path, buffers, lambda: None)
    assert pieces(buffers) == held


class Hurry(threading.Event):
    """An event that comes once it was asked for some times."""

    def __init__(self, comes_after: int) -> None:
        super().__init__()
        self._left = comes_after

    def is_set(self) -> bool:
        self._left -= 1
        return self._left < 0


@pytest.mark.parametrize(("comes_after", "held"), [(9, [4, 4, 2]), (2, [4, 4]), (0, [])])
def test_memory_is_got_ahead_until_there_is_no_time(
    comes_after: int, held: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "SNAPSHOT_PIECE", 4)
    buffers = HostBuffers(CPU)

    buffers.hold(10, Hurry(comes_after))

    assert [len(piece) for piece in buffers._pieces] == held


def test_processes_of_a_node_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "SHARD_BYTES", 60)
    monkeypatch.setattr(snapshots, "host_memory_left", lambda: 600)
    shards = in_shards(state())

    alone, beside = (len(HostBuffers(CPU, count)._groups(shards)) for count in (1, 10))

    assert alone < beside == len(shards)


def test_torchrun_says_how_many_share_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", 5), ("LOCAL_RANK", 1), ("WORLD_SIZE", 8), ("LOCAL_WORLD_SIZE", 4)):
        monkeypatch.setenv(name, str(value))

    assert World.from_environment() == World(5, 1, 8, local_size=4)


def test_a_containers_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = host_memory_left()
    monkeypatch.setattr(snapshots, "CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("max\n")
    assert host_memory_left() == pytest.approx(machine, rel=0.5)
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 300\ninactive_file 400\n")

    assert host_memory_left() == 700
