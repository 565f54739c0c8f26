r"""The math suite: exact match of the final answer, the guard against forgetting.

The final answer is what follows the last ``Answer:``, else the last ``\boxed{}``, else the last
number in the text: a model that was not trained on our wording is judged by its sums and not by
its manners. Only a value is a final answer, so repeating the sum that was asked earns nothing, nor
does a fraction that is right but not in lowest terms where those were asked for.
"""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from latticeforge_trainer.contract import Score
from latticeforge_trainer.domain.math_problems import (
    MathProblem,
    math_problems,
    prompt_of,
    sample_of,
)
from latticeforge_trainer.domain.samples import user
from latticeforge_trainer.suites.base import Problem, Verdict, share

_ANSWER_LINE = re.compile(r"answer\s*(?:is)?\s*:\s*([^\n]+)", re.IGNORECASE)
_BOXED = re.compile(r"\\boxed\{((?:[^{}]|\{[^{}]*\})*)\}")
_INTEGER = r"[-−]?(?:\d{1,3}(?:,\d{3})+|\d+)"
_VALUE = re.compile(rf"{_INTEGER}(?:\.\d+|\s*/\s*{_INTEGER})?")
_FRACTION = re.compile(r"\\[dt]?frac\{(-?\d+)\}\{(-?\d+)\}")

MAX_VALUE_LENGTH = 60
"""Characters of a value that math-verify gets to see; it has no powers, so nothing to hang on."""


@dataclass(frozen=True)
class MathSuite:
    """Asks held-out math problems."""

    name: str = "math"
    group: str = "math"
    max_new_tokens: int = 160

    def problems(self, n: int, seed: int) -> list[Problem[MathProblem]]:
        """The first n held-out problems of a seed, the tasks in turn."""
        return [
            Problem(sample_of(problem).task, [user(prompt_of(problem))], problem)
            for problem in islice(math_problems(seed, "heldout"), n)
        ]

    def score(self, problem: Problem[MathProblem], answer: str) -> Verdict:
        """Compare the final answer as text, then as a value."""
        final = final_answer(answer)
        right = final == problem.truth.answer or (
            problem.truth.task != "fraction_simplification"
            and same_value(final, problem.truth.answer)
        )
        details = {"final": final, "true": problem.truth.answer, "task": problem.truth.task}
        return Verdict(float(right), details)

    def summarize(self, verdicts: Sequence[Verdict]) -> Score:
        """Share of right final answers."""
        return share(self.name, verdicts)


def final_answer(text: str) -> str:
    """The final answer in plain notation, or an empty string where there is none."""
    stated = _ANSWER_LINE.findall(text) or _BOXED.findall(text) or [text]
    values = _VALUE.findall(_FRACTION.sub(r"\1/\2", stated[-1]))
    return re.sub(r"[,\s]", "", values[-1]).replace("−", "-") if values else ""


def same_value(answer: str, true: str) -> bool:
    """Whether two values are equal, such as ``26/2`` and ``13``, as math-verify judges it."""
    from math_verify import parse, verify  # noqa: PLC0415  (imports sympy: half a second)

    if not answer or len(answer) > MAX_VALUE_LENGTH:
        return False
    # Its own time limits are signals, which work in the main thread only. Without them it warns
    # once that a caller must restrict what is parsed, and this one does.
    for module in ("parser", "grader"):
        logging.getLogger(f"math_verify.{module}").setLevel(logging.ERROR)
    expected, given = (parse(value, parsing_timeout=None) for value in (true, answer))
    return bool(verify(expected, given, timeout_seconds=None))
