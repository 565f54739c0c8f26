"""The picture of a stack: a pure function of the stack and the time.

demo   Running   57 %   ETA 2m 10s
cic/train: step 12 of 40

./models/base
├── ✔ math  LoRA
│   └── ✔ train         1m 05s  loss 2.100 → 0.900, 40 steps, 1,052 tokens/s
└── ▶ cic  Full
    └── ▶ train         1m 00s  ━━━━━━━          30 % · ETA 2m 20s · loss 0.812

plan   pool h200, 8 GPUs · 1.7 h (1.5 to 2.1) · 48.81 USD (43.10 to 60.30)
cost   ███████░░░░·····  0.42 of 5 USD, about 0.80 in the end
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from latticeforge_operator.api.status import Phase, StepPhase
from latticeforge_operator.cli import wording
from latticeforge_operator.cli.money import money
from latticeforge_operator.cli.placement import placement
from latticeforge_operator.cli.scores import score_table
from latticeforge_operator.cli.stackview import StackEvent, StackView
from latticeforge_operator.cli.summary import reuse, where
from latticeforge_operator.cli.tree import stack_tree

PHASE_STYLES = {Phase.SUCCEEDED: "green", Phase.FAILED: "red", Phase.RUNNING: "cyan"}
OTHER_PHASE = "yellow"
_EVENTS, _EVENTS_COMPACT = 5, 2


def render(
    view: StackView, now: datetime, *, compact: bool = False, notes: tuple[str, ...] = ()
) -> RenderableType:
    """The whole picture.

    Args:
        view: The stack.
        now: The time that durations and ETAs are counted to.
        compact: Whether to leave out what a low screen has no room for.
        notes: Sentences from the command itself, shown last.
    """
    sections: list[list[RenderableType]] = [
        [_header(view, now), *_message(view)],
        [stack_tree(view, now, compact=compact), *reuse(view)],
        score_table(view),
        [_figures(view, compact=compact)],
        list(_events(view, _EVENTS_COMPACT if compact else _EVENTS)),
        [*where(view)],
        [Text(note, style="yellow") for note in notes],
    ]
    first, *rest = (section for section in sections if section)
    return Group(*first, *(part for section in rest for part in (Text(), *section)))


def _header(view: StackView, now: datetime) -> Text:
    status = view.status
    parts = [
        Text(view.name, style="bold"),
        Text(status.phase, style=PHASE_STYLES.get(status.phase, OTHER_PHASE)),
        Text(f"{status.progress.percent} %"),
    ]
    left = wording.stack_remaining(status, now)
    if left is not None and status.phase is Phase.RUNNING:
        parts.append(Text(f"ETA {wording.duration(left)}"))
    start, end = wording.when(status.started_at), wording.when(status.finished_at)
    if start is not None:
        parts.append(Text(f"after {wording.duration(((end or now) - start).total_seconds())}"))
    return Text("   ").join(parts)


def _message(view: StackView) -> Iterator[Text]:
    if view.status.message and not _is_told(view):
        style = "red" if view.status.phase is Phase.FAILED else ""
        yield Text(view.status.message, style=style)
    if not view.current:
        yield Text("the operator has not looked at the latest edit yet", style="yellow")


def _is_told(view: StackView) -> bool:
    """Whether a running step's own line says the same."""
    running = (s for s in view.status.steps if s.phase is StepPhase.RUNNING and not s.meters)
    return view.status.message in {f"{step.name}: {step.message}" for step in running}


def _figures(view: StackView, *, compact: bool) -> RenderableType:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    plan = placement(view)
    if plan:
        table.add_row("plan", Group(*(plan[:1] if compact else plan)))
    table.add_row("cost", money(view))
    return table


def _events(view: StackView, count: int) -> Iterator[RenderableType]:
    if view.unread:
        yield Text(view.unread, style="yellow")
    untold = [event for event in view.events if not _repeats(event, view.status.message)]
    if not untold:
        return
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column()
    for event in untold[-count:]:
        table.add_row(*_event(event))
    yield table


def _repeats(event: StackEvent, message: str) -> bool:
    """Whether an event says what stands on top, but for the name of its step."""
    said = event.message.partition(": ")[2] or event.message
    return bool(said) and said in message


def _event(event: StackEvent) -> tuple[str, Text, Text]:
    at = event.at.astimezone().strftime("%H:%M:%S") if event.at else ""
    times = f" (× {event.count})" if event.count > 1 else ""
    style = "yellow" if event.warning else "dim"
    return at, Text(event.reason, style=style), Text(f"{event.message}{times}")
