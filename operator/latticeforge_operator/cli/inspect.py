"""`latticeforge status` and `latticeforge watch`: stacks of any cluster, through KUBECONFIG."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Literal

import click
from rich.console import Console

from latticeforge_operator.api import API_VERSION
from latticeforge_operator.cli.access import Access
from latticeforge_operator.cli.crds import to_yaml
from latticeforge_operator.cli.display import open_console, open_display
from latticeforge_operator.cli.errors import CommandError
from latticeforge_operator.cli.fitting import columns
from latticeforge_operator.cli.follow import follow, read_object, read_stack
from latticeforge_operator.cli.outcome import EXIT_INTERRUPTED, exit_code
from latticeforge_operator.cli.provision import TRAININGS
from latticeforge_operator.cli.stacktable import stack_table
from latticeforge_operator.cli.stackview import stack_view
from latticeforge_operator.cli.view import render

Output = Literal["table", "json", "yaml"]

WATCH_SECONDS = 2.0
_ALL = f"/apis/{API_VERSION}/stackedtrainings"
_OF_NAMESPACE = f"/apis/{API_VERSION}/namespaces/{{}}/stackedtrainings"


def show_stack(name: str, namespace: str | None, output: Output) -> None:
    """Print one stack.

    Raises:
        CommandError: There is no cluster, or no such stack.
    """
    asyncio.run(_show_stack(name, namespace, output))


def list_stacks(namespace: str | None, output: Output, *, everywhere: bool) -> None:
    """Print all stacks of a namespace, or of all.

    Raises:
        CommandError: There is no cluster, or it has no stacks at all.
    """
    asyncio.run(_list_stacks(namespace, output, everywhere=everywhere))


def watch_stack(name: str, namespace: str | None) -> int:
    """Follow one stack to its end; returns the exit code.

    Raises:
        CommandError: There is no cluster, or no such stack.
    """
    try:
        return asyncio.run(_watch(name, namespace))
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


async def _show_stack(name: str, namespace: str | None, output: Output) -> None:
    async with _connected() as access:
        path = TRAININGS.format(namespace=namespace or access.namespace, name=name)
        if output != "table":
            click.echo(_PROGRAMS[output](_without_managers(await read_object(access, path))))
            return
        view = await read_stack(access, path)
    open_console().print(render(view, datetime.now(UTC)))


async def _list_stacks(namespace: str | None, output: Output, *, everywhere: bool) -> None:
    async with _connected() as access:
        space = namespace or access.namespace
        listed = await access.get(_ALL if everywhere else _OF_NAMESPACE.format(space))
    if listed is None:
        raise CommandError("the cluster knows no StackedTraining; install LatticeForge's chart")
    items = [{"apiVersion": API_VERSION, "kind": "StackedTraining", **i} for i in listed["items"]]
    if output != "table":
        whole = {"apiVersion": "v1", "kind": "List", "items": list(map(_without_managers, items))}
        click.echo(_PROGRAMS[output](whole))
    elif items:
        _print_table(open_console(), items, namespaces=everywhere)
    else:
        where = "any namespace" if everywhere else f"namespace {space}"
        click.echo(f"no StackedTraining in {where}")


def _print_table(console: Console, items: Sequence[dict[str, Any]], *, namespaces: bool) -> None:
    views = [stack_view(item, []) for item in items]
    table = stack_table(views, datetime.now(UTC), namespaces=namespaces)
    if not console.is_terminal:
        console.width = columns(console, table)  # what reads lines from a pipe needs whole ones
    console.print(table)


async def _watch(name: str, namespace: str | None) -> int:
    console = open_console()
    async with _connected() as access:
        path = TRAININGS.format(namespace=namespace or access.namespace, name=name)
        with open_display(console) as display:
            async for view in follow(access, path, WATCH_SECONDS, display.tell):
                display.update(view)
    console.print(display.closing(view), crop=False)
    return exit_code(view)


@asynccontextmanager
async def _connected() -> AsyncIterator[Access]:
    access = await Access.connect()
    try:
        yield access
    finally:
        await access.aclose()


def _without_managers(obj: dict[str, Any]) -> dict[str, Any]:
    """As kubectl prints it."""
    metadata = {key: value for key, value in obj["metadata"].items() if key != "managedFields"}
    return {**obj, "metadata": metadata}


def _as_json(obj: dict[str, Any]) -> str:
    return json.dumps(obj, indent=4, ensure_ascii=False)


def _as_yaml(obj: dict[str, Any]) -> str:
    return to_yaml(obj).rstrip("\n")


_PROGRAMS = {"json": _as_json, "yaml": _as_yaml}
