"""Stacks as a table, one line each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from latticeforge_operator.api.status import Phase
from latticeforge_operator.cli import wording
from latticeforge_operator.cli.fitting import Fitting
from latticeforge_operator.cli.stackview import StackView
from latticeforge_operator.cli.view import OTHER_PHASE, PHASE_STYLES

_Cell = Callable[[StackView, datetime], str | Text]


def stack_table(views: Sequence[StackView], now: datetime, *, namespaces: bool) -> RenderableType:
    """The table; where there is little room, without what is least missed.

    Args:
        views: The stacks.
        now: The time that ages and ETAs are counted to.
        namespaces: Whether they are of several.
    """
    tables = []
    shown = [title for title in _CELLS if namespaces or title != "NAMESPACE"]
    for dropped in ("", *_DROPPED):
        shown = [title for title in shown if title != dropped]
        tables.append(_table(views, now, shown))
    return Fitting(tuple(tables))


def _table(views: Sequence[StackView], now: datetime, titles: Sequence[str]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    for title in titles:
        table.add_column(title, no_wrap=True)
    for view in views:
        table.add_row(*(_CELLS[title](view, now) for title in titles))
    return table


def _phase(view: StackView, _now: datetime) -> Text:
    phase = view.status.phase
    return Text(phase, style=PHASE_STYLES.get(phase, OTHER_PHASE))


def _eta(view: StackView, now: datetime) -> str:
    left = wording.stack_remaining(view.status, now)
    return "" if left is None or view.status.phase is not Phase.RUNNING else wording.duration(left)


def _cost(view: StackView, _now: datetime) -> str:
    cost = view.status.cost
    return f"{cost.spent}{f' of {view.limit}' if view.limit else ''} {cost.currency}"


def _age(view: StackView, now: datetime) -> str:
    return wording.duration((now - view.created).total_seconds()) if view.created else ""


_CELLS: dict[str, _Cell] = {
    "NAMESPACE": lambda view, _: view.namespace,
    "NAME": lambda view, _: view.name,
    "PHASE": _phase,
    "STEP": lambda view, _: view.status.stage,
    "PROGRESS": lambda view, _: f"{view.status.progress.percent} %",
    "ETA": _eta,
    "COST": _cost,
    "AGE": _age,
    "MESSAGE": lambda view, _: view.status.message,
}
_DROPPED = ("MESSAGE", "AGE", "STEP", "ETA")
"""In this order."""
