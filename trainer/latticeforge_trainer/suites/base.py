"""What an evaluation suite is: held-out problems, a judge of answers, and a score."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from latticeforge_trainer.contract import Score
from latticeforge_trainer.domain.samples import Message
from latticeforge_trainer.suites.statistics import wilson

Truth = TypeVar("Truth")
"""What a suite compares an answer with."""


@dataclass(frozen=True)
class Problem(Generic[Truth]):
    """A conversation that ends with the question, and what a right answer must agree with."""

    task: str
    """Identifies the problem in score files; the same wherever it is drawn."""
    messages: list[Message]
    truth: Truth


@dataclass(frozen=True)
class Verdict:
    """What one answer earned."""

    credit: float
    """In [0, 1]; between them only where an answer has several parts."""
    details: Mapping[str, str] = field(default_factory=dict)
    """Why, for whoever reads the answers."""

    @property
    def correct(self) -> bool:
        """Whether all of the answer is right."""
        return self.credit == 1


class Suite(Protocol[Truth]):
    """One measure of a model. Suites of one ``group`` ask the same problems."""

    @property
    def name(self) -> str:
        """What a StackedTraining calls it."""
        ...

    @property
    def group(self) -> str:
        """Suites with this in common share generated answers (same n and seed)."""
        ...

    @property
    def max_new_tokens(self) -> int:
        """Tokens that a right answer fits in with room, under any common tokenizer."""
        ...

    def problems(self, n: int, seed: int) -> list[Problem[Truth]]:
        """The first n held-out problems of a seed; never one of the training split."""
        ...

    def score(self, problem: Problem[Truth], answer: str) -> Verdict:
        """Judge one answer. Never raises on what a model may write."""
        ...

    def summarize(self, verdicts: Sequence[Verdict]) -> Score:
        """The suite's figure with n and a 95 % interval."""
        ...


def share(suite: str, verdicts: Sequence[Verdict], **extra: float) -> Score:
    """Mean credit with Wilson's interval over n answers.

    Answers are the unit of n even where each has several parts: parts of one answer stand or fall
    together, and counting them as independent would make the interval too narrow.
    """
    credit, n = sum(verdict.credit for verdict in verdicts), len(verdicts)
    low, high = wilson(credit, n)
    return Score(suite=suite, value=credit / n, low=low, high=high, n=n, extra=extra)
