"""Tensors come out of files as they were written, in order, and never many at a time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from latticeforge_trainer.errors import UserError
from latticeforge_trainer.models import streaming
from latticeforge_trainer.models.headers import StoredTensor, TensorInfo, locate_tensors
from latticeforge_trainer.models.streaming import DTYPES, Group, stream

CPU = torch.device("cpu")


def groups_of(path: Path) -> list[Group]:
    return [Group(name, {"weight": stored}) for name, stored in locate_tensors(path).items()]


@pytest.fixture(params=["mapped", "read"])
def _both(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once as on a CPU, once as to a GPU but for the copy, in chunks that fit nothing."""
    if request.param == "read":
        monkeypatch.setattr(streaming, "_source", streaming._Readers)
        monkeypatch.setattr(streaming, "CHUNK", 7)


@pytest.mark.usefixtures("_both")
def test_every_type_and_shape_is_read(tmp_path: Path) -> None:
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


@pytest.mark.usefixtures("_both")
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
    monkeypatch.setattr(streaming, "_source", streaming._Readers)
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


def test_reads_may_be_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.arange(100.0)
    save_file({"a": tensor}, tmp_path / "a.safetensors")
    read = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, views, start: read(file, [views[0][:3]], start))
    monkeypatch.setattr(streaming, "_source", streaming._Readers)

    [(_, read_)] = stream(groups_of(tmp_path / "a.safetensors"), CPU)

    assert torch.equal(read_["weight"], tensor)


def test_threads_may_write_to_what_is_loaded_for_inference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file({"a": torch.ones(3)}, tmp_path / "a.safetensors")
    monkeypatch.setattr(streaming, "_source", streaming._Readers)

    with torch.inference_mode():
        [(_, read)] = stream(groups_of(tmp_path / "a.safetensors"), CPU)

    assert not read["weight"].is_inference()


def test_progress_is_told_in_bytes(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(4), "b": torch.zeros(6)}, tmp_path / "a.safetensors")
    sizes: list[tuple[int, int]] = []

    list(stream(groups_of(tmp_path / "a.safetensors"), CPU, lambda *size: sizes.append(size)))

    assert sizes == [(16, 40), (40, 40)]


@pytest.mark.usefixtures("_both")
def test_a_file_that_shrinks_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(1000)}, path)
    groups = groups_of(path)
    path.write_bytes(path.read_bytes()[:-100])

    with pytest.raises(UserError, match=r"ended while it was read|has 3900 bytes, not 4000"):
        list(stream(groups, CPU))


@pytest.mark.usefixtures("_both")
def test_a_size_that_is_not_the_shapes_is_an_error(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1000)}, tmp_path / "a.safetensors")
    stored = locate_tensors(tmp_path / "a.safetensors")["a"]
    wrong = stored._replace(info=stored.info._replace(shape=(999,)))

    with pytest.raises(UserError, match=r"a tensor has .* bytes, not 3996"):
        list(stream([Group("a", {"weight": wrong})], CPU))


def test_a_tensor_may_lie_anywhere(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\0" + torch.arange(3.0).numpy().tobytes())
    stored = StoredTensor(tmp_path / "a", TensorInfo("F32", (3,)), 1, 12)

    [(_, read)] = stream([Group("a", {"weight": stored})], CPU)

    assert read["weight"].tolist() == [0, 1, 2]


def test_writing_to_a_tensor_leaves_its_file(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1000)}, tmp_path / "a.safetensors")
    [(_, read)] = stream(groups_of(tmp_path / "a.safetensors"), CPU)

    read["weight"].fill_(1)

    assert load_file(tmp_path / "a.safetensors")["a"].sum() == 0


@pytest.mark.usefixtures("_both")
def test_an_unknown_type_is_named(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3, dtype=torch.complex64)}, tmp_path / "a.safetensors")

    with pytest.raises(UserError, match=r"a\.safetensors holds C64"):
        list(stream(groups_of(tmp_path / "a.safetensors"), CPU))
