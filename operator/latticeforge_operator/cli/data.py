"""`latticeforge data`: the trainer's problem generators on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from latticeforge_operator.cli.errors import CommandError
from latticeforge_trainer.domain.datasets import write_dataset
from latticeforge_trainer.errors import UserError


def write_data(
    kind: Literal["cic", "math"],
    count: int,
    *,
    seed: int,
    split: Literal["train", "heldout"],
    output: Path,
) -> None:
    """Write `count` samples as JSONL and say so.

    Raises:
        CommandError: There are not that many different problems, or the file cannot be written.
    """
    try:
        write_dataset(kind, count, seed, split, output)
    except (UserError, OSError) as error:
        raise CommandError(f"{output}: {error}") from error
    click.echo(f"{output}: {count:,} {kind} samples of the {split} split, seed {seed}")
