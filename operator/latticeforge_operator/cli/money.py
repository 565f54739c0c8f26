"""What a stack costs, as a bar: useful, waiting and lost money, then what is still expected."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal

from rich.console import Group, RenderableType
from rich.text import Text

from latticeforge_operator.api.status import CostStatus
from latticeforge_operator.cli import wording
from latticeforge_operator.cli.fitting import Fitting
from latticeforge_operator.cli.stackview import StackView

_BAR = 24
_REST = ("·", "dim")
_NO_BREAK = "\u00a0"


def money(view: StackView) -> RenderableType:
    """Bar, sentence and legend; each kind has a glyph of its own, for there may be no colour."""
    cost, sentence = view.status.cost, Text(wording.money(view.status, view.limit))
    parts = list(_parts(cost))
    whole = max(Decimal(view.limit or 0), sum((amount for *_, amount in parts), start=Decimal(0)))
    if not whole:
        return sentence
    legend = Text("  ").join(
        # Broken between the kinds only.
        Text.assemble((glyph, style), f" {name} {amount}".replace(" ", _NO_BREAK))
        for name, glyph, style, amount in parts
    )
    bar = _bar(parts, whole)
    beside = Text("  ").join([bar, sentence])
    return Group(Fitting((beside, Group(sentence, bar))), legend)


_Part = tuple[str, str, str, Decimal]
"""Name, glyph, style and amount."""


def _parts(cost: CostStatus) -> Iterator[_Part]:
    yield "useful", "█", "green", Decimal(cost.useful)
    yield "waiting", "▓", "yellow", Decimal(cost.waiting)
    yield "lost", "▒", "red", Decimal(cost.lost)
    if cost.forecast is not None:
        ahead = max(Decimal("0.00"), Decimal(cost.forecast) - Decimal(cost.spent))
        yield "to come", "░", "cyan", ahead


def _bar(parts: list[_Part], whole: Decimal) -> Text:
    """Cut where the running sum is, so that rounding never makes it longer."""
    bar, sum_so_far = Text(), Decimal(0)
    for _, glyph, style, amount in parts:
        sum_so_far += amount
        bar.append(glyph * (round(sum_so_far / whole * _BAR) - len(bar)), style=style)
    glyph, style = _REST
    return bar.append(glyph * (_BAR - len(bar)), style=style)
