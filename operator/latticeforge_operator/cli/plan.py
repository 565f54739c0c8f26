"""`latticeforge plan`: does it fit, how long, how many dollars; before anything runs.

Reads the stack, the pools and the base's `config.json`, and prints what the operator would choose.
Nothing is started, and with `--config` and pools in a file nothing is asked of any network.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import click

from latticeforge_operator.api import GPUPool, StackedTrainingSpec
from latticeforge_operator.cli.base_config import find_config
from latticeforge_operator.cli.data_size import stage_data
from latticeforge_operator.cli.errors import CommandError
from latticeforge_operator.cli.stackfile import StackFile, load_pools, load_stack
from latticeforge_operator.core.planning import (
    Plan,
    PlanError,
    is_predictable,
    plan_document,
    survey,
)
from latticeforge_trainer.estimate.base_model import BaseModel, read_base_model
from latticeforge_trainer.estimate.errors import EstimateError

Output = Literal["table", "json", "yaml"]


def print_plan(
    path: Path,
    *,
    pools: Path | None,
    config: Path | None,
    tokens: Sequence[str],
    volume: Path,
    output: Output,
    explain: bool,
) -> int:
    """Plan the stack in a file and print the plan; returns the exit code: 1 if it is refused.

    Args:
        path: The stack's file.
        pools: A file with GPUPools; None: those in the stack's file, else in the cluster.
        config: The base's `config.json`, or the folder that holds it.
        tokens: Tokens of one epoch: a number, or `STAGE=number`.
        volume: Where relative paths of the spec start.
        output: As what to print it.
        explain: Whether to show every term.

    Raises:
        CommandError: The file is not valid, or something that is needed cannot be had.
    """
    file = load_stack(path, None)
    spec = file.training.spec
    offered = find_pools(file, pools)
    try:
        model = _model(spec, offered, config, volume)
        plan = survey(spec, offered, model, data=stage_data(spec, tokens, volume))
    except PlanError as error:
        raise CommandError(str(error)) from error
    _PRINT[output](plan, explain)
    return 0 if plan.chosen else 1


def _model(
    spec: StackedTrainingSpec, pools: Sequence[GPUPool], config: Path | None, volume: Path
) -> BaseModel | None:
    """The base; None where nothing is predicted from it."""
    if not is_predictable(spec, pools):
        return None
    try:
        return read_base_model(find_config(spec.base, config, volume))
    except EstimateError as error:
        raise CommandError(f"{spec.base.model}: {error}") from error


def find_pools(file: StackFile, named: Path | None) -> list[GPUPool]:
    """The pools of the file that is named, else of the stack's file, else of the cluster.

    Raises:
        CommandError: There are none to be had.
    """
    manifests = load_pools(named) if named is not None else file.pools
    return [GPUPool.from_object(manifest) for manifest in manifests or _in_cluster()]


def _in_cluster() -> list[dict[str, Any]]:
    from latticeforge_operator.cli.cluster_pools import list_pools  # noqa: PLC0415  (half a second)

    return list_pools()


def _print_table(plan: Plan, explain: bool) -> None:
    from latticeforge_operator.cli.display import open_console  # noqa: PLC0415  (for people alone)
    from latticeforge_operator.cli.plan_view import render  # noqa: PLC0415

    open_console().print(render(plan, explain=explain), highlight=False)


def _print_json(plan: Plan, _explain: bool) -> None:
    click.echo(json.dumps(plan_document(plan), indent=2, ensure_ascii=False))


def _print_yaml(plan: Plan, _explain: bool) -> None:
    from latticeforge_operator.cli.crds import to_yaml  # noqa: PLC0415  (builds the schemas)

    click.echo(to_yaml(plan_document(plan)), nl=False)


_PRINT = {"table": _print_table, "json": _print_json, "yaml": _print_yaml}
