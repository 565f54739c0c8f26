"""The live picture of a stack: a pure function of the stack and the time.

smollm2-math-cic   Running   42 %   ETA 2m 10s   cost 0.00 USD
math/train: step 12 of 40

 math   LoRA
   ✔ prepare   ━━━━━━━━━━━━━━━━   4s      512 samples, 61,040 tokens
   ▶ train     ━━━━━━━╺━━━━━━━━   1m 05s  42 % · loss 0.812 · 412 tokens/s · ETA 1m 30s
   ○ merge
"""

from __future__ import annotations

from datetime import datetime
from itertools import groupby

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from latticeforge_operator.api.status import Phase, StepPhase, StepStatus
from latticeforge_operator.cli import wording
from latticeforge_operator.cli.stackview import StackEvent, StackView

ICONS = {
    StepPhase.PENDING: ("○", "dim"),
    StepPhase.RUNNING: ("▶", "bold cyan"),
    StepPhase.DONE: ("✔", "green"),
    StepPhase.REUSED: ("↺", "green"),
    StepPhase.FAILED: ("✘", "bold red"),
}
_PHASE_STYLES = {Phase.SUCCEEDED: "green", Phase.FAILED: "red", Phase.RUNNING: "cyan"}
_EVENTS_SHOWN = 4
_BAR_WIDTH = 16


def render(view: StackView, now: datetime, *, notes: tuple[str, ...] = ()) -> RenderableType:
    """The whole picture.

    Args:
        view: The stack.
        now: The time that durations and ETAs are counted to.
        notes: Sentences from the command itself, shown last.
    """
    parts: list[RenderableType] = [_header(view, now)]
    if view.status.message:
        parts.append(Text(view.status.message))
    parts += [Text(), _steps(view, now)]
    if view.events:
        parts += [Text(), _events(view.events[-_EVENTS_SHOWN:])]
    parts += [Text(note, style="yellow") for note in notes]
    return Group(*parts)


def _header(view: StackView, now: datetime) -> Text:
    status = view.status
    parts = [
        Text(view.name, style="bold"),
        Text(status.phase, style=_PHASE_STYLES.get(status.phase, "yellow")),
        Text(f"{status.progress.percent} %"),
    ]
    left = wording.stack_remaining(status, now)
    if left is not None and status.phase is Phase.RUNNING:
        parts.append(Text(f"ETA {wording.duration(left)}"))
    parts.append(Text(f"cost {wording.money(status, view.limit)}"))
    return Text("   ").join(parts)


def _steps(view: StackView, now: datetime) -> RenderableType:
    methods = dict(view.methods)
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(width=_BAR_WIDTH, no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    for stage, steps in groupby(_by_stage(view), key=_stage_of):
        if stage:
            table.add_row(Text.assemble((stage, "bold"), f"  {methods.get(stage, '')}"))
        for step in steps:
            table.add_row(*_step_row(step, now))
    return table


def _stage_of(step: StepStatus) -> str:
    return step.name.rpartition("/")[0]


def _by_stage(view: StackView) -> list[StepStatus]:
    """Steps grouped by stage in the stack's order; publish comes last."""
    order = [name for name, _ in view.methods]
    last = len(order)
    return sorted(
        view.status.steps,
        key=lambda s: order.index(_stage_of(s)) if _stage_of(s) in order else last,
    )


def _step_row(step: StepStatus, now: datetime) -> tuple[RenderableType, ...]:
    icon, style = ICONS[step.phase]
    stage, _, kind = step.name.rpartition("/")
    name = Text(f"{'  ' if stage else ''}{icon} {kind}", style=style)
    seconds = wording.elapsed(step, now)
    spent = "" if seconds is None or step.phase is StepPhase.REUSED else wording.duration(seconds)
    return name, _bar(step), Text(spent, style="dim"), Text(_details(step, now))


def _bar(step: StepStatus) -> RenderableType:
    if step.phase is StepPhase.PENDING:
        return Text()
    complete = step.phase in {StepPhase.DONE, StepPhase.REUSED}
    return ProgressBar(total=1, completed=1 if complete else step.fraction, width=_BAR_WIDTH)


def _details(step: StepStatus, now: datetime) -> str:
    parts = [f"attempt {len(step.attempts)}"] if len(step.attempts) > 1 else []
    if step.phase is StepPhase.REUSED:
        parts.append("reused")
    if step.phase is StepPhase.RUNNING:
        parts.append(_running(step, now))
    elif step.phase is StepPhase.FAILED:
        parts.append(step.message)
    else:
        parts.append(wording.result_line(step))
    return " · ".join(part for part in parts if part)


def _running(step: StepStatus, now: datetime) -> str:
    parts = [wording.percent(step.fraction), wording.meters(step) or step.message]
    left = wording.remaining(step, now)
    if left is not None:
        parts.append(f"ETA {wording.duration(left)}")
    return " · ".join(part for part in parts if part)


def _events(events: tuple[StackEvent, ...]) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    for event in events:
        at = event.at.astimezone().strftime("%H:%M:%S") if event.at else ""
        style = "yellow" if event.warning else "dim"
        table.add_row(Text(at, style="dim"), Text(event.reason, style=style), Text(event.message))
    return table
