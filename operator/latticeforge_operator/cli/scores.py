"""The score table: every model of a stack on every suite, with the gates.

suite   n  base                math                   cic                    gate
json   32  0.000 [0.00, 0.11]  –                      1.000 [0.89, 1.00]  ✔  ≥ 0.8
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from latticeforge_operator.cli import wording
from latticeforge_operator.cli.fitting import Fitting
from latticeforge_operator.cli.stackview import StackView
from latticeforge_trainer.contract import EvaluateResult, Score

_INTERVALS = "Share of held-out problems answered right [95 % interval]; ✔ and ✘ are the gates."
_NARROW = "Share answered right; ✔ and ✘ are the gates."


@dataclass(frozen=True)
class _Column:
    """One model."""

    title: str
    scores: dict[str, Score]


def score_table(view: StackView) -> list[RenderableType]:
    """The table, as wide as there is room, and the gates that were not passed.

    Returns:
        Nothing while nothing was evaluated.
    """
    found = list(_columns(view))
    if not found:
        return []
    wide, bounds, narrow = (
        _table(view, found, intervals=True, gates=True),
        _table(view, found, intervals=True, gates=False),
        _table(view, found, intervals=False, gates=True),
    )
    failed = [Text(f"✘ {message}", style="red") for message in _failed_gates(view)]
    return [Fitting((wide, bounds, narrow)), *failed]


def _columns(view: StackView) -> Iterator[_Column]:
    """The base model's scores, then those of each stage that was evaluated."""
    base: dict[str, Score] = {}
    stages = []
    for step in view.status.steps:
        result = wording.result_of(step)
        if isinstance(result, EvaluateResult):
            for row in result.table[1:]:
                if row.model == "base":
                    base |= {score.suite: score for score in row.scores}
            own = {score.suite: score for score in result.table[0].scores}
            stages.append(_Column(step.name.rpartition("/")[0], own))
    if base:
        yield _Column("base", base)
    yield from stages


def _table(
    view: StackView, found: list[_Column], *, intervals: bool, gates: bool
) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("suite", no_wrap=True)
    table.add_column("n", justify="right", no_wrap=True)
    for column in found:
        table.add_column(column.title, no_wrap=True)
    if gates:
        table.add_column("gate", style="dim")
    passed = {(s.name, score.suite): score.passed for s in view.status.stages for score in s.scores}
    for suite in dict.fromkeys(suite for column in found for suite in column.scores):
        counts = sorted({c.scores[suite].n for c in found if suite in c.scores})
        cells = [
            _cell(c.scores.get(suite), passed.get((c.title, suite)), interval=intervals)
            for c in found
        ]
        asked = [_gate(view, suite)] if gates else []
        table.add_row(suite, "/".join(map(str, counts)), *cells, *asked)
    return Group(table, Text(_INTERVALS if intervals else _NARROW, style="dim"))


def _cell(score: Score | None, passed: bool | None, *, interval: bool) -> Text:
    if score is None:
        return Text("–", style="dim")
    mark, style = {True: ("  ✔", "green"), False: ("  ✘", "red"), None: ("", "")}[passed]
    bounds = f" [{score.low:.2f}, {score.high:.2f}]" if interval else ""
    return Text.assemble(f"{score.value:.3f}{bounds}", (mark, style))


def _gate(view: StackView, suite: str) -> str:
    """What the stages ask of a suite; said once where they ask the same."""
    asked = {s.name: words for s in view.stages for name, words in s.gates if name == suite}
    if len(set(asked.values())) <= 1:
        return next(iter(asked.values()), "")
    return "; ".join(f"{stage} {words}" for stage, words in asked.items())


def _failed_gates(view: StackView) -> Iterator[str]:
    for stage in view.status.stages:
        for score in stage.scores:
            if not score.passed:
                yield f"{stage.name}: {score.message or score.suite}"
