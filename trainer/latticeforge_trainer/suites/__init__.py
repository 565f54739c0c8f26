"""The evaluation suites by name. Importing this costs no torch, nor what a suite needs to run."""

from typing import Any

from latticeforge_trainer.errors import UserError
from latticeforge_trainer.suites.base import Problem, Suite, Verdict
from latticeforge_trainer.suites.cic_suites import CIC_SUITES
from latticeforge_trainer.suites.lm_eval import PREFIX, HarnessSuite
from latticeforge_trainer.suites.math_suite import MathSuite

__all__ = ["SUITES", "HarnessSuite", "Problem", "Suite", "Verdict", "suite_named"]

SUITES: dict[str, Suite[Any]] = {suite.name: suite for suite in (*CIC_SUITES, MathSuite())}


def suite_named(name: str) -> Suite[Any] | HarnessSuite:
    """Look a suite up.

    Raises:
        UserError: there is none of this name; the message lists those there are.
    """
    if name.startswith(PREFIX) and name != PREFIX:
        return HarnessSuite(name.removeprefix(PREFIX))
    if name not in SUITES:
        known = ", ".join([*SUITES, f"{PREFIX}TASK"])
        raise UserError(f"there is no suite {name!r}; there are {known}")
    return SUITES[name]
