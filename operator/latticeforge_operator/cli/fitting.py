"""Pictures that come in several widths."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement

_ANY_WIDTH = 10_000


@dataclass(frozen=True)
class Fitting:
    """The first of several renderables that needs no more columns than there are, else the last.

    Attributes:
        choices: Widest first.
    """

    choices: tuple[RenderableType, ...]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Choose."""
        fits = (c for c in self.choices if columns(console, c) <= options.max_width)
        yield next(fits, self.choices[-1])

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """As the widest."""
        return console.measure(self.choices[0], options=options)


def columns(console: Console, picture: RenderableType) -> int:
    """How many a picture takes where there are enough."""
    return console.measure(picture, options=console.options.update(width=_ANY_WIDTH)).maximum
