"""What stands at the end of a run: scores, time per step, cost, and how to load the model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from latticeforge_operator.api.status import Phase, StepPhase
from latticeforge_operator.cli import wording
from latticeforge_operator.cli.stackview import StackView
from latticeforge_trainer.contract import EvaluateResult, PublishResult, Score


@dataclass(frozen=True)
class _Column:
    """One model of the score table."""

    title: str
    scores: dict[str, Score]


def summarize(view: StackView) -> RenderableType:
    """The end of a run: scores of every model, failed gates, time and cost, where the model is."""
    parts: list[RenderableType] = []
    columns = list(_columns(view))
    if columns:
        parts += [Text(), _score_table(view, columns)]
    parts += [Text(f"✘ {message}", style="red") for message in _failed_gates(view)]
    parts += [Text(), Text(_times(view))]
    reused = sum(step.phase is StepPhase.REUSED for step in view.status.steps)
    if reused:
        parts.append(Text(f"{reused} of {len(view.status.steps)} steps reused"))
    parts += [Text(f"cost {wording.money(view.status, view.limit)}")]
    if view.status.phase is Phase.SUCCEEDED:
        parts += [Text(line, no_wrap=True, overflow="ignore") for line in _where(view)]
    return Group(*parts)


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
            stages.append(_Column(step.name.rpartition("/")[0], _by_suite(result)))
    if base:
        yield _Column("base", base)
    yield from stages


def _by_suite(result: EvaluateResult) -> dict[str, Score]:
    return {score.suite: score for score in result.table[0].scores}


def _score_table(view: StackView, columns: list[_Column]) -> RenderableType:
    passed = {
        (stage.name, score.suite): score.passed
        for stage in view.status.stages
        for score in stage.scores
    }
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("suite")
    table.add_column("n", justify="right")
    for column in columns:
        table.add_column(column.title, no_wrap=True)
    for suite in dict.fromkeys(suite for column in columns for suite in column.scores):
        counts = sorted({c.scores[suite].n for c in columns if suite in c.scores})
        cells = [_cell(c.scores.get(suite), passed.get((c.title, suite))) for c in columns]
        table.add_row(suite, "/".join(map(str, counts)), *cells)
    caption = "Share of held-out problems answered right [95 % interval]; ✔ and ✘ are the gates."
    return Group(table, Text(caption, style="dim"))


def _cell(score: Score | None, passed: bool | None) -> Text:
    if score is None:
        return Text("–", style="dim")
    mark, style = {True: ("  ✔", "green"), False: ("  ✘", "red"), None: ("", "")}[passed]
    figures = f"{score.value:.3f} [{score.low:.2f}, {score.high:.2f}]"
    return Text.assemble(figures, (mark, style))


def _failed_gates(view: StackView) -> Iterator[str]:
    for stage in view.status.stages:
        for score in stage.scores:
            if not score.passed:
                yield f"{stage.name}: {score.message or score.suite}"


def _times(view: StackView) -> str:
    status = view.status
    start, end = wording.when(status.started_at), wording.when(status.finished_at)
    steps = [
        (step, wording.elapsed(step, end))
        for step in status.steps
        if step.phase is StepPhase.DONE and end is not None
    ]
    parts = [f"{step.name} {wording.duration(seconds)}" for step, seconds in steps if seconds]
    total = wording.duration((end - start).total_seconds()) if start and end else "not finished"
    return f"time {total}: {', '.join(parts)}" if parts else f"time {total}"


def _where(view: StackView) -> Iterator[str]:
    published = view.status.published
    if published is None:
        artifacts = view.status.stages[-1].model if view.status.stages else []
        yield f"the model stays in the store: {', '.join(artifacts)}"
        return
    place = wording.place(published.url)
    yield ""
    yield f"published: {place}  ({published.commit[:12]})"
    loader = "AutoPeftModelForCausalLM" if _is_adapter(view) else "AutoModelForCausalLM"
    package = "peft" if _is_adapter(view) else "transformers"
    yield "load it:"
    yield f"    from {package} import {loader}"
    yield f'    model = {loader}.from_pretrained("{place}")'


def _is_adapter(view: StackView) -> bool:
    """Whether an adapter was published: the last stage's model is then base and adapter."""
    published = next(
        (r for s in view.status.steps if isinstance(r := wording.result_of(s), PublishResult)), None
    )
    return published is not None and len(view.status.stages[-1].model) > 1
