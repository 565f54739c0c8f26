"""Training state as files: what safetensors reads, whatever the memory at hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from latticeforge_trainer.artifacts import sha256_of
from latticeforge_trainer.training import snapshots
from latticeforge_trainer.training.process import World
from latticeforge_trainer.training.snapshots import (
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


def test_buffers_are_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "SHARD_BYTES", 60)
    buffers = HostBuffers(CPU)
    write_shards(in_shards(state()), tmp_path, buffers, lambda: None)
    first = [buffer.data_ptr() for buffer in buffers._kept]
    tensors = {key: tensor + 1 for key, tensor in state().items()}

    write_shards(in_shards(tensors), tmp_path, buffers, lambda: None)

    assert [buffer.data_ptr() for buffer in buffers._kept] == first
    assert same(read_shards(tmp_path), tensors)


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
