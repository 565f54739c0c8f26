"""Exams: what a model is asked, and the answers that the store remembers.

Suites of one group with the same n and seed share an exam, so its answers are generated once and
judged by each. Answers are small artifacts under a digest of the weights and of everything that is
asked: those of the base and of the previous stage are found again by every later stage, whatever
it is called, and those that were complete survive a kill.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from latticeforge_trainer.artifacts import Store
from latticeforge_trainer.contract import (
    TRAINER_VERSION,
    ModelRef,
    Score,
    StepKind,
    SuiteRequest,
    digest_of,
)
from latticeforge_trainer.suites import SUITES, HarnessSuite, Problem, Suite, suite_named

if TYPE_CHECKING:
    from collections.abc import Iterable

_ANSWERS = "answers.jsonl"
_SCORE = "score.json"


@dataclass(frozen=True)
class Reply:
    """What a model wrote to one problem."""

    text: str
    finished: bool
    """False: the limit cut the answer off."""


@dataclass(frozen=True)
class Exam:
    """The problems of one group of suites."""

    group: str
    problems: tuple[Problem[Any], ...]
    max_new_tokens: int

    @property
    def samples(self) -> int:
        """How many problems there are."""
        return len(self.problems)

    @cached_property
    def _questions(self) -> str:
        return digest_of([problem.messages for problem in self.problems], self.max_new_tokens)

    def digest(self, model: ModelRef) -> str:
        """Where a model's answers are kept."""
        return digest_of(TRAINER_VERSION, "answers", model.identity, self._questions)

    def replies(self, model: ModelRef, store: Store) -> list[Reply]:
        """The answers that the store remembers.

        Raises:
            UserError: It does not; `digest` says where to look first.
        """
        folder = store.require(self.digest(model), f"what {model.name} answered")
        lines = (folder / _ANSWERS).read_text().splitlines()
        return [Reply(**json.loads(line)) for line in lines]

    def keep(self, model: ModelRef, replies: Iterable[Reply], store: Store) -> None:
        """Remember a model's answers."""
        lines = "".join(
            json.dumps({"text": reply.text, "finished": reply.finished}) + "\n" for reply in replies
        )
        with store.create(self.digest(model)) as staging:
            (staging.folder / _ANSWERS).write_text(lines)
            staging.seal(StepKind.EVALUATE, None, {"model": model.name, "group": self.group})


@dataclass(frozen=True)
class HarnessExam:
    """One task of lm-evaluation-harness: it asks and judges by itself, so its score is kept."""

    suite: HarnessSuite
    samples: int
    seed: int

    def digest(self, model: ModelRef) -> str:
        """Where a model's score is kept."""
        asked = (self.suite.name, self.samples, self.seed)
        return digest_of(TRAINER_VERSION, "harness", model.identity, *asked)

    def score(self, model: ModelRef, store: Store) -> Score:
        """The score that the store remembers.

        Raises:
            UserError: It does not; `digest` says where to look first.
        """
        folder = store.require(self.digest(model), f"{model.name}'s score on {self.suite.name}")
        return Score.model_validate_json((folder / _SCORE).read_bytes())

    def keep(self, model: ModelRef, score: Score, store: Store) -> None:
        """Remember a model's score."""
        with store.create(self.digest(model)) as staging:
            (staging.folder / _SCORE).write_text(json.dumps(score.to_json()))
            extra = {"model": model.name, "suite": self.suite.name}
            staging.seal(StepKind.EVALUATE, None, extra)


@dataclass(frozen=True)
class Judged:
    """A suite of ours, and the exam whose answers it judges."""

    suite: Suite[Any]
    exam: Exam


@dataclass(frozen=True)
class Harness:
    """A suite of the harness, which is its own judge."""

    exam: HarnessExam


Item = Judged | Harness


def plan(requests: list[SuiteRequest]) -> list[Item]:
    """What is asked for each requested suite; suites of one group, n and seed share an exam.

    Raises:
        UserError: There is no such suite.
    """
    exams: dict[tuple[str, int, int], Exam] = {}
    items: list[Item] = []
    for request in requests:
        suite = suite_named(request.suite)
        if isinstance(suite, HarnessSuite):
            items.append(Harness(HarnessExam(suite, request.samples, request.seed)))
            continue
        key = (suite.group, request.samples, request.seed)
        if key not in exams:
            exams[key] = _exam(suite, request)
        items.append(Judged(suite, exams[key]))
    return items


def _exam(suite: Suite[Any], request: SuiteRequest) -> Exam:
    # The whole group's limit, not that of the suites at hand: answers are the same for all of them.
    limit = max(other.max_new_tokens for other in SUITES.values() if other.group == suite.group)
    problems = suite.problems(request.samples, request.seed)
    return Exam(suite.group, tuple(problems), limit)
