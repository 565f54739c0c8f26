"""The `evaluate` step: scores of a model beside those of the base and of the previous stage.

    python -m latticeforge_trainer evaluate --config step.json --store /storage

Answers are kept per model and exam, so the base is asked once in a stack's life, and a step that is
killed goes on with the next exam. The artifact holds `scores.json` and, for people who want to know
why, every answer with its verdict in `answers/<model>/<suite>.jsonl`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from latticeforge_trainer.artifacts import Store
from latticeforge_trainer.contract import EvaluateConfig, EvaluateResult, ModelRef, StepKind
from latticeforge_trainer.evaluation.exams import Item, plan
from latticeforge_trainer.evaluation.scoring import mark, tabulate, write_answers
from latticeforge_trainer.progress import Reporter

if TYPE_CHECKING:
    from latticeforge_trainer.evaluation.asking import Missing

SCORES = "scores.json"
ANSWERS = "answers"


def run(config: EvaluateConfig, store: Store, reporter: Reporter) -> tuple[EvaluateResult, bool]:
    """Score the model and those it is compared with.

    Returns:
        The score table, and whether it was reused from the store.

    Raises:
        UserError: There is no such suite, or a model cannot be loaded.
        OutOfMemory: A model does not fit in the GPU's memory.
    """
    sealed = store.manifest(config.digest)
    if sealed and isinstance(sealed.result, EvaluateResult):
        return sealed.result, True
    reporter.update("choosing held-out problems")
    items = plan(config.payload.suites)
    models = [config.runtime.model, *config.runtime.compare]
    if missing := _missing(items, models, store):
        from latticeforge_trainer.evaluation.asking import (  # noqa: PLC0415  (loads torch)
            ask,
        )

        ask(missing, store, reporter, config.runtime.batch_size)
    reporter.update("judging the answers", 1.0)
    marks = [[mark(item, model, store) for item in items] for model in models]
    result = tabulate(config.runtime, marks)
    with store.create(config.digest) as staging:
        (staging.folder / SCORES).write_text(json.dumps(result.to_json(), indent=1))
        for model, row in zip(models, marks, strict=True):
            for item, marked in zip(items, row, strict=True):
                write_answers(staging.folder / ANSWERS, model, item, marked)
        staging.seal(StepKind.EVALUATE, result)
    return result, False


def _missing(items: list[Item], models: list[ModelRef], store: Store) -> Missing:
    """Each model that lacks answers, once whatever its names, with the exams it has to take."""
    missing: Missing = []
    distinct: dict[str, ModelRef] = {}
    for model in models:
        distinct.setdefault(model.identity, model)
    for model in distinct.values():
        exams = {item.exam.digest(model): item.exam for item in items}
        left = [exam for digest, exam in exams.items() if store.manifest(digest) is None]
        if left:
            missing.append((model, left))
    return missing
