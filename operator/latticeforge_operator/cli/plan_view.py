"""A plan for people: a table of options, the one that is chosen, and with `--explain` all terms."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from latticeforge_operator.core.planning import (
    Alternative,
    Misfit,
    Option,
    Plan,
    StagePlan,
    words,
)
from latticeforge_trainer.estimate.terms import GIB, Term, total


def render(plan: Plan, *, explain: bool) -> RenderableType:
    """The whole answer.

    Args:
        plan: What was looked at, and what was chosen.
        explain: Whether every term of memory, disk and time is shown.
    """
    return Group(
        _options(plan),
        *_verdict(plan),
        *_alternatives(plan),
        *(_explained(plan) if explain else ()),
        *_sentences("Rests on", plan.assumptions),
    )


def _options(plan: Plan) -> Table:
    per = " per M tokens" if any(option.per_million for option in plan.options) else ""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("", "pool", "GPUs", "GiB per GPU", f"time{per}", f"cost{per}"):
        table.add_column(title, no_wrap=True)
    table.add_column("how", ratio=1)
    for option in plan.options:
        _add_rows(table, option, chosen=option is plan.chosen)
    return table


def _add_rows(table: Table, option: Option, *, chosen: bool) -> None:
    """One row for the stages that train alike; a refused option has one that says why."""
    mark = "✔" if chosen else "✘" if option.refusal else ""
    where = (mark, option.pool.name, str(option.gpus or "–"))
    style = "bold" if chosen else "dim" if option.refusal else ""
    figures = _figures(option)
    if option.refusal or not option.stages:
        why = option.reason or option.refusal or "on CPU nothing is predicted"
        closest = [option.misfit] if option.misfit else option.stages
        table.add_row(*where, _memory(closest), *figures, why, style=style)
        return
    for (how, memory), stages in groupby(
        option.stages, lambda s: (words.strategy(s), _memory([s]))
    ):
        names = ", ".join(stage.stage for stage in stages)
        table.add_row(*where, memory, *figures, f"{names}: {how}", style=style)
        where, figures = ("", "", ""), ("", "")


def _memory(parts: Sequence[StagePlan | Misfit]) -> str:
    """The highest peak."""
    peaks = [(part.memory.reserved / GIB, part.memory.capacity / GIB) for part in parts]
    if not peaks:
        return "–"
    peak, capacity = max(peaks)
    return f"{peak:.1f} of {capacity:.1f}"


def _figures(option: Option) -> tuple[str, str]:
    """Time and money."""
    if not option.works:
        return "–", "–"
    return words.hours(option.seconds.expected), words.cost(option)


def _verdict(plan: Plan) -> Iterator[RenderableType]:
    if plan.chosen is None:
        yield Text("\nNone of these can be taken.", style="bold red")
    if plan.tradeoff:
        yield Text(f"\nTrade-off: {plan.tradeoff}.")
    for warning in plan.warnings:
        yield Text(f"\nWarning: {warning}.", style="yellow")


def _alternatives(plan: Plan) -> Iterator[RenderableType]:
    exact = [other for other in plan.alternatives if not other.lossy]
    lossy = [other for other in plan.alternatives if other.lossy]
    title = "Faster" if plan.chosen else "What would make it fit"
    if plan.chosen is None and not plan.alternatives:
        yield Text("\nNo single change was found that would make it fit.")
    yield from _sentences(title, (_alternative(other) for other in exact))
    yield from _sentences(f"{title}, but another result", (_alternative(o) for o in lossy))


def _alternative(other: Alternative) -> str:
    time, money = _figures(other.option)
    per = " for a million tokens of each stage" if other.option.per_million else ""
    return f"{other.change}: {time}, {money}{per}; {_memory(other.option.stages)} GiB per GPU"


def _sentences(title: str, sentences: Iterable[str]) -> Iterator[RenderableType]:
    lines = list(sentences)
    if lines:
        yield Text(f"\n{title}", style="bold")
        yield Group(*(Text(f"– {line}") for line in lines))


def _explained(plan: Plan) -> Iterator[RenderableType]:
    """The terms of the chosen option, or of the one that the refusal speaks of."""
    option = plan.chosen or next(o for o in plan.options if o.refusal == plan.refusal)
    for stage in option.stages:
        yield from _places(stage)
        yield _step_times(stage)
    if option.misfit:
        yield from _places(option.misfit)
        return
    if option.merge_host:
        yield _terms("host memory of a merge step's pod", option.merge_host)
    yield _terms("disk: the storage volume", option.disk)
    yield _work_times(option)


def _places(part: StagePlan | Misfit) -> Iterator[RenderableType]:
    """What a stage takes of each GPU and of the host."""
    memory = part.memory
    yield _terms(f"{part.stage}: memory of each GPU at its peak", memory.terms)
    yield Text(
        f"allocated {words.gib(memory.allocated)}, reserved with what lies between "
        f"{words.gib(memory.reserved)}, of {words.gib(memory.capacity)} that may be"
    )
    yield _terms(f"{part.stage}: host memory of each pod", part.host)


def _terms(title: str, terms: Iterable[Term]) -> Table:
    shown = list(terms)
    table = _table(title, "GiB")
    for term in shown:
        table.add_row(term.name, f"{term.bytes / GIB:,.1f}", term.why)
    table.add_row("together", f"{total(shown) / GIB:,.1f}", "", style="bold")
    return table


def _step_times(stage: StagePlan) -> Table:
    table = _table(f"{stage.stage}: one optimizer step", "seconds")
    for term in stage.speed.terms:
        table.add_row(term.name, f"{term.seconds:,.2f}", term.why)
    together = f"{stage.speed.seconds_per_step:,.2f}"
    table.add_row("together", together, f"{stage.speed.tokens_per_second:,.0f} tokens/s")
    return table


def _work_times(option: Option) -> Table:
    table = _table("time of every step", "expected")
    for work in option.works:
        held = {0: "on CPU, free", 1: "1 GPU"}.get(work.units, f"{work.units} GPUs")
        table.add_row(work.step, words.hours(work.seconds.expected), f"{held}: {work.why}")
    return table


def _table(title: str, figure: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), title=f"\n{title}", title_justify="left")
    table.add_column("")
    table.add_column(figure, justify="right", no_wrap=True)
    table.add_column("")
    return table
