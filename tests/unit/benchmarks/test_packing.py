"""The packing benchmark: both layouts hold the same samples; the figures are what they say."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from benchmarks import packing
from benchmarks.packing import PaddedToLongest, random_samples

from latticeforge_trainer.data.mixing import mixed_epochs
from latticeforge_trainer.data.packed import PackedData
from latticeforge_trainer.data.packing import pack_epoch, write_packed


def test_both_layouts_hold_the_same_tokens(tmp_path: Path) -> None:
    samples = random_samples(60, mean=20, longest=64)
    (order,) = mixed_epochs([len(samples)], [1.0], 1, 0)
    rows = {
        "packed": pack_epoch(order, samples.lengths[order[:, 1]], 64, 0),
        "padded": [one[None] for one in order],
    }
    tokens = {}
    for name, layout in rows.items():
        (tmp_path / name).mkdir()
        write_packed(tmp_path / name, layout, [samples], 64, pad_token=0)
        data = PackedData(tmp_path / name)
        ids = [data.batch([row])["input_ids"][0, : data.lengths[row]] for row in range(len(data))]
        tokens[name] = torch.cat(ids).sort().values
    assert len(rows["packed"]) < len(rows["padded"]) == 60
    assert torch.equal(tokens["packed"], tokens["padded"])
    padded = PaddedToLongest(tmp_path / "padded")
    widths = [int(padded.batch([row, row + 1])["input_ids"].shape[1]) for row in range(0, 60, 2)]
    assert widths == padded.lengths.reshape(-1, 2).max(1).tolist()


def test_the_figures_are_written_and_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(packing, "ENOUGH", 100)
    monkeypatch.setattr(packing, "WARM_UPS", 0)
    shape = {"hidden_size": 192, "intermediate_size": 64, "num_hidden_layers": 1}
    monkeypatch.setitem(packing.SHAPES, "small", shape)
    output = tmp_path / "figures.json"
    arguments = "--length 64 --mean 20 --rows 2 --samples 2 8 --micro-batches 2 --output"
    monkeypatch.setattr(sys, "argv", ["packing", *arguments.split(), str(output)])
    packing.main()
    figures = json.loads(output.read_text())["figures"]
    assert [(row["layout"], row["rows"]) for row in figures] == [
        ("packed", 2),
        ("padded", 2),
        ("padded", 8),
    ]
    packed, *padded = figures
    for row in padded:
        assert row["padding"] > packed["padding"] >= 0
        expected = packed["tokens_per_second"] / row["tokens_per_second"]
        assert row["ratio"] == pytest.approx(expected)
    for row in figures:
        assert row["slowest"] <= row["tokens_per_second"] <= row["fastest"]
    assert capsys.readouterr().out.count("times as fast") == 3
