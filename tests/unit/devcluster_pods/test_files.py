"""What the kubelet writes and reads on disk: payload volumes, logs, and who holds which GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticeforge_operator.devcluster.kubelet import logs
from latticeforge_operator.devcluster.kubelet.atomic import write_payload
from latticeforge_operator.devcluster.kubelet.gpus import Devices


def visible(folder: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith("..")
    }


def test_a_payload_changes_all_at_once(tmp_path: Path) -> None:
    write_payload(tmp_path, {"a": b"1", "b": b"1"}, 0o644)
    version = (tmp_path / "..data").resolve()
    assert visible(tmp_path) == {"a": b"1", "b": b"1"}
    write_payload(tmp_path, {"a": b"2", "c": b"2"}, 0o600)
    assert visible(tmp_path) == {"a": b"2", "c": b"2"}
    assert not version.exists()
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600


def test_a_reader_in_between_sees_the_old_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_payload(tmp_path, {"a": b"1", "b": b"1"}, 0o644)
    seen = []
    replace: Callable[[Path, Path], Path] = Path.replace

    def look_and_replace(link: Path, target: Path) -> Path:
        seen.append(visible(tmp_path))
        return replace(link, target)

    monkeypatch.setattr(Path, "replace", look_and_replace)
    write_payload(tmp_path, {"a": b"2", "b": b"2"}, 0o644)
    assert seen == [{"a": b"1", "b": b"1"}]


def test_the_same_payload_is_not_written_again(tmp_path: Path) -> None:
    write_payload(tmp_path, {"a": b"1", "sub/b": b"2"}, 0o644)
    before = (tmp_path / "..data").readlink()
    write_payload(tmp_path, {"a": b"1", "sub/b": b"2"}, 0o644)
    assert (tmp_path / "..data").readlink() == before
    assert (tmp_path / "sub" / "b").read_bytes() == b"2"


async def read(path: Path, tail_lines: int | None) -> bytes:
    chunks = logs.read(path, tail_lines=tail_lines, follow=lambda: False)
    return b"".join([chunk async for chunk in chunks])


@pytest.mark.parametrize(
    ("tail", "expected"),
    [(None, b"1\n2\n3"), (0, b""), (1, b"3"), (2, b"2\n3"), (3, b"1\n2\n3"), (9, b"1\n2\n3")],
)
async def test_a_log_is_read_from_its_last_lines(
    tmp_path: Path, tail: int | None, expected: bytes
) -> None:
    path = tmp_path / "0.log"
    path.write_bytes(b"1\n2\n3")
    assert await read(path, tail) == expected


async def test_a_followed_log_ends_with_its_container(tmp_path: Path) -> None:
    path = tmp_path / "0.log"
    path.write_bytes(b"1\n")
    rounds = iter([True, False])

    def runs() -> bool:
        goes_on = next(rounds)
        if not goes_on:
            with path.open("ab") as log:
                log.write(b"2\n")
        return goes_on

    chunks = [chunk async for chunk in logs.read(path, tail_lines=None, follow=runs)]
    assert chunks == [b"1\n", b"2\n"]


def test_the_latest_log_is_that_of_the_last_run(tmp_path: Path) -> None:
    assert logs.latest_log(tmp_path) is None
    for run in (0, 2, 10):
        logs.log_path(tmp_path, run).touch()
    assert logs.latest_log(tmp_path) == tmp_path / "10.log"


def test_last_words_are_short(tmp_path: Path) -> None:
    path = tmp_path / "0.log"
    path.write_text("".join(f"{number}\n" for number in range(1000)))
    words = logs.last_words(path).splitlines()
    assert (len(words), words[-1]) == (80, "999")
    path.write_bytes(b"x" * 5000)
    assert len(logs.last_words(path)) == 2048


def gpu_pod(uid: str, *counts: int, init: tuple[int, ...] = ()) -> dict[str, Any]:
    def containers(prefix: str, wanted: tuple[int, ...]) -> list[dict[str, Any]]:
        return [
            {"name": f"{prefix}{i}", "resources": {"limits": {"nvidia.com/gpu": str(count)}}}
            for i, count in enumerate(wanted)
        ]

    spec = {"containers": containers("c", counts), "initContainers": containers("i", init)}
    return {"metadata": {"uid": uid}, "spec": spec}


def test_containers_of_a_pod_share_its_devices_out() -> None:
    devices = Devices(["GPU-a", "GPU-b", "GPU-c"])
    assert devices.acquire(gpu_pod("p", 1, 2, 0, init=(2,))) == {
        "c0": "GPU-a",
        "c1": "GPU-b,GPU-c",
        "c2": "",
        "i0": "GPU-a,GPU-b",
    }


def test_too_few_devices_means_waiting() -> None:
    devices = Devices(["0", "1"])
    assert devices.acquire(gpu_pod("a", 1)) == {"c0": "0"}
    assert devices.acquire(gpu_pod("b", 2)) is None
    assert devices.acquire(gpu_pod("a", 1)) == {"c0": "0"}
    devices.release("a")
    assert devices.acquire(gpu_pod("b", 2)) == {"c0": "0,1"}


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3))))
def test_no_device_belongs_to_two_pods(steps: list[tuple[int, int]]) -> None:
    devices = Devices(["0", "1", "2"])
    held: dict[str, list[str]] = {}
    for number, count in steps:
        uid = str(number)
        if uid in held:
            del held[uid]
            devices.release(uid)
        elif (share := devices.acquire(gpu_pod(uid, count))) is not None:
            held[uid] = [name for name in share["c0"].split(",") if name]
            assert len(held[uid]) == count
        taken = [name for names in held.values() for name in names]
        assert len(taken) == len(set(taken))
