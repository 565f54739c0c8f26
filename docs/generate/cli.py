"""docs/reference/cli.md: every command of `latticeforge`, as it is declared."""

from __future__ import annotations

from collections.abc import Iterator
from inspect import cleandoc

import click
from docs.generate.markdown import code, page, table

from latticeforge_operator.cli.commands import group

_INTRODUCTION = """\
`latticeforge --help` and `latticeforge COMMAND --help` say the same. Commands that speak to a
cluster take it from `KUBECONFIG`. Exit codes: 0 when it went well, 1 when it did not (one sentence
on standard error says why), 2 for wrong options, 130 after Ctrl-C."""


def text() -> str:
    """The page."""
    return page("Commands", _INTRODUCTION, *_command("latticeforge", group))


def _command(path: str, command: click.Command) -> Iterator[str]:
    """The section of a command; of a group those of its commands."""
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            yield from _command(f"{path} {name}", below)
        return
    context = click.Context(command, info_name=path)
    yield f"## {path}"
    yield cleandoc(command.help or "")
    yield f"```text\n{command.get_usage(context).removeprefix('Usage: ')}\n```"
    yield table(("option", "meaning"), _options(command, context))
    yield f"```sh\n{_example(command)}\n```"


def _options(command: click.Command, context: click.Context) -> Iterator[tuple[str, str]]:
    for param in command.params:
        record = param.get_help_record(context)
        if record is not None and isinstance(param, click.Option):
            yield code(record[0]), record[1]


def _example(command: click.Command) -> str:
    return (command.epilog or "").rpartition("\n")[2].strip()
