"""The loss curve of a model card: one panel per stage, drawn without a display."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from latticeforge_trainer.publishing.lineage import Stage

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH_INCHES, DOTS_PER_INCH = 8.0, 150
"""1200 pixels: a card on the Hub is about 600 wide, so the picture stays sharp on dense screens."""

_PANELS_PER_ROW = 3
_ROW_INCHES = 2.8

_RAW, _SMOOTH, _INK = "#b9c6dc", "#1f4e9c", "#444444"


def draw(stages: list[Stage], path: Path) -> bool:
    """Draw the loss of every stage over its optimizer steps into a PNG.

    Args:
        stages: Those without losses are left out.
        path: Where the picture goes.

    Returns:
        Whether there was anything to draw.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415  (0.3 s that a reused step need not pay)

    drawn = [stage for stage in stages if stage.losses]
    if not drawn:
        return False
    columns = min(len(drawn), _PANELS_PER_ROW)
    rows = -(-len(drawn) // columns)
    figure = Figure(figsize=(WIDTH_INCHES, _ROW_INCHES * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, stage in zip(panels, drawn, strict=False):
        _panel(axes, stage)
    for axes in panels[len(drawn) :]:
        axes.remove()
    for axes in panels[::columns]:
        axes.set_ylabel("training loss", color=_INK)
    figure.savefig(path, dpi=DOTS_PER_INCH, metadata={"Software": None})
    return True


def _panel(axes: Axes, stage: Stage) -> None:
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415  (as above)

    steps = [step for step, _ in stage.losses]
    losses = [loss for _, loss in stage.losses]
    few = len(steps) == 1
    axes.plot(steps, losses, color=_RAW, linewidth=1, marker="o" if few else "", label="each step")
    axes.plot(steps, smoothed(losses), color=_SMOOTH, linewidth=1.8, label="moving mean")
    axes.set_title(f"{stage.record.name} · {stage.record.method}", fontsize=10, color=_INK)
    axes.set_xlabel("optimizer step", color=_INK)
    axes.xaxis.set_major_locator(MaxNLocator(nbins="auto", integer=True))
    axes.tick_params(colors=_INK, labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#eeeeee")
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=8, labelcolor=_INK)


def smoothed(values: list[float]) -> list[float]:
    """The centred moving mean over a tenth of the steps; unlike a trailing one it does not lag."""
    reach = len(values) // 20
    return [fmean(values[max(0, i - reach) : i + reach + 1]) for i in range(len(values))]
