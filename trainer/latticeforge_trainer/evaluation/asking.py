"""Asks models what the store has no answer to; the only part of an evaluation that needs torch."""

from __future__ import annotations

import gc
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from latticeforge_trainer.artifacts import Store
from latticeforge_trainer.contract import ModelRef
from latticeforge_trainer.errors import OutOfMemory
from latticeforge_trainer.evaluation.exams import Exam, HarnessExam, Reply
from latticeforge_trainer.generate import generate
from latticeforge_trainer.models.loading import load_for_inference
from latticeforge_trainer.progress import Reporter

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

Missing = list[tuple[ModelRef, list[Exam | HarnessExam]]]
"""Models, each with the exams that it has not taken."""


def ask(missing: Missing, store: Store, reporter: Reporter, batch_size: int) -> None:
    """Have every model take the exams it has not taken, one model in memory at a time.

    Each exam is kept as soon as it is over: a kill loses only the one that it interrupts.

    Raises:
        UserError: A model cannot be loaded, or a task of the harness cannot be run.
        OutOfMemory: Not even a single prompt fits.
    """
    meter = _Meter(sum(exam.samples for _, exams in missing for exam in exams), reporter)
    for reference, exams in missing:
        meter.say(f"loading {reference.name}")
        model, tokenizer = load_for_inference(reference, store)
        candidate = _Candidate(reference, model, tokenizer, batch_size)
        for exam in exams:
            candidate.take(exam, store, meter)
            meter.finished(exam.samples)
        batch_size = candidate.batch_size
        del candidate, model, tokenizer
        gc.collect()  # modules refer to each other in cycles
        _free_cache()


@dataclass
class _Candidate:
    """A loaded model that takes exams."""

    reference: ModelRef
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    batch_size: int
    """Halved when the GPU's memory runs out."""

    def take(self, exam: Exam | HarnessExam, store: Store, meter: _Meter) -> None:
        while True:
            try:
                self._take(exam, store, meter)
            except torch.OutOfMemoryError as error:
                if self.batch_size == 1:
                    raise OutOfMemory(
                        f"{self.reference.name} does not fit in GPU memory with a single prompt: "
                        "give the stage more memory per GPU"
                    ) from error
                self.batch_size //= 2
                log.warning("out of GPU memory: going on with batches of %d", self.batch_size)
            else:
                return
            _free_cache()  # outside of the handler, whose traceback holds the tensors

    def _take(self, exam: Exam | HarnessExam, store: Store, meter: _Meter) -> None:
        name = self.reference.name
        if isinstance(exam, HarnessExam):
            meter.say(f"{name} takes {exam.suite.name}")
            score = exam.suite.evaluate(
                self.model,
                self.tokenizer,
                n=exam.samples,
                seed=exam.seed,
                batch_size=self.batch_size,
            )
            exam.keep(self.reference, score, store)
            return
        answers = generate(
            self.model,
            self.tokenizer,
            [problem.messages for problem in exam.problems],
            max_new_tokens=exam.max_new_tokens,
            batch_size=self.batch_size,
            on_progress=lambda done, _: meter.answered(f"{name} answers {exam.group}", done),
        )
        replies = [Reply(answer.text, answer.finished) for answer in answers]
        exam.keep(self.reference, replies, store)


def _free_cache() -> None:
    """Give memory that no tensor uses back to the device."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class _Meter:
    """Progress over all exams of all models."""

    def __init__(self, total: int, reporter: Reporter) -> None:
        self._total, self._reporter = total, reporter
        self._done = 0
        self._started = time.monotonic()

    def say(self, message: str) -> None:
        """Report what is being done."""
        self._reporter.update(message, self._done / self._total)

    def answered(self, message: str, count: int) -> None:
        """Report that `count` answers of the current exam are there."""
        done = self._done + count
        elapsed = time.monotonic() - self._started
        left = elapsed / done * (self._total - done)
        text = f"{message}: {done} of {self._total} answers"
        self._reporter.update(text, done / self._total, eta_seconds=left)

    def finished(self, count: int) -> None:
        """The current exam is over."""
        self._done += count
