"""The loss curve is a picture of the right size that shows the losses."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.publishing.samples import make_config

from latticeforge_trainer.artifacts import Store
from latticeforge_trainer.publishing import curve
from latticeforge_trainer.publishing.lineage import Stage, gather


@pytest.fixture
def stages(tmp_path: Path) -> list[Stage]:
    store = Store(tmp_path / "store")
    return gather(make_config(store, "me/elle"), store).stages


def size(picture: Path) -> tuple[int, int]:
    """Width and height from a PNG's header."""
    content = picture.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", content[16:24])
    return width, height


@pytest.mark.parametrize(("count", "rows"), [(1, 1), (2, 1), (3, 1), (4, 2)])
def test_panels_fill_a_card(tmp_path: Path, stages: list[Stage], count: int, rows: int) -> None:
    assert curve.draw((stages * 2)[:count], tmp_path / "curve.png")
    assert size(tmp_path / "curve.png") == (1200, 420 * rows)


def test_without_losses_there_is_no_picture(tmp_path: Path, stages: list[Stage]) -> None:
    assert not curve.draw([replace(stages[0], losses=[])], tmp_path / "curve.png")
    assert not (tmp_path / "curve.png").exists()


def test_a_single_step_is_drawn(tmp_path: Path, stages: list[Stage]) -> None:
    assert curve.draw([replace(stages[0], losses=[(1, 2.5)])], tmp_path / "curve.png")
    assert size(tmp_path / "curve.png") == (1200, 420)


def test_the_same_losses_draw_the_same_bytes(tmp_path: Path, stages: list[Stage]) -> None:
    for name in ("1.png", "2.png"):
        curve.draw(stages, tmp_path / name)
    assert (tmp_path / "1.png").read_bytes() == (tmp_path / "2.png").read_bytes()


def test_the_mean_is_centred() -> None:
    rising = [float(i) for i in range(100)]
    assert curve.smoothed(rising)[5:95] == rising[5:95]
    assert curve.smoothed([1.0]) == [1.0]


def test_the_mean_is_over_a_tenth_of_the_steps() -> None:
    smooth = curve.smoothed([0.0] * 50 + [1.0] * 50)
    assert smooth[44] == 0 < smooth[45] < smooth[54] < smooth[55] == 1
