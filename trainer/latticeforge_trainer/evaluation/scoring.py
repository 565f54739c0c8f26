"""From answers to the score table, to drops on the same problems, and to files that show why."""

from __future__ import annotations

import dataclasses
import json
from math import hypot
from pathlib import Path
from typing import Any

from latticeforge_trainer.artifacts import Store
from latticeforge_trainer.contract import (
    EvaluateResult,
    EvaluateRuntime,
    ModelRef,
    ModelScores,
    PairedDrop,
    Score,
)
from latticeforge_trainer.evaluation.exams import Harness, Item, Reply
from latticeforge_trainer.suites import Verdict
from latticeforge_trainer.suites.statistics import paired_drop

BASE, PREVIOUS = "base", "previous"


@dataclasses.dataclass(frozen=True)
class Marked:
    """One model's result on one suite.

    Attributes:
        score: The suite's figure.
        replies: The answers, in the order of the problems; none from a harness task.
        verdicts: What each answer earned.
    """

    score: Score
    replies: list[Reply] = dataclasses.field(default_factory=list)
    verdicts: list[Verdict] = dataclasses.field(default_factory=list)


def mark(item: Item, model: ModelRef, store: Store) -> Marked:
    """Judge what a model answered.

    Raises:
        UserError: The store has no answers of it.
    """
    if isinstance(item, Harness):
        return Marked(item.exam.score(model, store))
    replies = item.exam.replies(model, store)
    pairs = zip(item.exam.problems, replies, strict=True)
    verdicts = [item.suite.score(problem, reply.text) for problem, reply in pairs]
    return Marked(item.suite.summarize(verdicts), replies, verdicts)


def tabulate(runtime: EvaluateRuntime, marks: list[list[Marked]]) -> EvaluateResult:
    """The score table and the drops.

    Args:
        runtime: The models: this stage's first, then those it is compared with.
        marks: One row per model in that order, one entry per suite.

    Returns:
        With drops against `base` and `previous`; the first stage's previous model is the base.
    """
    references = [runtime.model, *runtime.compare]
    table = [
        ModelScores(model=reference.name, scores=[marked.score for marked in row])
        for reference, row in zip(references, marks, strict=True)
    ]
    compared = {reference.name: row for reference, row in zip(references, marks, strict=True)}
    others = [name for name in compared if name not in (BASE, runtime.model.name)]
    against = {BASE: BASE, PREVIOUS: others[-1] if others else BASE}
    drops = [
        _drop(role, before, after)
        for role, name in against.items()
        if name in compared
        for before, after in zip(compared[name], marks[0], strict=True)
    ]
    return EvaluateResult(table=table, drops=drops)


def _drop(role: str, before: Marked, after: Marked) -> PairedDrop:
    if before.verdicts:
        earned = [[verdict.credit for verdict in marked.verdicts] for marked in (before, after)]
        drop, low, high = paired_drop(*earned)
    else:
        drop, low, high = unpaired_drop(before.score, after.score)
    return PairedDrop(suite=after.score.suite, against=role, drop=drop, low=low, high=high)


def unpaired_drop(before: Score, after: Score) -> tuple[float, float, float]:
    """Drop between two scores of which only the intervals are known, with its 95 % interval.

    The bounds of the single intervals are combined in quadrature, as for independent samples; on
    the same problems scores rise and fall together, so this is wider than it need be. R. G.
    Newcombe, "Interval estimation for the difference between independent proportions",
    Statistics in Medicine 17 (1998) 873-890, method 10.
    """
    drop = before.value - after.value
    low = drop - hypot(before.value - before.low, after.high - after.value)
    high = drop + hypot(before.high - before.value, after.value - after.low)
    return drop, low, high


def write_answers(folder: Path, model: ModelRef, item: Item, marked: Marked) -> None:
    """Write `<model>/<suite>.jsonl`: each problem with answer, truth and verdict.

    People look here to see why a model failed. Nothing is written for a harness task.
    """
    if isinstance(item, Harness):
        return
    target = folder / model.name / f"{item.suite.name}.jsonl"
    target.parent.mkdir(parents=True, exist_ok=True)
    rows = zip(item.exam.problems, marked.replies, marked.verdicts, strict=True)
    with target.open("w") as file:
        for problem, reply, verdict in rows:
            line = {
                "task": problem.task,
                "prompt": problem.messages,
                "answer": reply.text,
                "finished": reply.finished,
                "truth": _plain(problem.truth),
                "credit": verdict.credit,
                "details": dict(verdict.details),
            }
            file.write(json.dumps(line, default=str, ensure_ascii=False) + "\n")


def _plain(truth: Any) -> Any:
    is_record = dataclasses.is_dataclass(truth) and not isinstance(truth, type)
    return dataclasses.asdict(truth) if is_record else truth
