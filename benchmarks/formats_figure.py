"""Draws what `benchmarks.formats` has measured: the loss over each format, and how far apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

Curves = Sequence[Sequence[float]]
"""The losses of every step, of each seed."""

COLOURS = {"bf16": "#1f4e9c", "FP8": "#c2571a", "NF4": "#2e8b57"}
GREY, INK = "#999999", "#444444"


def draw(losses: Mapping[str, Curves], apart: Mapping[str, Curves], path: Path) -> None:
    """Write a PNG of two panels, each line a mean over seeds.

    Args:
        losses: Of each format.
        apart: Absolute differences from bf16, by what is compared with it.
        path: Where the picture goes.
    """
    figure = Figure(figsize=(8.0, 3.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, curves in ((left, losses), (right, apart)):
        for name, lines in curves.items():
            means = [fmean(step) for step in zip(*lines, strict=True)]
            axes.plot(
                range(1, len(means) + 1), means, color=COLOURS.get(name, GREY), lw=1.4, label=name
            )
        _dress(axes)
    right.set_yscale("log")
    left.set_title("loss", fontsize=10, color=INK)
    right.set_title("|loss - loss of bf16|", fontsize=10, color=INK)
    figure.savefig(path, dpi=90, metadata={"Software": None})


def _dress(axes: Any) -> None:
    axes.set_xlabel("optimizer step", color=INK)
    axes.tick_params(colors=INK, labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#eeeeee")
    axes.legend(frameon=False, fontsize=8, labelcolor=INK)
