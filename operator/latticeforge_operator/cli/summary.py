"""What stands at the end of a run: scores, time per step, cost, and how to load the model."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.text import Text

from latticeforge_operator.api.status import Phase, StepPhase
from latticeforge_operator.cli import wording
from latticeforge_operator.cli.scores import score_table
from latticeforge_operator.cli.stackview import StackView
from latticeforge_trainer.contract import PublishResult


def summarize(view: StackView) -> RenderableType:
    """The end of a run that was told in lines: scores, time and cost, where the model is."""
    scores, found = score_table(view), list(where(view))
    return Group(
        *([Text(), *scores] if scores else []),
        Text(),
        *times(view),
        Text(f"cost {wording.money(view.status, view.limit)}"),
        *([Text(), *found] if found else []),
    )


def times(view: StackView) -> Iterator[Text]:
    """How long the stack took, step by step, and what was reused."""
    status = view.status
    start, end = wording.when(status.started_at), wording.when(status.finished_at)
    steps = [
        (step, wording.elapsed(step, end))
        for step in status.steps
        if step.phase is StepPhase.DONE and end is not None
    ]
    parts = [f"{step.name} {wording.duration(seconds)}" for step, seconds in steps if seconds]
    total = wording.duration((end - start).total_seconds()) if start and end else "not finished"
    yield Text(f"time {total}: {', '.join(parts)}" if parts else f"time {total}")
    yield from reuse(view)


def reuse(view: StackView) -> Iterator[Text]:
    """How many steps were not run again."""
    reused = sum(step.phase is StepPhase.REUSED for step in view.status.steps)
    if reused:
        yield Text(f"{reused} of {len(view.status.steps)} steps reused")


def where(view: StackView) -> Iterator[Text]:
    """Where a finished model is, and how to load it; nothing before."""
    if view.status.phase is Phase.SUCCEEDED:
        yield from (Text(line, no_wrap=True, overflow="ignore") for line in _where(view))


def _where(view: StackView) -> Iterator[str]:
    published = view.status.published
    if published is None:
        artifacts = view.status.stages[-1].model if view.status.stages else []
        yield f"the model stays in the store: {', '.join(artifacts)}"
        return
    place = wording.place(published.url)
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
