"""Where a followed stack is shown: a live picture in a terminal, plain lines anywhere else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live

from latticeforge_operator.cli import plain, wording
from latticeforge_operator.cli.stackview import StackView
from latticeforge_operator.cli.summary import summarize
from latticeforge_operator.cli.view import render

_NOTES_KEPT = 3
_LOG_WIDTH = 100
"""Columns of tables where there is no terminal to measure."""


class Display(Protocol):
    """Shows a stack while it is followed."""

    def update(self, view: StackView) -> None:
        """Show the stack as it is now."""

    def tell(self, sentence: str) -> None:
        """Say something that is not part of the stack."""

    def closing(self, view: StackView) -> RenderableType:
        """What of a stack that has ended was not shown yet."""


class PlainDisplay:
    """One line per change, each with the time since the display was opened."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._start = datetime.now(UTC)
        self._last: StackView | None = None

    def update(self, view: StackView) -> None:
        """Print what has changed since the last view."""
        for line in plain.changes(self._last, view, datetime.now(UTC)):
            self.tell(line)
        self._last = view

    def tell(self, sentence: str) -> None:
        """Print a line."""
        since = (datetime.now(UTC) - self._start).total_seconds()
        self._console.print(
            f"{wording.duration(since):>7}  {sentence}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )

    def closing(self, view: StackView) -> RenderableType:
        """The summary."""
        return summarize(view)


class LiveDisplay:
    """The picture of `view.render`, redrawn in place, and left whole at the end."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._view: StackView | None = None
        self._notes: tuple[str, ...] = ()

    def update(self, view: StackView) -> None:
        """Redraw the picture."""
        self._view = view
        self._draw()

    def tell(self, sentence: str) -> None:
        """Show a sentence below the picture."""
        self._notes = (*self._notes, sentence)[-_NOTES_KEPT:]
        self._draw()

    def closing(self, view: StackView) -> RenderableType:  # noqa: ARG002  (it is all in the picture)
        """Nothing."""
        return Group()

    def _draw(self) -> None:
        if self._view is None:
            self._live.update("\n".join(self._notes), refresh=True)
        else:
            self._live.update(self._picture(self._view), refresh=True)

    def _picture(self, view: StackView) -> RenderableType:
        """As much as the screen is high; the last one may scroll."""
        console, now = self._live.console, datetime.now(UTC)
        whole = render(view, now, notes=self._notes)
        if view.ended or len(console.render_lines(whole, pad=False)) < console.height:
            return whole
        return render(view, now, compact=True, notes=self._notes)


def open_console() -> Console:
    """Standard output, with room for a score table even in a log file."""
    console = Console()
    return console if console.is_terminal else Console(width=_LOG_WIDTH)


@contextmanager
def open_display(console: Console) -> Iterator[Display]:
    """The display that fits a console, until the block ends."""
    if not console.is_terminal or console.is_dumb_terminal:
        yield PlainDisplay(console)
        return
    with Live(console=console, auto_refresh=False, vertical_overflow="ellipsis") as live:
        yield LiveDisplay(live)
