"""Tensors come out of files as they were written, in order, and never many at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from latticeforge_trainer.errors import UserError
from latticeforge_trainer.models import streaming
from latticeforge_trainer.models.headers import locate_tensors
from latticeforge_trainer.models.streaming import DTYPES, Group, stream

CPU = torch.device("cpu")


def groups_of(path: Path) -> list[Group]:
    return [Group(name, {"weight": stored}) for name, stored in locate_tensors(path).items()]


@pytest.mark.parametrize("chunk", [7, 2**20])
def test_every_type_and_shape_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(streaming, "CHUNK", chunk)
    tensors = {str(dtype): torch.randint(0, 2, (3, 5)).to(dtype) for dtype in DTYPES.values()}
    tensors |= {"scalar": torch.tensor(3.0), "empty": torch.empty(0, 4)}
    save_file(tensors, tmp_path / "a.safetensors")

    read = {
        group.module: t["weight"] for group, t in stream(groups_of(tmp_path / "a.safetensors"), CPU)
    }

    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (read[name].dtype, read[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(read[name].view(-1).view(torch.uint8), tensor.view(-1).view(torch.uint8))


def test_a_part_of_a_tensor_is_read_alone(tmp_path: Path) -> None:
    tensor = torch.arange(20, dtype=torch.bfloat16).view(4, 5)
    save_file({"other": torch.ones(3), "a": tensor}, tmp_path / "a.safetensors")
    stored = locate_tensors(tmp_path / "a.safetensors")["a"]
    sizes: list[tuple[int, int]] = []

    groups = [Group("a", {"weight": stored.part(7, 12)})]
    [(_, read)] = stream(groups, CPU, lambda *size: sizes.append(size))

    assert torch.equal(read["weight"], tensor.view(-1)[7:12])
    assert sizes == [(10, 10)]


def test_what_is_read_ahead_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file(
        {f"{i:02}": torch.full((100,), float(i)) for i in range(20)}, tmp_path / "a.safetensors"
    )
    monkeypatch.setattr(streaming, "AHEAD", 1000)  # two tensors of 400 bytes
    begun: list[str] = []
    begin = streaming._Readers.begin

    def counted(self: streaming._Readers, group: Group) -> streaming._Reading:
        begun.append(group.module)
        return begin(self, group)

    monkeypatch.setattr(streaming._Readers, "begin", counted)
    taken: list[str] = []

    for group, tensors in stream(groups_of(tmp_path / "a.safetensors"), CPU):
        taken.append(group.module)
        assert tensors["weight"][0] == int(group.module)
        assert len(begun) <= len(taken) + 2

    assert taken == sorted(taken) == begun


def test_progress_is_told_in_bytes(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(4), "b": torch.zeros(6)}, tmp_path / "a.safetensors")
    sizes: list[tuple[int, int]] = []

    list(stream(groups_of(tmp_path / "a.safetensors"), CPU, lambda *size: sizes.append(size)))

    assert sizes == [(16, 40), (40, 40)]


def test_a_file_that_shrinks_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(1000)}, path)
    groups = groups_of(path)
    path.write_bytes(path.read_bytes()[:-100])

    with pytest.raises(UserError, match="ended while it was read"):
        list(stream(groups, CPU))


def test_an_unknown_type_is_named(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3, dtype=torch.complex64)}, tmp_path / "a.safetensors")

    with pytest.raises(UserError, match="weight is C64, an unknown type"):
        list(stream(groups_of(tmp_path / "a.safetensors"), CPU))
