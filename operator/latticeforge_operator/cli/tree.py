"""A stack as a tree: the base, its stages, their steps, and the attempts that failed.

./models/base
├── ✔ math  LoRA  2m 00s
└── ▶ cic  Full
    ├── ▶ train      1m 00s  ━━━━━━╸━━━━━━━━━  30 % · ETA 2m 20s · loss 0.812 · 412 tokens/s
    │   └── ✘ attempt 1  OutOfMemory: GPU memory ran out → half the micro-batch
    └── ○ evaluate
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from typing import TypeAlias

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from latticeforge_operator.api.status import Attempt, Phase, StepPhase, StepStatus
from latticeforge_operator.cli import wording
from latticeforge_operator.cli.fitting import Fitting
from latticeforge_operator.cli.stackview import StackView, Stage

Clock: TypeAlias = datetime | None
"""The time that durations are counted to; None: the stack stands still."""

_MARKS = {
    StepPhase.PENDING: ("○", "dim"),
    StepPhase.RUNNING: ("▶", "bold cyan"),
    StepPhase.DONE: ("✔", "green"),
    StepPhase.REUSED: ("↺", "green"),
    StepPhase.FAILED: ("✘", "bold red"),
}
_PAUSED = ("‖", "yellow")
_MOVING = frozenset({Phase.PENDING, Phase.RUNNING})
"""Phases of a stack in which a step that runs does; in others it is paused."""
_COMPLETE = frozenset({StepPhase.DONE, StepPhase.REUSED})
_GUIDE = 4
"""Columns of one level of a tree."""
_STEP = len("✔ evaluate")
_TIME = len("12m 05s")
_BAR = 24
_ATTEMPTS_SHOWN = 3
_NO_FAILURE = frozenset({None, "Done"})


def stack_tree(view: StackView, now: datetime, *, compact: bool) -> RenderableType:
    """The tree.

    Args:
        view: The stack.
        now: The time that durations are counted to.
        compact: Whether a stage that is done takes one line.
    """
    clock = now if view.status.phase in _MOVING else None
    tree = Tree(Text(view.base), guide_style="dim")
    stages = {stage.name for stage in view.stages}
    for stage in view.stages:
        _add_stage(tree, view, stage, clock, compact=compact)
    for step in view.status.steps:
        if step.name.rpartition("/")[0] not in stages:
            _add_step(tree, step, clock, _STEP + _GUIDE, _destination(view))
    return tree


def _destination(view: StackView) -> str:
    return f"→ {view.destination}" if view.destination else ""


def _add_stage(tree: Tree, view: StackView, stage: Stage, now: Clock, *, compact: bool) -> None:
    steps = view.steps_of(stage.name)
    phase = _phase(steps)
    label = Text.assemble(_mark(phase, now), " ", (stage.name, "bold"), f"  {stage.method}")
    node = tree.add(label)
    if compact and phase in _COMPLETE:
        seconds = sum(wording.elapsed(step, now) or 0 for step in steps)
        label.append(f"  {wording.duration(seconds)}", style="dim")
        return
    for step in steps:
        _add_step(node, step, now, _STEP)


def _phase(steps: list[StepStatus]) -> StepPhase:
    """Where a stage stands, by its steps: an early step may be done long before the next begins."""
    phases = {step.phase for step in steps}
    for decisive in (StepPhase.FAILED, StepPhase.RUNNING):
        if decisive in phases:
            return decisive
    if not phases or StepPhase.PENDING in phases:
        return StepPhase.PENDING
    return StepPhase.REUSED if phases == {StepPhase.REUSED} else StepPhase.DONE


def _mark(phase: StepPhase, now: Clock) -> tuple[str, str]:
    return _PAUSED if phase is StepPhase.RUNNING and now is None else _MARKS[phase]


def _add_step(parent: Tree, step: StepStatus, now: Clock, width: int, plan: str = "") -> None:
    mark, style = _mark(step.phase, now)
    name = Text(f"{mark} {step.name.rpartition('/')[2]}", style=style)
    if step.phase is StepPhase.PENDING:
        node = parent.add(Text("  ").join([name, *([Text(plan, style="dim")] if plan else [])]))
    else:
        node = parent.add(_row(name, width, step, now))
    for line in _failures(step):
        node.add(line)


def _row(name: Text, width: int, step: StepStatus, now: Clock) -> RenderableType:
    row = Table.grid(padding=(0, 2, 0, 0))
    row.add_column(width=width, no_wrap=True)
    row.add_column(width=_TIME, justify="right", no_wrap=True)
    row.add_column(overflow="fold")
    seconds = None if step.phase is StepPhase.REUSED else wording.elapsed(step, now)
    spent = "" if seconds is None else wording.duration(seconds)
    row.add_row(name, Text(spent, style="dim"), _details(step, now))
    return row


def _details(step: StepStatus, now: Clock) -> RenderableType:
    if step.phase is StepPhase.RUNNING:
        return _running(step, now)
    if step.phase is StepPhase.FAILED:
        told = bool(step.attempts) and step.message == step.attempts[-1].reason
        return Text("" if told else step.message, style="red")
    reused = ["reused"] if step.phase is StepPhase.REUSED else []
    return Text(" · ".join(filter(None, [*reused, wording.result_line(step)])))


def _running(step: StepStatus, now: Clock) -> RenderableType:
    """A bar with what is known of it; below each other where there is little room."""
    left = wording.remaining(step, now)
    share = wording.percent(step.fraction)
    eta = share if left is None else f"{share} · ETA {wording.duration(left)}"
    doing = wording.meters(step) or step.message
    bar = ProgressBar(total=1, completed=step.fraction, width=_BAR)
    if now is None:
        return _beside(bar, share)
    if not step.fraction:
        return Text(doing)
    return Fitting(
        (
            _beside(bar, f"{eta} · {doing}" if doing else eta),
            Group(_beside(bar, eta), Text(doing)),
        )
    )


def _beside(bar: ProgressBar, text: str) -> Table:
    line = Table.grid(padding=(0, 2, 0, 0))
    line.add_column()
    line.add_column(no_wrap=True)
    line.add_row(bar, Text(text))
    return line


def _failures(step: StepStatus) -> Iterator[Text]:
    """The attempts that had to be made again: the last ones, and how many there were before."""
    failed = [attempt for attempt in step.attempts if attempt.outcome not in _NO_FAILURE]
    earlier, shown = failed[:-_ATTEMPTS_SHOWN], failed[-_ATTEMPTS_SHOWN:]
    if earlier:
        counts = Counter(attempt.outcome for attempt in earlier)
        kinds = ", ".join(f"{count} × {outcome}" for outcome, count in counts.items())
        yield Text(f"earlier attempts: {kinds}", style="dim")
    yield from map(_failure, shown)


def _failure(attempt: Attempt) -> Text:
    style = "yellow" if attempt.counted else "dim"
    reason = f": {attempt.reason}" if attempt.reason else ""
    remedy = f" → {attempt.remedy}" if attempt.remedy else ""
    number = f"attempt {attempt.number + 1}  "
    return Text.assemble(number, (attempt.outcome or "", style), reason, (remedy, "bold"))
