"""One step of a stack: `python -m latticeforge_trainer STEP --config FILE --store DIR`.

Builds, runs, reports, and ends with a code of `latticeforge_trainer.contract.ExitCode`. Heavy
imports happen inside the step that needs them, and only after the store has been asked whether the
result exists already.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click
from pydantic import TypeAdapter, ValidationError

from latticeforge_trainer.artifacts import Store
from latticeforge_trainer.contract import ExitCode, StepConfig, StepKind, StepState
from latticeforge_trainer.errors import Interrupted, StepError, UserError
from latticeforge_trainer.progress import Reporter, sink_from_environment

if TYPE_CHECKING:
    from latticeforge_trainer.steps import Step

log = logging.getLogger("latticeforge_trainer")


def load_config(path: Path, step: StepKind) -> StepConfig:
    """Read and check a step's config.

    Raises:
        UserError: The file is missing, no valid config, or meant for another step.
    """
    try:
        config: StepConfig = TypeAdapter(StepConfig).validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"--config {path}: {where}: {first['msg']}") from error
    if config.step != step:
        raise UserError(f"--config {path} is for step {config.step}, not {step}")
    return config


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise Interrupted("the step was asked to stop and will start again from where it was")


@contextmanager
def _undisturbed() -> Iterator[None]:
    """In the block, SIGTERM is ignored: a step that has ended cannot be stopped any more."""
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run_step(config: StepConfig, store: Store, reporter: Reporter) -> ExitCode:
    """Run one step to its end, reporting it.

    Returns:
        The exit code; an unexpected exception is raised as it is after being reported.
    """
    step: Step = importlib.import_module(f"latticeforge_trainer.steps.{config.step}")
    try:
        result, reused = step.run(config, store, reporter)
        reporter.done(f"{config.step} is done", result, reused=reused)
    except StepError as error:
        log.error("%s", error)  # noqa: TRY400  (a sentence for its reader, not a traceback)
        interrupted = isinstance(error, Interrupted)
        state = StepState.INTERRUPTED if interrupted else StepState.FAILED
        with _undisturbed():
            reporter.ended(state, str(error), error.exit_code)
        return error.exit_code
    except Exception as error:
        with _undisturbed():
            reporter.ended(StepState.FAILED, f"{type(error).__name__}: {error}"[:1000], 1)
        raise
    return ExitCode.DONE


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("step", type=click.Choice([kind.value for kind in StepKind]))
@click.option("--config", type=click.Path(path_type=Path), required=True, help="StepConfig JSON.")
@click.option(
    "--store",
    "root",
    type=click.Path(path_type=Path, file_okay=False),
    default=lambda: os.environ.get("LATTICEFORGE_STORE", "."),
    help="Root of the storage volume; default: $LATTICEFORGE_STORE, or the current folder.",
)
def main(step: str, config: Path, root: Path) -> None:
    """Run one STEP of a stack."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        parsed = load_config(config, StepKind(step))
    except UserError as error:
        click.echo(f"latticeforge-train: {error}", err=True)
        sys.exit(error.exit_code)
    reporter = Reporter(StepKind(step), parsed.digest, sink_from_environment())
    code = run_step(parsed, Store(root), reporter)
    # The interpreter takes a while to go, without our handler: when one pod of several ends, the
    # others are stopped, and those that were just ending too would leave with SIGTERM's code.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(code)


if __name__ == "__main__":
    main()
