"""The five steps; each module of this package has one `run`, see `Step`."""

from __future__ import annotations

from typing import Any, Protocol

from latticeforge_trainer.artifacts import Store
from latticeforge_trainer.contract import StepResult
from latticeforge_trainer.progress import Reporter


class Step(Protocol):
    """What each module of this package offers."""

    def run(self, config: Any, store: Store, reporter: Reporter) -> tuple[StepResult, bool]:
        """Do the step, or find that it is done.

        Returns:
            The result, and whether it was reused from the store.

        Raises:
            StepError: It could not be done; the subclass says why and decides the exit code.
        """
