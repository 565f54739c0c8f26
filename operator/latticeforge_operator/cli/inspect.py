"""`latticeforge status` and `latticeforge watch`: stacks of any cluster, through KUBECONFIG."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

from rich.console import Console, RenderableType
from rich.table import Table

from latticeforge_operator.cli import wording
from latticeforge_operator.cli.access import Access
from latticeforge_operator.cli.display import open_console, open_display
from latticeforge_operator.cli.follow import follow, read_stack
from latticeforge_operator.cli.outcome import exit_code
from latticeforge_operator.cli.provision import TRAININGS
from latticeforge_operator.cli.stackview import StackView, stack_view
from latticeforge_operator.cli.summary import summarize
from latticeforge_operator.cli.view import render

WATCH_SECONDS = 2.0


def show_status(name: str | None, namespace: str | None) -> None:
    """Print one stack, or a table of all.

    Raises:
        CommandError: There is no cluster, or no such stack.
    """
    asyncio.run(_show_status(open_console(), name, namespace))


def watch_stack(name: str, namespace: str | None) -> int:
    """Follow one stack to its end; returns the exit code.

    Raises:
        CommandError: There is no cluster, or no such stack.
    """
    return asyncio.run(_watch(open_console(), name, namespace))


async def _show_status(console: Console, name: str | None, namespace: str | None) -> None:
    access = await Access.connect()
    try:
        space = namespace or access.namespace
        if name is None:
            listed = await access.get(TRAININGS.format(namespace=space, name="").rstrip("/"))
            views = [stack_view(obj, []) for obj in (listed or {}).get("items") or []]
            console.print(_table(views) if views else f"no StackedTraining in namespace {space}")
            return
        view = await read_stack(access, TRAININGS.format(namespace=space, name=name))
        console.print(render(view, datetime.now(UTC)))
        if view.ended:
            console.print(summarize(view))
    finally:
        await access.aclose()


async def _watch(console: Console, name: str, namespace: str | None) -> int:
    access = await Access.connect()
    try:
        path = TRAININGS.format(namespace=namespace or access.namespace, name=name)
        with open_display(console) as display:
            async for view in follow(access, path, WATCH_SECONDS):
                display.update(view)
        console.print(summarize(view))
        return exit_code(view)
    finally:
        await access.aclose()


def _table(views: list[StackView]) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("name", "phase", "step", "progress", "cost", "message"):
        table.add_column(title)
    for view in views:
        status = view.status
        percent = f"{status.progress.percent} %"
        cost = wording.money(status, view.limit)
        table.add_row(view.name, status.phase, status.stage, percent, cost, status.message)
    return table
